"""The decoder: queries attend to each other and to points of the feature maps, and each layer refines their boxes.

Boxes inside the network are (x, y) of the centre, width and height, as fractions of the image's width and height.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.typing import DTypeLike
from jaxtyping import Array, Float

from vitpose_jax.rtdetr.config import DetectorConfig
from vitpose_jax.rtdetr.layers import Mlp, SelfAttention, layer_norm

BOX_EPS = 1e-5


class DeformableAttention(nnx.Module):
    """Each query samples `num_points` points around its box, for each head and level, and takes a weighted average."""

    def __init__(self, config: DetectorConfig, *, dtype: DTypeLike, param_dtype: DTypeLike, rngs: nnx.Rngs):
        kwargs = {"dtype": dtype, "param_dtype": param_dtype, "rngs": rngs}
        features = config.hidden_size
        samples = config.num_levels * config.num_points
        self.offsets = nnx.Linear(features, config.decoder_heads * samples * 2, **kwargs)
        self.weights = nnx.Linear(features, config.decoder_heads * samples, **kwargs)
        self.value = nnx.Linear(features, features, **kwargs)
        self.proj = nnx.Linear(features, features, **kwargs)
        if config.version == 2:
            # 1 / the number of points of each sample's level. Checkpoints store it as a tensor, so it is one here too.
            self.points_scale = nnx.Variable(jnp.full(samples, 1 / config.num_points, jnp.float32))
        self.config = config

    def __call__(
        self,
        queries: Float[Array, "n queries dim"],
        boxes: Float[Array, "n queries 4"],
        memory: Float[Array, "n tokens dim"],
    ) -> Float[Array, "n queries dim"]:
        config = self.config
        n, count, _ = queries.shape
        shape = (n, count, config.decoder_heads, config.num_levels * config.num_points)
        weights = jax.nn.softmax(self.weights(queries).reshape(shape).astype(jnp.float32))
        offsets = self.offsets(queries).reshape(*shape, 2).astype(jnp.float32)
        scale = self.points_scale[...][:, None] if config.version == 2 else 1 / config.num_points
        centre, extent = boxes[:, :, None, None, :2], boxes[:, :, None, None, 2:]
        points = centre + offsets * scale * extent * config.offset_scale
        values = self.value(memory).reshape(n, -1, config.decoder_heads, config.hidden_size // config.decoder_heads)
        return self.proj(sample(values, config, points, weights).reshape(n, count, -1))


def sample(
    values: Float[Array, "n tokens heads dim"],
    config: DetectorConfig,
    points: Float[Array, "n queries heads samples 2"],
    weights: Float[Array, "n queries heads samples"],
) -> Float[Array, "n queries heads dim"]:
    """Weighted sums of feature map values at points.

    Args:
        values: the feature maps of all levels, row by row, one after another.
        config: the sizes of the levels, the number of samples in each, and the sampling between pixels. Outside the
            feature map, "bilinear" reads zeros and "nearest" reads the nearest pixel.
        points: (x, y) as fractions of the image's width and height; the samples of each level in turn.
        weights: the weight of each sample.
    """
    sizes = np.asarray(config.level_sizes)
    # For each sample, as static arrays: height and width of its level, and the index of the level's first value.
    height, width = np.repeat(sizes, config.num_points, axis=0).T
    begin = np.repeat(np.cumsum([0, *sizes.prod(axis=1)[:-1]]), config.num_points)
    x, y = points[..., 0] * width, points[..., 1] * height
    if config.sampling == "nearest":
        corners = [(jnp.clip(jnp.floor(x + 0.5), 0, width - 1), jnp.clip(jnp.floor(y + 0.5), 0, height - 1), weights)]
    else:
        # The centre of the first pixel is half a pixel from the edge.
        x, y = x - 0.5, y - 0.5
        left, top = jnp.floor(x), jnp.floor(y)
        corners = []
        for column, across in ((left, left + 1 - x), (left + 1, x - left)):
            for row, down in ((top, top + 1 - y), (top + 1, y - top)):
                inside = (column >= 0) & (column < width) & (row >= 0) & (row < height)
                corners.append((column, row, jnp.where(inside, weights * across * down, 0)))
    by_head = values.swapaxes(1, 2)
    total = jnp.zeros((), jnp.float32)
    for column, row, weight in corners:
        column = jnp.clip(column, 0, width - 1).astype(jnp.int32)
        row = jnp.clip(row, 0, height - 1).astype(jnp.int32)
        index = (begin + row * width + column).swapaxes(1, 2)
        n, heads, count, samples = index.shape
        sampled = jnp.take_along_axis(by_head, index.reshape(n, heads, -1, 1), axis=2)
        sampled = sampled.reshape(n, heads, count, samples, -1)
        weight = weight.swapaxes(1, 2).astype(values.dtype)
        total = total + jnp.einsum("nhqsd,nhqs->nqhd", sampled, weight, preferred_element_type=jnp.float32)
    return total.astype(values.dtype)


class DecoderLayer(nnx.Module):
    """A layer of the decoder with its own heads: `box` corrects the queries' boxes, `score` computes class logits."""

    def __init__(self, config: DetectorConfig, *, dtype: DTypeLike, param_dtype: DTypeLike, rngs: nnx.Rngs):
        kwargs = {"dtype": dtype, "param_dtype": param_dtype, "rngs": rngs}
        features = config.hidden_size
        self.attention = SelfAttention(features, config.decoder_heads, **kwargs)
        self.norm1 = layer_norm(features, config.layer_norm_eps, dtype=dtype, rngs=rngs)
        self.cross = DeformableAttention(config, **kwargs)
        self.norm2 = layer_norm(features, config.layer_norm_eps, dtype=dtype, rngs=rngs)
        self.mlp = Mlp((features, config.decoder_ffn_size, features), act=config.decoder_act, **kwargs)
        self.norm3 = layer_norm(features, config.layer_norm_eps, dtype=dtype, rngs=rngs)
        self.box = Mlp((features, features, features, 4), act="relu", **kwargs)
        self.score = nnx.Linear(features, len(config.labels), **kwargs)

    def __call__(
        self,
        queries: Float[Array, "n queries dim"],
        positions: Float[Array, "n queries dim"],
        boxes: Float[Array, "n queries 4"],
        memory: Float[Array, "n tokens dim"],
    ) -> Float[Array, "n queries dim"]:
        queries = self.norm1(queries + self.attention(queries, positions))
        queries = self.norm2(queries + self.cross(queries + positions, boxes, memory))
        return self.norm3(queries + self.mlp(queries))


