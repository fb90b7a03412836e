"""The person finder's network, from resized images to boxes. Read it top to bottom.

    images (n, height, width, 3), sides are multiples of 32
      stem, stages     feature maps of strides 8, 16 and 32
      fusion           top-down and bottom-up: each map gets the sum of its neighbours
      heads            for each cell of each map: a logit for each class, and four distributions over distances
                       logits (n, cells, classes), boxes (n, cells, 4)

As in vitpose/modeling.py, arrays are channels last, the network computes in `dtype` and stores its parameters in
`param_dtype`, and coordinates are float32. There is no normalisation layer: BatchNorm is folded into the kernels.
The architecture is NanoDet-g's (github.com/RangiLyu/nanodet).
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.typing import DTypeLike
from jaxtyping import Array, Float

from vitpose_jax.finder.config import STRIDES, FinderConfig
from vitpose_jax.finder.second_stage import SecondStage
from vitpose_jax.storage import parameters

LEAKY_SLOPE = 0.1


class FinderOutput(NamedTuple):
    """The outputs of a `PersonFinder`. Cells are listed map by map, the finest first, and row by row.

    Attributes:
        logits: (n, cells, classes), float32; their sigmoids are the scores.
        distances: (n, cells, 4, bins), float32: logits of the distances to the left, top, right and bottom side.
        boxes: (n, cells, 4), float32: x1, y1, x2, y2 in pixels of the network's input, whose corner is (0, 0).
        feature_maps: the maps that the heads read, the finest first.
    """

    logits: Float[Array, "n cells classes"]
    distances: Float[Array, "n cells 4 bins"]
    boxes: Float[Array, "n cells 4"]
    feature_maps: tuple[Float[Array, "n _rows _columns features"], ...]


class PersonFinder(nnx.Module):
    """Finds people in images.

    Args:
        config: the architecture.
        dtype: the dtype of the computation: float32, bfloat16 or float16.
        param_dtype: the dtype of the stored parameters.
        rngs: for the initial parameters.
    """

    def __init__(
        self,
        config: FinderConfig,
        *,
        dtype: DTypeLike = jnp.float32,
        param_dtype: DTypeLike = jnp.float32,
        rngs: nnx.Rngs,
    ):
        kwargs = {"dtype": dtype, "param_dtype": param_dtype, "rngs": rngs}
        self.stem = _conv(3, config.stem_features, 3, stride=2, **kwargs)
        stages, features = [], config.stem_features
        for index, (width, depth) in enumerate(zip(config.widths, config.depths, strict=True)):
            stages.append(Stage(features, width, depth, stride=2 if index else 1, **kwargs))
            features = 2 * width
        self.stages = nnx.List(stages)
        self.laterals = nnx.List([_conv(2 * width, config.hidden_size, 1, **kwargs) for width in config.widths[1:]])
        outputs = len(config.labels) + 4 * config.num_bins
        self.heads = nnx.List([Head(config.hidden_size, outputs, **kwargs) for _ in STRIDES])
        if config.second_stage is not None:
            self.second_stage = SecondStage(config.second_stage, **kwargs)
        self.config, self.dtype, self.param_dtype = config, dtype, param_dtype

    def __call__(self, images: Float[Array, "n height width channels"]) -> FinderOutput:
        """Find people in images.

        Args:
            images: from `preprocess.prepare`; height and width are multiples of 32.

        Raises:
            ValueError: for images of another size or with another number of channels.
        """
        _, height, width, channels = images.shape
        if height % STRIDES[-1] or width % STRIDES[-1] or channels != 3:
            raise ValueError(f"images: expected (n, height, width, 3), multiples of {STRIDES[-1]}, got {images.shape}")
        x = _activate(self.stem(images.astype(self.dtype)))
        padding: Any = ((1, 1), (1, 1))  # annotated as a string in flax
        x = nnx.max_pool(x, (3, 3), strides=(2, 2), padding=padding)
        maps = []
        for stage in self.stages:
            x = stage(x)
            maps.append(x)
        maps = fuse([lateral(x) for lateral, x in zip(self.laterals, maps[1:], strict=True)])
        rows = [jax.lax.collapse(head(x), 1, 3) for head, x in zip(self.heads, maps, strict=True)]
        outputs = jnp.concatenate(rows, axis=1).astype(jnp.float32)
        classes = len(self.config.labels)
        distances = outputs[..., classes:].reshape(*outputs.shape[:2], 4, self.config.num_bins)
        return FinderOutput(
            logits=outputs[..., :classes],
            distances=distances,
            boxes=decode_boxes(distances, *make_cells(height, width)),
            feature_maps=tuple(maps),
        )


class Stage(nnx.Module):
    """A convolution, some blocks, a convolution; the outputs of the first and the last are joined.

    A block computes half as many channels, then as many from these, and joins both.
    """

    def __init__(self, features_in: int, features: int, depth: int, *, stride: int, **kwargs: Any):
        half = features // 2
        self.enter = _conv(features_in, features, 3, stride=stride, **kwargs)
        self.first = nnx.List([_conv(features, half, 3, **kwargs) for _ in range(depth)])
        self.second = nnx.List([_conv(half, half, 3, **kwargs) for _ in range(depth)])
        self.leave = _conv(features, features, 3, **kwargs)

    def __call__(self, x: Float[Array, "n rows columns features_in"]) -> Float[Array, "n _rows _columns features"]:
        entered = x = _activate(self.enter(x))
        for first, second in zip(self.first, self.second, strict=True):
            half = _activate(first(x))
            x = jnp.concatenate([_activate(second(half)), half], axis=-1)
        return jnp.concatenate([_activate(self.leave(x)), entered], axis=-1)


class Head(nnx.Module):
    """Two convolutions, from a feature map to the outputs of its cells."""

    def __init__(self, features: int, outputs: int, **kwargs: Any):
        self.hidden = _conv(features, features, 3, **kwargs)
        self.out = _conv(features, outputs, 1, **kwargs)

    def __call__(self, x: Float[Array, "n rows columns features"]) -> Float[Array, "n rows columns outputs"]:
        return self.out(_activate(self.hidden(x)))


def fuse(maps: list[Float[Array, "n _rows _columns features"]]) -> list[Float[Array, "n _rows _columns features"]]:
    """Add the coarser maps to the finer ones, then the finer ones to the coarser ones."""
    fine, middle, coarse = maps
    middle = middle + _resize_as(coarse, middle)
    fine = fine + _resize_as(middle, fine)
    middle = middle + _resize_as(fine, middle)
    return [fine, middle, coarse + _resize_as(middle, coarse)]


def make_cells(height: int, width: int) -> tuple[Float[np.ndarray, "cells 2"], Float[np.ndarray, " cells"]]:
    """The centre (x, y) of every cell in pixels of the network's input, and its stride."""
    centres, strides = [], []
    for stride in STRIDES:
        rows, columns = np.mgrid[: height // stride, : width // stride]
        centres.append((np.stack([columns, rows], axis=-1).reshape(-1, 2) + 0.5) * stride)
        strides.append(np.full(rows.size, stride))
    return np.concatenate(centres).astype(np.float32), np.concatenate(strides).astype(np.float32)


def decode_boxes(
    distances: Float[Array, "n cells 4 bins"],
    centres: Float[np.ndarray, "cells 2"],
    strides: Float[np.ndarray, " cells"],
) -> Float[Array, "n cells 4"]:
    """Boxes x1, y1, x2, y2 from distributions over distances, by their expectation."""
    steps = jnp.arange(distances.shape[-1], dtype=jnp.float32)
    sides = jnp.sum(jax.nn.softmax(distances) * steps, axis=-1) * strides[:, None]
    return jnp.concatenate([centres - sides[..., :2], centres + sides[..., 2:]], axis=-1)


def abstract_finder(
    config: FinderConfig, *, dtype: DTypeLike = jnp.float32, param_dtype: DTypeLike = jnp.float32
) -> PersonFinder:
    """A `PersonFinder` with shapes instead of arrays; `parameters.fill` puts the arrays in."""
    return parameters.abstract(lambda: PersonFinder(config, dtype=dtype, param_dtype=param_dtype, rngs=nnx.Rngs(0)))


def _conv(features_in: int, features: int, size: int, *, stride: int = 1, **kwargs: Any) -> nnx.Conv:
    # Explicit padding: with stride 2, "SAME" would pad on the other side.
    padding = [(size // 2, size // 2)] * 2
    return nnx.Conv(features_in, features, (size, size), strides=stride, padding=padding, **kwargs)


def _activate(x: Float[Array, "..."]) -> Float[Array, "..."]:
    return nnx.leaky_relu(x, LEAKY_SLOPE)


def _resize_as(x: Float[Array, "n _rows _columns features"], like: Float[Array, "n rows columns features"]) -> Array:
    # Bilinear between half-pixel centres, without a wider filter where it shrinks.
    shape = (*like.shape[:3], x.shape[-1])
    return jax.image.resize(x, shape, "bilinear", antialias=False)
