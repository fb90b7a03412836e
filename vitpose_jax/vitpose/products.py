"""Matrix products in bfloat16, in the form that XLA computes fastest on CPUs.

XLA uses a processor's own bfloat16 products (avx512_bf16, amx_bf16) for results in float32. For results in bfloat16 it
widens both arrays to float32 first, which is two to three times slower. So on CPUs a product is added up in float32 and
rounded once. The gradient's products round the cotangent first, for the same reason. Other platforms, and other dtypes,
get the plain product. Measurements are in benchmarks/README.md.
"""

import functools
from typing import Any

import jax
import jax.numpy as jnp
from jax.ad_checkpoint import checkpoint_name
from jax.typing import DTypeLike
from jaxtyping import Array, Float

# The name of the results of `dot_general`, for `jax.checkpoint`.
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
    rows, columns = (a, cotangent) if b.ndim > 2 else (x.reshape(-1, x.shape[-1]) for x in (a, cotangent))
    return (
        _matmul(cotangent, b.swapaxes(-1, -2), jnp.dtype(a.dtype)),
        _matmul(rows.swapaxes(-1, -2), columns, jnp.dtype(b.dtype)),
    )


_matmul.defvjp(_matmul_forward, _matmul_backward)


def dot_general(x: Float[Array, "*n inner"], kernel: Float[Array, "inner columns"], *args: Any, **kwargs: Any) -> Array:
    """The product of an `nnx.Linear`; its `dot_general` argument."""
    if x.dtype != jnp.bfloat16:
        return jax.lax.dot_general(x, kernel, *args, **kwargs)
    return checkpoint_name(matmul(x, kernel), LINEAR)
