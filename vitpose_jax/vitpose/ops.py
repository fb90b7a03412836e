"""GELU, transposed convolution and patches in the form that XLA compiles best; measurements in benchmarks/README.md."""

import functools
import math
from collections.abc import Callable
from pathlib import Path
from typing import Literal

import jax
import jax.numpy as jnp
from jax.typing import DTypeLike
from jaxtyping import Array, Float

from vitpose_jax.vitpose import products


@jax.custom_jvp
def gelu(x: Float[Array, "..."]) -> Float[Array, "..."]:
    """The exact GELU, x times the cumulative normal distribution. Computed in float32, as in torch.

    It uses `erf`. `jax.nn.gelu` uses `erfc`, which costs accelerators a second pass over the hidden layer. For the
    gradient it stores a single array, the derivative, in the dtype of `x`.
    """
    wide = x.astype(jnp.float32)
    return (wide * _normal_cdf(wide)).astype(x.dtype)


@gelu.defjvp
def _gelu_jvp(primals: tuple[Array], tangents: tuple[Array]) -> tuple[Array, Array]:
    (x,), (tangent,) = primals, tangents
    wide = x.astype(jnp.float32)
    slope = _normal_cdf(wide) + wide * jnp.exp(-0.5 * wide**2) / math.sqrt(2 * math.pi)
    return gelu(x), slope.astype(x.dtype) * tangent


def _normal_cdf(x: Float[Array, "..."]) -> Float[Array, "..."]:
    return 0.5 * (1 + jax.lax.erf(x / math.sqrt(2)))


_ACTIVATIONS = {
    "gelu": gelu,
    "gelu_tanh": lambda x: jax.nn.gelu(x, approximate=True),
    "relu": jax.nn.relu,
    "silu": jax.nn.silu,
}


def activation(name: str) -> Callable[[Array], Array]:
    """The activation function of a name in `vitpose.config.ACTIVATIONS` or `rtdetr.config.DETECTOR_ACTIVATIONS`."""
    return _ACTIVATIONS[name]


def deconv(
    x: Float[Array, "n height width features_in"], kernel: Float[Array, "4 4 features_in features"]
) -> Float[Array, "n 2*height 2*width features"]:
    """A transposed convolution, 4x4, stride 2, padding 1, like torch's ConvTranspose2d. It doubles height and width.

    There are three equal forms. TPUs convolve over the dilated input and skip the zeros between its pixels. CPUs and
    GPUs would multiply these zeros; they convolve with 2x2 kernels instead, one for each parity of the output's rows
    and columns. On CPUs the derivative is a matrix product: XLA's own gradient of a convolution kernel is 100 times
    slower there.

    Args:
        x: features.
        kernel: flipped in height and width, as the convolution over the dilated input reads it.
    """
    # In bfloat16, CPUs compute products faster than convolutions.
    return _by_platform(x, kernel, cpu=_product2x2) if x.dtype == jnp.bfloat16 else _deconv(x, kernel)


@jax.custom_jvp
def _deconv(x: Array, kernel: Array) -> Array:
    return _by_platform(x, kernel, cpu=_conv2x2)


@_deconv.defjvp
def _deconv_jvp(primals: tuple[Array, Array], tangents: tuple[Array, Array]) -> tuple[Array, Array]:
    (x, kernel), (x_tangent, kernel_tangent) = primals, tangents
    tangent = _by_platform(x_tangent, kernel, cpu=_product2x2)
    return _deconv(x, kernel), tangent + _by_platform(x, kernel_tangent, cpu=_product2x2)


def _by_platform(x: Array, kernel: Array, *, cpu: Callable[[Array, Array], Array]) -> Array:
    forms = {"cpu": functools.partial(_by_parity, convolve=cpu), "tpu": _dilated}
    return jax.lax.platform_dependent(x, kernel, **forms, default=functools.partial(_by_parity, convolve=_conv2x2))


def _dilated(x: Array, kernel: Array) -> Array:
    return jax.lax.conv_general_dilated(
        x, kernel, (1, 1), ((2, 2), (2, 2)), lhs_dilation=(2, 2), dimension_numbers=("NHWC", "HWIO", "NHWC")
    )


def _by_parity(x: Array, kernel: Array, convolve: Callable[[Array, Array], Array]) -> Array:
    """One 2x2 convolution computes all four parities of the output; then they are interleaved.

    Each output pixel uses only the four kernel taps of its own parity, so nothing is multiplied by an inserted zero.
    """
    return _interleave(convolve(x, parity_kernel(kernel)))


def parity_kernel(
    kernel: Float[Array, "4 4 features_in features"],
) -> Float[Array, "2 2 features_in 4*features"]:
    """The kernel of the convolution that computes the parities of a `deconv`."""
    features_in, features = kernel.shape[2:]
    # Kernel rows 0 and 2 make the even output rows, from input rows i - 1 and i. Kernel rows 1 and 3 make the odd ones,
    # from input rows i and i + 1. The same holds for columns.
    kernel = kernel.reshape(2, 2, 2, 2, features_in, features)
    kernel = kernel.transpose(0, 2, 4, 1, 3, 5)  # (tap row, tap column, in, row parity, column parity, out)
    return kernel.reshape(2, 2, features_in, 4 * features)