class DecoderOutput(NamedTuple):
    """The outputs of all layers of a `Decoder`, in order.

    Attributes:
        queries: (layers, n, queries, dim).
        logits: (layers, n, queries, classes), float32.
        boxes: (layers, n, queries, 4), float32; see the top of this file.
    """

    queries: Float[Array, "layers n queries dim"]
    logits: Float[Array, "layers n queries classes"]
    boxes: Float[Array, "layers n queries 4"]


class Decoder(nnx.Module):
    """The stacked layers, run by a scan, and the MLP that turns boxes into position embeddings of the queries."""

    def __init__(self, config: DetectorConfig, *, dtype: DTypeLike, param_dtype: DTypeLike, rngs: nnx.Rngs):
        kwargs = {"dtype": dtype, "param_dtype": param_dtype}
        features = config.hidden_size
        create = nnx.vmap(lambda rngs: DecoderLayer(config, **kwargs, rngs=rngs))
        self.layers = create(rngs.split(config.decoder_layers))
        self.position = Mlp((4, 2 * features, features), act="relu", **kwargs, rngs=rngs)
        self.dtype = dtype

    def __call__(
        self,
        queries: Float[Array, "n queries dim"],
        boxes: Float[Array, "n queries 4"],
        memory: Float[Array, "n tokens dim"],
    ) -> DecoderOutput:
        """Refine queries and boxes.

        Args:
            queries: the initial queries.
            boxes: the initial boxes, before the sigmoid.
            memory: the feature maps of all levels, row by row, one after another.
        """

        def step(carry, layer):
            queries, boxes = carry
            queries = layer(queries, self.position(boxes.astype(self.dtype)), boxes, memory)
            boxes = jax.nn.sigmoid(layer.box(queries).astype(jnp.float32) + inverse_sigmoid(boxes))
            return (queries, boxes), (queries, layer.score(queries).astype(jnp.float32), boxes)

        start = queries.astype(self.dtype), jax.nn.sigmoid(boxes.astype(jnp.float32))
        return DecoderOutput(*jax.lax.scan(step, start, self.layers)[1])


def inverse_sigmoid(x: Float[Array, "..."]) -> Float[Array, "..."]:
    """The logit of a fraction. Fractions near 0 and 1 are limited by `BOX_EPS`, so the result is finite."""
    x = x.clip(0, 1)
    return jnp.log(jnp.maximum(x, BOX_EPS) / jnp.maximum(1 - x, BOX_EPS))
