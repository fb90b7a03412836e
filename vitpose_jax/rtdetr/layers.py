"""Layers that backbone, encoder and decoder share."""

import itertools

import jax
import jax.numpy as jnp
from flax import nnx
from jax.typing import DTypeLike
from jaxtyping import Array, Float

from vitpose_jax.vitpose import ops


class FrozenBatchNorm(nnx.Module):
    """BatchNorm with its running statistics, which are never updated: a factor and a shift for each channel."""

    def __init__(self, features: int, *, epsilon: int | float, dtype: DTypeLike):
        self.scale = nnx.Param(jnp.ones(features, jnp.float32))
        self.bias = nnx.Param(jnp.zeros(features, jnp.float32))
        self.mean = nnx.BatchStat(jnp.zeros(features, jnp.float32))
        self.var = nnx.BatchStat(jnp.ones(features, jnp.float32))
        self.epsilon, self.dtype = epsilon, dtype

    def __call__(self, x: Float[Array, "*rows features"]) -> Float[Array, "*rows features"]:
        factor = self.scale[...] * jax.lax.rsqrt(self.var[...] + self.epsilon)
        shift = self.bias[...] - self.mean[...] * factor
        return (x.astype(jnp.float32) * factor + shift).astype(self.dtype)


class ConvNorm(nnx.Module):
    """A convolution without bias, a `FrozenBatchNorm`, and an activation or None."""

    def __init__(
        self,
        features_in: int,
        features: int,
        size: int,
        *,
        stride: int = 1,
        act: str | None = None,
        epsilon: int | float = 1e-5,
        dtype: DTypeLike,
        param_dtype: DTypeLike,
        rngs: nnx.Rngs,
    ):
        # Explicit padding: with stride 2, "SAME" would pad on the other side.
        self.conv = nnx.Conv(
            features_in,
            features,
            (size, size),
            strides=stride,
            padding=[(size // 2, size // 2)] * 2,
            use_bias=False,
            dtype=dtype,
            param_dtype=param_dtype,
            rngs=rngs,
        )
        self.norm = FrozenBatchNorm(features, epsilon=epsilon, dtype=dtype)
        self.act = None if act is None else ops.activation(act)

    def __call__(self, x: Float[Array, "n height width features_in"]) -> Float[Array, "n rows columns features"]:
        x = self.norm(self.conv(x))
        return x if self.act is None else self.act(x)


class Mlp(nnx.Module):
    """Linear layers with an activation between them."""

    def __init__(self, sizes: tuple[int, ...], *, act: str, dtype: DTypeLike, param_dtype: DTypeLike, rngs: nnx.Rngs):
        kwargs = {"dtype": dtype, "param_dtype": param_dtype, "rngs": rngs}
        self.layers = nnx.List([nnx.Linear(*pair, **kwargs) for pair in itertools.pairwise(sizes)])
        self.act = ops.activation(act)

    def __call__(self, x: Float[Array, "*rows features_in"]) -> Float[Array, "*rows features"]:
        *inner, last = self.layers
        for layer in inner:
            x = self.act(layer(x))
        return last(x)


class SelfAttention(nnx.Module):
    """Multi-head self-attention. Positions are added to the input of queries and keys, but not of values."""

    def __init__(self, features: int, num_heads: int, *, dtype: DTypeLike, param_dtype: DTypeLike, rngs: nnx.Rngs):
        kwargs = {"dtype": dtype, "param_dtype": param_dtype, "rngs": rngs}
        self.query = nnx.Linear(features, features, **kwargs)
        self.key = nnx.Linear(features, features, **kwargs)
        self.value = nnx.Linear(features, features, **kwargs)
        self.proj = nnx.Linear(features, features, **kwargs)
        self.num_heads = num_heads

    def __call__(
        self, tokens: Float[Array, "n tokens dim"], positions: Float[Array, "*n tokens dim"]
    ) -> Float[Array, "n tokens dim"]:
        n, length, dim = tokens.shape
        with_positions = tokens + positions.astype(tokens.dtype)
        parts = self.query(with_positions), self.key(with_positions), self.value(tokens)
        query, key, value = (x.reshape(n, length, self.num_heads, -1).transpose(0, 2, 1, 3) for x in parts)
        logits = jnp.matmul(query, key.swapaxes(-1, -2), preferred_element_type=jnp.float32)
        weights = jax.nn.softmax(logits * (dim // self.num_heads) ** -0.5).astype(tokens.dtype)
        return self.proj((weights @ value).transpose(0, 2, 1, 3).reshape(n, length, dim))


def layer_norm(features: int, epsilon: int | float, *, dtype: DTypeLike, rngs: nnx.Rngs) -> nnx.LayerNorm:
    """LayerNorm with the exact variance; the fast one loses digits when the mean is large."""
    return nnx.LayerNorm(features, epsilon=epsilon, use_fast_variance=False, dtype=dtype, rngs=rngs)