def deconv_by_parity(
    x: Float[Array, "n height width features_in"], kernel: Float[Array, "2 2 features_in features_4"]
) -> Float[Array, "n 2*height 2*width features"]:
    """`deconv` as CPUs compute it, with a `parity_kernel` that was made before."""
    return _interleave((_product2x2 if x.dtype == jnp.bfloat16 else _conv2x2)(x, kernel))


def _interleave(parities: Array) -> Array:
    n, height, width, features = parities.shape
    height, width, features = height - 1, width - 1, features // 4
    parities = parities.reshape(n, height + 1, width + 1, 2, 2, features)
    rows = jnp.stack([parities[:, :-1, :, 0], parities[:, 1:, :, 1]], axis=2)
    pixels = jnp.stack([rows[:, :, :, :-1, 0], rows[:, :, :, 1:, 1]], axis=4)
    return pixels.reshape(n, 2 * height, 2 * width, features)


def _conv2x2(
    x: Float[Array, "n height width features_in"], kernel: Float[Array, "2 2 features_in features"]
) -> Float[Array, "n height+1 width+1 features"]:
    return jax.lax.conv_general_dilated(x, kernel, (1, 1), ((1, 1), (1, 1)), dimension_numbers=("NHWC", "HWIO", "NHWC"))


def _product2x2(
    x: Float[Array, "n height width features_in"], kernel: Float[Array, "2 2 features_in features"]
) -> Float[Array, "n height+1 width+1 features"]:
    padded = jnp.pad(x, ((0, 0), (1, 1), (1, 1), (0, 0)))
    rows = jnp.concatenate([padded[:, :, :-1], padded[:, :, 1:]], axis=-1)
    return products.matmul(jnp.concatenate([rows[:, :-1], rows[:, 1:]], axis=-1), jax.lax.collapse(kernel, 0, 3))


def cut_patches(
    crops: Float[Array, "n height width channels"], size: tuple[int, int], grid: tuple[int, int], padding: int
) -> Float[Array, "n tokens features"]:
    """The pixels of each patch as one row: the input of a convolution whose stride is its kernel size.

    Args:
        crops: images.
        size: height and width of a patch, in pixels.
        grid: rows and columns of patches.
        padding: pixels of zeros above and to the left. Below and to the right, zeros are added or pixels cut off until
            the grid fits.
    """
    n, *sides, channels = crops.shape
    (rows, columns), (height, width) = grid, size
    below, right = (count * length - padding - side for count, length, side in zip(grid, size, sides, strict=True))
    padded = jax.lax.pad(
        crops, jnp.zeros((), crops.dtype), ((0, 0, 0), (padding, below, 0), (padding, right, 0), (0, 0, 0))
    )
    patches = padded.reshape(n, rows, height, columns, width, channels).transpose(0, 1, 3, 2, 4, 5)
    return patches.reshape(n, rows * columns, height * width * channels)


def check_dtype(dtype: DTypeLike, name: str = "dtype") -> None:
    """Check that networks compute, or are stored, in this dtype.

    Raises:
        ValueError: for anything but float32, bfloat16 and float16. JAX computes in float64 only where it is enabled,
            and silently in float32 elsewhere.
    """
    try:
        known = jnp.dtype(dtype) in map(jnp.dtype, (jnp.float32, jnp.bfloat16, jnp.float16))
    except TypeError:
        known = False
    if not known:
        raise ValueError(f"{name}: expected float32, bfloat16 or float16, got {getattr(dtype, '__name__', dtype)}")


def choose_dtype(dtype: DTypeLike | Literal["auto"]) -> DTypeLike:
    """The dtype of a computation; "auto" is bfloat16 where this machine is faster with it, float32 elsewhere.

    Raises:
        ValueError: see `check_dtype`.
    """
    if isinstance(dtype, str) and dtype == "auto":
        return jnp.bfloat16 if jax.default_backend() != "cpu" or has_bfloat16_products() else jnp.float32
    check_dtype(dtype)
    return dtype


def choose_param_dtype(dtype: DTypeLike, param_dtype: DTypeLike | None) -> DTypeLike:
    """The dtype of stored parameters; by default that of the computation, but float32 for bfloat16 on CPUs.

    There XLA would widen all stacked bfloat16 parameters in every call, which takes longer than to round them. A
    `PoseEstimator` takes the blocks apart (prepared.py), and needs no exception.

    Raises:
        ValueError: see `check_dtype`.
    """
    if param_dtype is not None:
        check_dtype(param_dtype, "param_dtype")
        return param_dtype
    return jnp.float32 if jnp.dtype(dtype) == jnp.bfloat16 and jax.default_backend() == "cpu" else dtype


@functools.cache
def has_bfloat16_products() -> bool:
    """Whether the processor has instructions for them, as Linux says."""
    try:
        flags = Path("/proc/cpuinfo").read_text(errors="replace").split()
    except OSError:
        return False
    return not {"avx512_bf16", "amx_bf16"}.isdisjoint(flags)
