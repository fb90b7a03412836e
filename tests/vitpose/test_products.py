"""Products in bfloat16: what they compute, what they store for a gradient, and how a CPU computes them."""

import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from tests.support.models import TINY
from tests.tolerances import BFLOAT16_ROUNDING
from vitpose_jax import VitPoseConfig
from vitpose_jax.vitpose import ops, products
from vitpose_jax.vitpose.modeling import VitPose

CONFIG = VitPoseConfig(**TINY)
SHAPES = [((5, 8), (8, 3)), ((2, 5, 8), (8, 3)), ((2, 4, 5, 8), (8, 3)), ((2, 3, 5, 8), (2, 3, 8, 4))]


def arrays(shapes, dtype=jnp.bfloat16):
    rng = np.random.default_rng(0)
    return [jnp.asarray(rng.normal(size=shape), dtype) for shape in shapes]


def close(ours, exact):
    # A rounded sum, and rounded cotangents of it: two roundings, relative to the largest value.
    exact = np.asarray(exact, np.float64)
    tolerance = 2 * BFLOAT16_ROUNDING * np.abs(exact).max()
    np.testing.assert_allclose(np.asarray(ours, np.float64), exact, rtol=0, atol=tolerance)


@pytest.mark.parametrize("shapes", SHAPES)
@pytest.mark.parametrize("dtype", [None, jnp.float32])
def test_a_product_and_its_gradient_equal_those_in_float32(shapes, dtype):
    a, b = arrays(shapes)
    wide = [x.astype(jnp.float32) for x in (a, b)]
    (cotangent,) = arrays([(a @ b).shape], jnp.float32)
    ours, pull = jax.vjp(lambda a, b: products.matmul(a, b, dtype), a, b)
    assert ours.dtype == (dtype or jnp.bfloat16)
    with jax.default_matmul_precision("highest"):
        exact, exact_pull = jax.vjp(jnp.matmul, *wide)
        close(ours, exact)
        for mine, theirs in zip(pull(cotangent.astype(ours.dtype)), exact_pull(cotangent), strict=True):
            assert mine.dtype == jnp.bfloat16
            close(mine, theirs)


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.float16])
def test_other_dtypes_get_the_plain_product(dtype):
    a, b = arrays(SHAPES[1], dtype)
    (bias,) = arrays([b.shape[-1:]], dtype)
    np.testing.assert_array_equal(products.matmul(a, b), a @ b)
    np.testing.assert_array_equal(products.linear(a, b, bias), a @ b + bias)
    np.testing.assert_array_equal(products.linear(a, b, None), a @ b)
    jaxpr = str(jax.make_jaxpr(products.linear)(a, b, bias))
    assert "custom_vjp" not in jaxpr and "platform_index" not in jaxpr


@pytest.mark.parametrize("shapes", SHAPES[:3])
def test_a_linear_layer_and_its_gradient_equal_those_in_float32(shapes):
    a, b, bias = arrays([*shapes, shapes[1][-1:]])
    (cotangent,) = arrays([(a @ b).shape])
    ours, pull = jax.vjp(products.linear, a, b, bias)
    exact, exact_pull = jax.vjp(lambda a, b, bias: a @ b + bias, *(x.astype(jnp.float32) for x in (a, b, bias)))
    close(ours, exact)
    for mine, theirs in zip(pull(cotangent), exact_pull(cotangent.astype(jnp.float32)), strict=True):
        assert mine.dtype == jnp.bfloat16
        close(mine, theirs)


def dots(function, *arguments) -> list[str]:
    """The dtypes of the results of all products and convolutions in a program, as it is handed to XLA for CPUs."""
    text = jax.jit(function).trace(*arguments).lower(lowering_platforms=("cpu",)).as_text()
    return re.findall(r"stablehlo\.(?:dot_general|convolution).*-> tensor<(?:\d+x)*(\w+)>", text)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_on_cpus_all_products_of_the_network_are_added_up_in_float32(dtype):
    model = VitPose(CONFIG, dtype=jnp.dtype(dtype), rngs=nnx.Rngs(0))
    crops = jnp.zeros((2, *CONFIG.image_size, 3))
    assert set(dots(model, crops)) == {"f32"}
    assert set(dots(jax.grad(lambda x: model(x).astype(jnp.float32).sum()), crops)) == {"f32"}


def test_the_gradient_stores_the_outputs_of_linear_layers_in_every_dtype():
    crops = jnp.zeros((2, *CONFIG.image_size, 3))
    counts = []
    for dtype in (jnp.float32, jnp.bfloat16):
        graphdef, state = nnx.split(VitPose(CONFIG, dtype=dtype, rngs=nnx.Rngs(0)))
        loss = jax.grad(lambda state, g=graphdef: nnx.merge(g, state)(crops).astype(jnp.float32).sum())
        counts.append(len(dots(loss, state)))
    assert counts[0] == counts[1]


@pytest.mark.skipif(not ops.has_bfloat16_products(), reason="this processor has no products of bfloat16")
def test_a_cpu_computes_the_gradients_of_weights_in_bfloat16():
    # XLA for CPUs widens both arrays to float32 where the first is read column by column.
    graphdef, state = nnx.split(VitPose(CONFIG, dtype=jnp.bfloat16, rngs=nnx.Rngs(0)))
    crops = jnp.zeros((2, *CONFIG.image_size, 3))
    loss = jax.grad(lambda state: nnx.merge(graphdef, state)(crops).astype(jnp.float32).sum())
    text = jax.jit(loss).lower(state).compile().as_text()
    dtypes = dict(re.findall(r"(%[\w.-]+) = (\w+)\[", text))
    weights = re.findall(r"= f32\[\d{2,},\d{2,}\]\S* dot\((%[\w.-]+), (%[\w.-]+)\)", text)
    assert len(weights) > 10
    assert {dtypes[operand] for operands in weights for operand in operands} == {"bf16"}


def test_bfloat16_parameters_are_stored_in_float32_on_cpus(monkeypatch):
    assert ops.choose_param_dtype(jnp.bfloat16, None) == jnp.float32
    assert ops.choose_param_dtype(jnp.bfloat16, jnp.bfloat16) == jnp.bfloat16
    assert ops.choose_param_dtype(jnp.float16, None) == jnp.float16
    monkeypatch.setattr(jax, "default_backend", lambda: "gpu")
    assert ops.choose_param_dtype(jnp.bfloat16, None) == jnp.bfloat16
    assert ops.choose_dtype("auto") == jnp.bfloat16


@pytest.mark.parametrize(
    ("flags", "dtype"), [("sse avx512_bf16", jnp.bfloat16), ("amx_bf16", jnp.bfloat16), ("avx512f", jnp.float32)]
)
def test_auto_is_bfloat16_where_the_processor_has_its_products(monkeypatch, flags, dtype):
    monkeypatch.setattr(ops.Path, "read_text", lambda *_, **__: f"flags : fpu {flags}\n")
    ops.has_bfloat16_products.cache_clear()
    assert ops.choose_dtype("auto") == dtype
    ops.has_bfloat16_products.cache_clear()
    assert ops.choose_dtype("float16") == "float16"
    with pytest.raises(ValueError, match="dtype: expected float32, bfloat16 or float16, got float64"):
        ops.choose_dtype("float64")
