"""The detection network, from resized images to boxes. Read it top to bottom.

    images (n, 640, 640, 3)
      ResNet           feature maps of strides 8, 16 and 32
      HybridEncoder    mixes the three maps: feature maps of the same shapes
      selection        each position of each map proposes a box; the 300 with the highest scores become queries
      Decoder          queries (n, 300, dim), layer by layer, attend to the maps and refine their boxes
                       logits (n, 300, classes), boxes (n, 300, 4)

As in vitpose/modeling.py, arrays are channels last; the network computes in `dtype` and stores its parameters in
`param_dtype`; softmax, norms and coordinates are float32. The network is for prediction only: BatchNorm always uses its
running statistics, and there is no training loss.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.typing import DTypeLike
from jaxtyping import Array, Bool, Float, Int

from vitpose_jax.rtdetr.backbone import ResNet
from vitpose_jax.rtdetr.config import DetectorConfig
from vitpose_jax.rtdetr.decoder import Decoder
from vitpose_jax.rtdetr.encoder import HybridEncoder
from vitpose_jax.rtdetr.layers import ConvNorm, Mlp, layer_norm
from vitpose_jax.storage import parameters

# Width and height of an anchor at the finest level, as a fraction of the image; they double at each coarser level.
ANCHOR_SIZE = 0.05
# Anchors with a coordinate closer than this to 0 or 1 are not valid.
ANCHOR_MARGIN = 0.01


class Proposals(NamedTuple):
    """The highest-scoring positions of the feature maps, the best first.

    Attributes:
        queries: (n, queries, dim), the features at these positions.
        boxes: (n, queries, 4), before the sigmoid.
        logits: (n, queries, classes), float32.
        index: (n, queries), the positions, as indices into `DetectorOutput.memory`.
    """

    queries: Float[Array, "n queries dim"]
    boxes: Float[Array, "n queries 4"]
    logits: Float[Array, "n queries classes"]
    index: Int[Array, "n queries"]


class DetectorOutput(NamedTuple):
    """The outputs of an `RtDetr`. Under `jax.jit`, outputs that are not used are not computed.

    Attributes:
        logits: (n, queries, classes), float32, from the last layer; their sigmoids are the scores.
        boxes: (n, queries, 4), float32, from the last layer: (x, y) of the centre, width and height, as fractions of
            the image's width and height.
        layer_logits, layer_boxes: the same from all layers, (layers, n, queries, ...).
        queries: the queries after each layer, (layers, n, queries, dim).
        proposals: the initial queries and boxes.
        memory: the feature maps that the decoder samples, row by row, one after another, (n, tokens, dim).
        encoded: the feature maps of the encoder, the finest first.
        feature_maps: the feature maps of the backbone, the finest first.
    """

    logits: Float[Array, "n queries classes"]
    boxes: Float[Array, "n queries 4"]
    layer_logits: Float[Array, "layers n queries classes"]
    layer_boxes: Float[Array, "layers n queries 4"]
    queries: Float[Array, "layers n queries dim"]
    proposals: Proposals
    memory: Float[Array, "n tokens dim"]
    encoded: tuple[Float[Array, "n _rows _columns _dim"], ...]
    feature_maps: tuple[Float[Array, "n _rows _columns _features"], ...]


class RtDetr(nnx.Module):
    """RT-DETR or RT-DETRv2.

    Args:
        config: the architecture.
        dtype: the dtype of the computation: float32, bfloat16 or float16.
        param_dtype: the dtype of the stored parameters.
        rngs: for the initial parameters.
    """

    def __init__(
        self,
        config: DetectorConfig,
        *,
        dtype: DTypeLike = jnp.float32,
        param_dtype: DTypeLike = jnp.float32,
        rngs: nnx.Rngs,
    ):
        kwargs = {"dtype": dtype, "param_dtype": param_dtype, "rngs": rngs}
        features, levels = config.hidden_size, len(config.out_indices)
        self.backbone = ResNet(config, **kwargs)
        self.encoder = HybridEncoder(config, **kwargs)
        norm = {"epsilon": config.batch_norm_eps, **kwargs}
        self.project = nnx.List([ConvNorm(config.encoder_hidden_size, features, 1, **norm) for _ in range(levels)])
        self.further = nnx.List(
            [
                ConvNorm(config.encoder_hidden_size, features, 3, stride=2, **norm)
                for _ in range(config.num_levels - levels)
            ]
        )
        self.propose = nnx.Linear(features, features, **kwargs)
        self.propose_norm = layer_norm(features, config.layer_norm_eps, dtype=dtype, rngs=rngs)
        self.propose_score = nnx.Linear(features, len(config.labels), **kwargs)
        self.propose_box = Mlp((features, features, features, 4), act="relu", **kwargs)
        self.decoder = Decoder(config, **kwargs)
        self.config, self.dtype, self.param_dtype = config, dtype, param_dtype

    def __call__(self, images: Float[Array, "n height width channels"]) -> DetectorOutput:
        """Find objects in images.

        Args:
            images: of the configured `image_size`, from `preprocess.prepare`.

        Raises:
            ValueError: for images of another size.
        """
        expected = (*self.config.image_size, self.config.num_channels)
        if images.shape[1:] != expected:
            raise ValueError(f"images: expected (n, {', '.join(map(str, expected))}), got {images.shape}")
        feature_maps = self.backbone(images.astype(self.dtype))
        encoded = self.encoder(feature_maps)
        levels = [project(x) for project, x in zip(self.project, encoded, strict=True)]
        levels += [project(encoded[-1]) for project in self.further]
        memory = jnp.concatenate([jax.lax.collapse(level, 1, 3) for level in levels], axis=1)
        proposals = self.select(memory)
        decoded = self.decoder(proposals.queries, proposals.boxes, memory)
        return DetectorOutput(
            logits=decoded.logits[-1],
            boxes=decoded.boxes[-1],
            layer_logits=decoded.logits,
            layer_boxes=decoded.boxes,
            queries=decoded.queries,
            proposals=proposals,
            memory=memory,
            encoded=encoded,
            feature_maps=feature_maps,
        )

    def select(self, memory: Float[Array, "n tokens dim"]) -> Proposals:
        """The `num_queries` positions with the highest score of any class; of equal scores the first."""
        anchors, valid = make_anchors(self.config.level_sizes)
        features = self.propose_norm(self.propose(jnp.where(valid[:, None], memory, 0)))
        logits = self.propose_score(features).astype(jnp.float32)
        _, index = jax.lax.top_k(logits.max(axis=-1), self.config.num_queries)

        def take(x):
            return jnp.take_along_axis(x, index[..., None], axis=1)

        # The box head computes only the selected positions.
        queries = take(features)
        boxes = self.propose_box(queries).astype(jnp.float32) + jnp.asarray(anchors)[index]
        return Proposals(queries, boxes, take(logits), index)


def make_anchors(
    level_sizes: tuple[tuple[int, int], ...],
) -> tuple[Float[np.ndarray, "tokens 4"], Bool[np.ndarray, " tokens"]]:
    """The anchors: a box for each position of each feature map, before the sigmoid; and whether it is valid.

    Anchors that are not valid are so large that their boxes become (1, 1, 1, 1).
    """
    anchors = []
    for level, (height, width) in enumerate(level_sizes):
        y, x = np.divmod(np.arange(height * width, dtype=np.float32), np.float32(width))
        side = np.full_like(x, ANCHOR_SIZE * 2**level)
        anchors.append(np.stack([(x + 0.5) / width, (y + 0.5) / height, side, side], axis=-1))
    boxes = np.concatenate(anchors).astype(np.float32)
    valid = (boxes.min(axis=-1) > ANCHOR_MARGIN) & (boxes.max(axis=-1) < 1 - ANCHOR_MARGIN)
    inner = boxes.clip(ANCHOR_MARGIN, 1 - ANCHOR_MARGIN)
    return np.where(valid[:, None], np.log(inner / (1 - inner)), np.finfo(np.float32).max).astype(np.float32), valid


def abstract_detector(
    config: DetectorConfig, *, dtype: DTypeLike = jnp.float32, param_dtype: DTypeLike = jnp.float32
) -> RtDetr:
    """An `RtDetr` with shapes instead of arrays; `parameters.fill` puts the arrays in."""
    return parameters.abstract(lambda: RtDetr(config, dtype=dtype, param_dtype=param_dtype, rngs=nnx.Rngs(0)))
