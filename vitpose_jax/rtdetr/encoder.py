"""The hybrid encoder: attention inside the coarsest feature map, convolutions between neighbouring ones.

feature maps       each sent to `encoder_hidden_size` channels
  Transformer      on those of `encoder_levels`: every place sees every other
  downwards        from the coarsest to the finest: enlarge, join with the next finer, fuse
  upwards          and back: halve, join with the next coarser, fuse
"""

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.typing import DTypeLike
from jaxtyping import Array, Float

from vitpose_jax.rtdetr.config import DetectorConfig
from vitpose_jax.rtdetr.layers import ACTIVATIONS, ConvNorm, Mlp, SelfAttention, layer_norm

NUM_FUSION_BLOCKS = 3


class EncoderLayer(nnx.Module):
    """Attention and an MLP, each added to its input and normalised, before or after."""

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
            # As in the reference, what is normalised is also what the MLP's output is added to.
            tokens = self.norm2(tokens)
            return tokens + self.mlp(tokens)
        tokens = self.norm1(tokens + self.attention(tokens, positions))
        return self.norm2(tokens + self.mlp(tokens))


class RepBlock(nnx.Module):
    """A 3x3 and a 1x1 convolution side by side, added."""

    def __init__(self, config: DetectorConfig, **kwargs):
        size = config.expanded_size
        self.conv1 = ConvNorm(size, size, 3, epsilon=config.batch_norm_eps, **kwargs)
        self.conv2 = ConvNorm(size, size, 1, epsilon=config.batch_norm_eps, **kwargs)
        self.act = ACTIVATIONS[config.fusion_act]

    def __call__(self, x: Float[Array, "n height width features"]) -> Float[Array, "n height width features"]:
        return self.act(self.conv1(x) + self.conv2(x))


class Fusion(nnx.Module):
    """Two joined feature maps become one: a branch through `RepBlock`s, a branch past them."""

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
        self, one: Float[Array, "n height width features"], other: Float[Array, "n height width features"]
    ) -> Float[Array, "n height width features"]:
        joined = jnp.concatenate([one, other], axis=-1)
        x = self.conv1(joined)
        for block in self.blocks:
            x = block(x)
        x = x + self.conv2(joined)
        return self.conv3(x) if self.reduced else x


class HybridEncoder(nnx.Module):
    """The encoder; see the top of this file."""

    def __init__(self, config: DetectorConfig, *, dtype: DTypeLike, param_dtype: DTypeLike, rngs: nnx.Rngs):
        kwargs = {"dtype": dtype, "param_dtype": param_dtype, "rngs": rngs}
        features = config.encoder_hidden_size
        norm = {"act": config.fusion_act, "epsilon": config.batch_norm_eps}
        steps = range(len(config.out_indices) - 1)
        self.project = nnx.List(
            [ConvNorm(config.hidden_sizes[index - 1], features, 1, **kwargs) for index in config.out_indices]
        )
        self.transformers = nnx.List(
            [
                nnx.List([EncoderLayer(config, **kwargs) for _ in range(config.encoder_layers)])
                for _ in config.encoder_levels
            ]
        )
        self.lateral = nnx.List([ConvNorm(features, features, 1, **norm, **kwargs) for _ in steps])
        self.downwards = nnx.List([Fusion(config, **kwargs) for _ in steps])
        self.halve = nnx.List([ConvNorm(features, features, 3, stride=2, **norm, **kwargs) for _ in steps])
        self.upwards = nnx.List([Fusion(config, **kwargs) for _ in steps])
        self.encoder_levels, self.temperature = config.encoder_levels, config.temperature

    def __call__(
        self, feature_maps: tuple[Float[Array, "n _rows _columns _features"], ...]
    ) -> tuple[Float[Array, "n _rows _columns dim"], ...]:
        """As many feature maps as come in, the finest first."""
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
    """A code for every place of a feature map, row by row: sines and cosines of its row, then of its column."""
    frequencies = 1 / temperature ** (np.arange(dim // 4) / (dim // 4))
    row, column = np.divmod(np.arange(height * width), width)
    angles = (place[:, None] * frequencies for place in (row, column))
    return np.concatenate([wave(angle) for angle in angles for wave in (np.sin, np.cos)], axis=1).astype(np.float32)
