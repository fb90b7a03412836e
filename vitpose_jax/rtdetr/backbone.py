"""ResNet-vd, from images to feature maps: a stem of three convolutions, and shortcuts that average 2x2 pixels."""

from flax import nnx
from jax.typing import DTypeLike
from jaxtyping import Array, Float

from vitpose_jax.rtdetr.config import BOTTLENECK_REDUCTION, BlockShape, DetectorConfig
from vitpose_jax.rtdetr.layers import ConvNorm
from vitpose_jax.vitpose import ops


class Residual(nnx.Module):
    """A residual block: two 3x3 convolutions, or a bottleneck of 1x1, 3x3 and 1x1 on a quarter of the channels."""

    def __init__(
        self, config: DetectorConfig, shape: BlockShape, *, dtype: DTypeLike, param_dtype: DTypeLike, rngs: nnx.Rngs
    ):
        kwargs = {"dtype": dtype, "param_dtype": param_dtype, "rngs": rngs}
        features_in, features, stride, shortcut = shape
        # Inside a block the activation is always ReLU, as in transformers; hidden_act comes after the block.
        if config.layer_type == "basic":
            convs = [
                ConvNorm(features_in, features, 3, stride=stride, act="relu", **kwargs),
                ConvNorm(features, features, 3, **kwargs),
            ]
        else:
            inner = features // BOTTLENECK_REDUCTION
            first, second = (stride, 1) if config.downsample_in_bottleneck else (1, stride)
            convs = [
                ConvNorm(features_in, inner, 1, stride=first, act="relu", **kwargs),
                ConvNorm(inner, inner, 3, stride=second, act="relu", **kwargs),
                ConvNorm(inner, features, 1, **kwargs),
            ]
        self.convs = nnx.List(convs)
        if shortcut != "none":
            self.project = ConvNorm(features_in, features, 1, stride=1 if shortcut == "pool" else stride, **kwargs)
        self.shortcut = shortcut
        self.act = ops.activation(config.hidden_act)

    def __call__(self, x: Float[Array, "n height width features_in"]) -> Float[Array, "n rows columns features"]:
        short = nnx.avg_pool(x, (2, 2), strides=(2, 2)) if self.shortcut == "pool" else x
        if self.shortcut != "none":
            short = self.project(short)
        for conv in self.convs:
            x = conv(x)
        return self.act(x + short)


class ResNet(nnx.Module):
    """The backbone: a stem, then stages of residual blocks, each with half the resolution of the one before."""

    def __init__(self, config: DetectorConfig, *, dtype: DTypeLike, param_dtype: DTypeLike, rngs: nnx.Rngs):
        kwargs = {"dtype": dtype, "param_dtype": param_dtype, "rngs": rngs}
        half, act = config.embedding_size // 2, config.hidden_act
        self.stem = nnx.List(
            [
                ConvNorm(config.num_channels, half, 3, stride=2, act=act, **kwargs),
                ConvNorm(half, half, 3, act=act, **kwargs),
                ConvNorm(half, config.embedding_size, 3, act=act, **kwargs),
            ]
        )
        self.stages = nnx.List(
            [nnx.List([Residual(config, shape, **kwargs) for shape in stage]) for stage in config.stages]
        )
        self.out_indices = config.out_indices

    def __call__(
        self, images: Float[Array, "n height width channels"]
    ) -> tuple[Float[Array, "n _rows _columns _features"], ...]:
        """The feature maps of `out_indices`, the finest first."""
        x = images
        for conv in self.stem:
            x = conv(x)
        padding = ((1, 1), (1, 1))
        x = nnx.max_pool(x, (3, 3), strides=(2, 2), padding=padding)  # pyright: ignore[reportArgumentType]: flax's hint
        feature_maps = []
        for index, stage in enumerate(self.stages, 1):
            for block in stage:
                x = block(x)
            if index in self.out_indices:
                feature_maps.append(x)
        return tuple(feature_maps)
