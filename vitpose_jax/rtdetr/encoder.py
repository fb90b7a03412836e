"""The hybrid encoder: attention inside the coarsest feature map, convolutions between neighbouring maps.

feature maps       each projected to `encoder_hidden_size` channels
  transformer      on the maps of `encoder_levels`: attention among all positions
  downwards        from the coarsest to the finest: upsample by 2, concatenate with the next finer map, fuse
  upwards          from the finest to the coarsest: downsample by 2, concatenate with the next coarser map, fuse
"""

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.typing import DTypeLike
from jaxtyping import Array, Float

from vitpose_jax.rtdetr.config import DetectorConfig
from vitpose_jax.rtdetr.layers import ConvNorm, Mlp, SelfAttention, layer_norm
from vitpose_jax.vitpose import ops

NUM_FUSION_BLOCKS = 3


class EncoderLayer(nnx.Module):
    """Attention and an MLP, each with a residual connection and a LayerNorm before or after it."""

    def __init__(self, config: DetectorConfig, *, dtype: DTypeLike, param_dtype: DTypeLike, rngs: nnx.Rngs):
        kwargs = {"dtype": dtype, "param_dtype": param_dtype, "rngs": rngs}
        features = config.encoder_hidden_size
        self.attention = SelfAttention(features, config.encoder_heads, **kwargs)
        self.norm1 = layer_norm(features, config.layer_norm_eps, dtype=dtype, rngs=rngs)
        self.mlp = Mlp((features, config.encoder_ffn_size, features), act=config.encoder_act, **kwargs)
        self.norm2 = layer_norm(features, config.layer_norm_eps, dtype=dtype, rngs=rngs)
        self.normalize_before = config.normalize_before

    def __call__(
        self, tokens: Float[Array, "n tokens dim"], positions: Float[Array, "tokens dim"]
    ) -> Float[Array, "n tokens dim"]:
        if self.normalize_before:
            tokens = tokens + self.attention(self.norm1(tokens), positions)
            # As in transformers, the MLP's output is added to the normalised tokens.
            tokens = self.norm2(tokens)
            return tokens + self.mlp(tokens)
        tokens = self.norm1(tokens + self.attention(tokens, positions))
        return self.norm2(tokens + self.mlp(tokens))


class RepBlock(nnx.Module):
    """The sum of a 3x3 and a 1x1 convolution of the same input."""

    def __init__(self, config: DetectorConfig, **kwargs):
        size = config.expanded_size
        self.conv1 = ConvNorm(size, size, 3, epsilon=config.batch_norm_eps, **kwargs)
        self.conv2 = ConvNorm(size, size, 1, epsilon=config.batch_norm_eps, **kwargs)
        self.act = ops.activation(config.fusion_act)

    def __call__(self, x: Float[Array, "n height width features"]) -> Float[Array, "n height width features"]:
        return self.act(self.conv1(x) + self.conv2(x))


class Fusion(nnx.Module):
    """Fuses two feature maps into one: concatenated, they pass through `RepBlock`s, with a branch around these."""

    def __init__(self, config: DetectorConfig, **kwargs):
        features, size = config.encoder_hidden_size, config.expanded_size
        norm = {"act": config.fusion_act, "epsilon": config.batch_norm_eps}
        self.conv1 = ConvNorm(2 * features, size, 1, **norm, **kwargs)
        self.conv2 = ConvNorm(2 * features, size, 1, **norm, **kwargs)
        self.blocks = nnx.List([RepBlock(config, **kwargs) for _ in range(NUM_FUSION_BLOCKS)])
        if size != features:
            self.conv3 = ConvNorm(size, features, 1, **norm, **kwargs)
        self.reduced = size != features

    def __call__(
        self, first: Float[Array, "n height width features"], second: Float[Array, "n height width features"]
    ) -> Float[Array, "n height width features"]:
        both = jnp.concatenate([first, second], axis=-1)
        x = self.conv1(both)
        for block in self.blocks:
            x = block(x)
        x = x + self.conv2(both)
        return self.conv3(x) if self.reduced else x


class HybridEncoder(nnx.Module):
    """The encoder; see the top of this file."""

    def __init__(self, config: DetectorConfig, *, dtype: DTypeLike, param_dtype: DTypeLike, rngs: nnx.Rngs):
        kwargs = {"dtype": dtype, "param_dtype": param_dtype, "rngs": rngs}
        features = config.encoder_hidden_size
        norm = {"act": config.fusion_act, "epsilon": config.batch_norm_eps}
        neighbours = range(len(config.out_indices) - 1)
        self.project = nnx.List(
            [ConvNorm(config.hidden_sizes[index - 1], features, 1, **kwargs) for index in config.out_indices]
        )
        self.transformers = nnx.List(
            [
                nnx.List([EncoderLayer(config, **kwargs) for _ in range(config.encoder_layers)])
                for _ in config.encoder_levels
            ]
        )
        self.lateral = nnx.List([ConvNorm(features, features, 1, **norm, **kwargs) for _ in neighbours])
        self.downwards = nnx.List([Fusion(config, **kwargs) for _ in neighbours])
        self.halve = nnx.List([ConvNorm(features, features, 3, stride=2, **norm, **kwargs) for _ in neighbours])
        self.upwards = nnx.List([Fusion(config, **kwargs) for _ in neighbours])
        self.encoder_levels, self.temperature = config.encoder_levels, config.temperature

    def __call__(
        self, feature_maps: tuple[Float[Array, "n _rows _columns _features"], ...]
    ) -> tuple[Float[Array, "n _rows _columns dim"], ...]:
        """One feature map for each input, the finest first."""
        maps = [project(x) for project, x in zip(self.project, feature_maps, strict=True)]
        for level, layers in zip(self.encoder_levels, self.transformers, strict=True):
            _, height, width, dim = maps[level].shape
            tokens = jax.lax.collapse(maps[level], 1, 3)
            positions = sine_positions(height, width, dim, self.temperature)
            for layer in layers:
                tokens = layer(tokens, jnp.asarray(positions))
            maps[level] = tokens.reshape(-1, height, width, dim)
        coarse, *finer = reversed(maps)
        downwards = []
        for lateral, fuse, fine in zip(self.lateral, self.downwards, finer, strict=True):
            coarse = lateral(coarse)
            downwards.append(coarse)
            coarse = fuse(coarse.repeat(2, axis=1).repeat(2, axis=2), fine)
        result = [coarse]
        for halve, fuse, coarse in zip(self.halve, self.upwards, reversed(downwards), strict=True):
            result.append(fuse(halve(result[-1]), coarse))
        return tuple(result)


def sine_positions(height: int, width: int, dim: int, temperature: int | float) -> Float[np.ndarray, "tokens dim"]:
    """A code for each position of a feature map, row by row: sines and cosines of its row, then of its column."""
    frequencies = 1 / temperature ** (np.arange(dim // 4) / (dim // 4))
    row, column = np.divmod(np.arange(height * width), width)
    angles = (index[:, None] * frequencies for index in (row, column))
    return np.concatenate([wave(angle) for angle in angles for wave in (np.sin, np.cos)], axis=1).astype(np.float32)
