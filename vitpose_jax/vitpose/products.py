"""Matrix products in bfloat16, in the form that XLA computes fastest on CPUs.

XLA uses a processor's own bfloat16 products (avx512_bf16, amx_bf16) for results in float32. For results in bfloat16 it
widens both arrays to float32 first, which is two to three times slower. So on CPUs a product is added up in float32 and
rounded once. The gradient's products round the cotangent first, for the same reason. Other platforms, and other dtypes,
get the plain product. Measurements are in benchmarks/README.md.
"""

import functools

import jax
import jax.numpy as jnp
from flax import nnx
from jax.ad_checkpoint import checkpoint_name
from jax.typing import DTypeLike
from jaxtyping import Array, Float

# The name of the results of `linear`, for `jax.checkpoint`.
LINEAR = "linear"


def matmul(
    a: Float[Array, "*n rows inner"], b: Float[Array, "*m inner columns"], dtype: DTypeLike | None = None
) -> Float[Array, "*n rows columns"]:
    """The matrix product of two arrays of one dtype.

    Args:
        a: one or more matrices.
        b: as many, or one for all of `a`.
        dtype: of the result; None means that of `a`.
    """
    dtype = jnp.dtype(a.dtype if dtype is None else dtype)
    if a.dtype != jnp.bfloat16:
        return jnp.matmul(a, b, preferred_element_type=dtype)
    return _matmul(a, b, dtype)


@functools.partial(jax.custom_vjp, nondiff_argnums=(2,))
def _matmul(a: Array, b: Array, dtype: jnp.dtype) -> Array:
    wide = functools.partial(jnp.matmul, preferred_element_type=jnp.float32)
    return jax.lax.platform_dependent(
        a,
        b,
        cpu=lambda a, b: wide(a, b).astype(dtype),
        default=functools.partial(jnp.matmul, preferred_element_type=dtype),
    )


def _matmul_forward(a: Array, b: Array, dtype: jnp.dtype) -> tuple[Array, tuple[Array, Array]]:
    return _matmul(a, b, dtype), (a, b)


def _matmul_backward(dtype: jnp.dtype, saved: tuple[Array, Array], cotangent: Array) -> tuple[Array, Array]:
    (a, b), cotangent = saved, cotangent.astype(jnp.bfloat16)
    rows, columns = (a, cotangent) if b.ndim > 2 else map(_flat, (a, cotangent))
    return _times_transposed(cotangent, b), _transposed_times(rows, columns)[0]


_matmul.defvjp(_matmul_forward, _matmul_backward)


@jax.custom_vjp
def _linear(x: Array, kernel: Array, bias: Array) -> Array:
    return matmul(x, kernel) + bias


def _linear_forward(x: Array, kernel: Array, bias: Array) -> tuple[Array, tuple[Array, Array]]:
    return _linear(x, kernel, bias), (x, kernel)


def _linear_backward(saved: tuple[Array, Array], cotangent: Array) -> tuple[Array, Array, Array]:
    x, kernel = saved
    return _times_transposed(cotangent, kernel), *_transposed_times(_flat(x), _flat(cotangent))


_linear.defvjp(_linear_forward, _linear_backward)


def _flat(x: Array) -> Array:
    return x.reshape(-1, x.shape[-1])


def _times_transposed(a: Array, b: Array) -> Array:
    """a b^T; the batch axes of `b` are those of `a`, or none."""
    batch = tuple(range(b.ndim - 2))
    product = functools.partial(jax.lax.dot_general, dimension_numbers=(((a.ndim - 1,), (b.ndim - 1,)), (batch, batch)))
    return jax.lax.platform_dependent(
        a,
        b,
        cpu=lambda a, b: product(a, b, preferred_element_type=jnp.float32).astype(a.dtype),
        default=lambda a, b: product(a, b, preferred_element_type=a.dtype),
    )


def _transposed_times(a: Array, b: Array) -> tuple[Array, Array]:
    """a^T b, of as many matrices each, and the sum of the rows of `b`."""

    def cpu(a: Array, b: Array) -> tuple[Array, Array]:
        # A row of ones below a^T makes the sum, and makes XLA write a^T to memory. Otherwise it would hand `a` to the
        # product as it is, to be read column by column: and for that it widens both arrays.
        ones = jnp.ones((*a.shape[:-2], 1, a.shape[-2]), a.dtype)
        rows = jnp.concatenate([a.swapaxes(-1, -2), ones], axis=-2)
        product = jnp.matmul(rows, b, preferred_element_type=jnp.float32).astype(b.dtype)
        return product[..., :-1, :], product[..., -1, :]

    def default(a: Array, b: Array) -> tuple[Array, Array]:
        product = jnp.matmul(a.swapaxes(-1, -2), b, preferred_element_type=b.dtype)
        return product, b.sum(-2, dtype=jnp.float32).astype(b.dtype)

    return jax.lax.platform_dependent(a, b, cpu=cpu, default=default)


class Linear(nnx.Linear):
    """An `nnx.Linear` that computes in bfloat16 as this file does."""

    def __call__(self, inputs: Float[Array, "*n inner"], out_sharding: None = None) -> Float[Array, "*n columns"]:
        """The linear transformation of the last axis."""
        bias = None if self.bias is None else self.bias[...]
        x, kernel, bias = self.promote_dtype((inputs, self.kernel[...], bias), dtype=self.dtype)
        return linear(x, kernel, bias)


def linear(
    x: Float[Array, "*n inner"], kernel: Float[Array, "inner columns"], bias: Float[Array, " columns"] | None
) -> Float[Array, "*n columns"]:
    """x kernel + bias, all of one dtype."""
    if x.dtype != jnp.bfloat16:
        y = jax.lax.dot_general(x, kernel, (((x.ndim - 1,), (0,)), ((), ())))  # by the name that qwix replaces
        return y if bias is None else y + bias
    return checkpoint_name(matmul(x, kernel) if bias is None else _linear(x, kernel, bias), LINEAR)
