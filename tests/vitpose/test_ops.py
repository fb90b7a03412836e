"""The forms of ops.py for each platform, against each other and against torch, and their derivatives."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.tolerances import BFLOAT16_ROUNDING, BLOCK, FLOAT16_ROUNDING, FLOAT32, LOSSES
from vitpose_jax.vitpose import ops

FORMS = {
    "tpu": ops._dilated,
    "gpu": functools.partial(ops._by_parity, convolve=ops._conv2x2),
    "derivative on a cpu": functools.partial(ops._by_parity, convolve=ops._product2x2),
}


def random(*shape: int, seed: int = 0) -> jax.Array:
    return jnp.asarray(np.random.default_rng(seed).normal(size=shape).astype(np.float32))


@given(
    n=st.integers(1, 3),
    height=st.integers(1, 7),
    width=st.integers(1, 7),
    features_in=st.integers(1, 5),
    features=st.integers(1, 5),
)
@settings(max_examples=15)
def test_each_form_of_the_deconvolution_equals_torch(n, height, width, features_in, features):
    x, kernel = random(n, height, width, features_in), random(4, 4, features_in, features, seed=1)
    kernel *= (4 * features_in) ** -0.5
    # (in, out, rows, columns), and not flipped.
    weight = torch.from_numpy(np.array(kernel[::-1, ::-1].transpose(2, 3, 0, 1)))
    expected = torch.nn.functional.conv_transpose2d(
        torch.from_numpy(np.array(x)).permute(0, 3, 1, 2), weight, stride=2, padding=1
    )
    for name, form in FORMS.items():
        np.testing.assert_allclose(form(x, kernel), expected.permute(0, 2, 3, 1), rtol=0, atol=BLOCK, err_msg=name)


@pytest.mark.parametrize("form", FORMS.values(), ids=FORMS)
def test_derivatives_of_all_forms_of_the_deconvolution_are_equal(form):
    x, kernel, weights = random(2, 5, 3, 6), 0.2 * random(4, 4, 6, 7, seed=1), random(2, 10, 6, 7, seed=2)

    def loss(deconv):
        return lambda x, kernel: jnp.sum(weights * deconv(x, kernel) ** 2)

    expected = jax.jit(jax.grad(loss(form), (0, 1)))(x, kernel)
    output = jax.jit(jax.grad(loss(ops.deconv), (0, 1)))(x, kernel)
    for ours, reference in zip(output, expected, strict=True):
        np.testing.assert_allclose(ours, reference, rtol=0, atol=FLOAT32 * np.abs(reference).max())
    tangents = random(2, 5, 3, 6, seed=3), random(4, 4, 6, 7, seed=4)
    _, forward = jax.jvp(loss(ops.deconv), (x, kernel), tangents)
    by_gradient = sum(jnp.vdot(gradient, tangent) for gradient, tangent in zip(expected, tangents, strict=True))
    np.testing.assert_allclose(forward, by_gradient, rtol=LOSSES)


@pytest.mark.parametrize(("platform", "dilated"), [("cpu", False), ("cuda", False), ("tpu", True)])
def test_each_platform_compiles_its_form_of_the_deconvolution(platform, dilated):
    arguments = jax.ShapeDtypeStruct((2, 5, 3, 6), jnp.float32), jax.ShapeDtypeStruct((4, 4, 6, 7), jnp.float32)
    program = jax.jit(ops.deconv).trace(*arguments).lower(lowering_platforms=(platform,)).as_text()
    assert program.count("stablehlo.convolution") == 1
    assert ("lhs_dilate = [2, 2]" in program) == dilated


@pytest.mark.parametrize(
    ("dtype", "bound"),
    [(jnp.float32, FLOAT32), (jnp.bfloat16, BFLOAT16_ROUNDING), (jnp.float16, FLOAT16_ROUNDING)],
    ids=["f32", "bf16", "f16"],
)
def test_gelu_and_its_derivative_equal_torch(dtype, bound):
    x = jnp.asarray(np.r_[np.linspace(-9, 9, 4001), -200, 200], dtype)
    wide = torch.from_numpy(np.array(x.astype(jnp.float32))).double().requires_grad_()
    expected = torch.nn.functional.gelu(wide)
    expected.sum().backward()
    expected = expected.detach().numpy()
    slopes = jax.grad(lambda x: jnp.sum(ops.gelu(x).astype(jnp.float32)))(x)
    output = ops.gelu(x)
    assert output.dtype == slopes.dtype == dtype
    # Only the last rounding is lost: half a unit in the last place, plus float32's own error.
    assert np.all(np.abs(np.asarray(output, np.float64) - expected) <= FLOAT32 + bound * np.abs(expected))
    np.testing.assert_allclose(np.asarray(slopes, np.float64), wide.grad.numpy(), rtol=bound, atol=FLOAT32)


def test_the_gradient_of_gelu_stores_one_array_in_the_input_dtype():
    _, pullback = jax.vjp(ops.gelu, jnp.ones((64, 64), jnp.bfloat16))
    residuals = [leaf for leaf in jax.tree.leaves(pullback) if leaf.size > 1]
    assert [(leaf.shape, leaf.dtype) for leaf in residuals] == [((64, 64), jnp.bfloat16)]


@given(
    grid=st.tuples(st.integers(1, 3), st.integers(1, 3)),
    size=st.tuples(st.integers(3, 6), st.integers(3, 6)),
    over=st.tuples(st.integers(0, 2), st.integers(0, 2)),
    padding=st.integers(0, 2),
)
@settings(max_examples=25)
def test_patches_times_kernel_equal_a_convolution_in_torch(grid, size, over, padding):
    # over: pixels at the bottom and right border that no whole patch covers.
    sides = [max(1, n * length - 2 * padding + more) for n, length, more in zip(grid, size, over, strict=True)]
    grid = tuple((side + 2 * padding - length) // length + 1 for side, length in zip(sides, size, strict=True))
    x, kernel = random(2, *sides, 3), random(*size, 3, 5, seed=1) / np.sqrt(3 * np.prod(size))
    expected = torch.nn.functional.conv2d(
        torch.from_numpy(np.array(x)).permute(0, 3, 1, 2),
        torch.from_numpy(np.array(kernel)).permute(3, 2, 0, 1),
        stride=size,
        padding=padding,
    )
    output = ops.cut_patches(x, size, grid, padding) @ jax.lax.collapse(kernel, 0, 3)
    np.testing.assert_allclose(output, expected.flatten(2).permute(0, 2, 1), rtol=0, atol=BLOCK)
