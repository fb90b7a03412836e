"""What qwix does with these models, and what it does not: docs/guides/quantize.md says the same of version 0.1.8."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import qwix
from flax import nnx

from tests.support.models import SMALLEST, random_crops, random_model
from vitpose_jax import VitPoseConfig
from vitpose_jax.storage import parameters

CONFIG = VitPoseConfig(**{**SMALLEST, "hidden_size": 16})
BLOCKS = "backbone/blocks/.*"

# qwix calls deprecated functions, and makes classes of its own.
pytestmark = [pytest.mark.usefixtures("compiled_once", "unchecked"), pytest.mark.filterwarnings("ignore")]


def heatmaps(model: nnx.Module) -> np.ndarray:
    return np.asarray(jax.jit(lambda model, crops: model(crops))(model, random_crops(CONFIG)))


@pytest.mark.parametrize("name", ["QtProvider", "PtqProvider"])
def test_blocks_are_rounded_and_parameters_stay_float(name):
    """Rounding happens in each product: there is nothing to save, and weights can be trained."""
    rule = {"QtProvider": qwix.QtRule, "PtqProvider": qwix.QuantizationRule}[name]
    model, crops = random_model(CONFIG), random_crops(CONFIG)
    provider = getattr(qwix, name)([rule(module_path=BLOCKS, weight_qtype=jnp.int4)])
    rounded = qwix.quantize_model(model, provider, crops)
    difference = np.abs(heatmaps(rounded) - heatmaps(model)).max()
    assert difference > 0
    shapes = {".".join(map(str, path)): leaf for path, leaf in nnx.to_flat_state(nnx.state(rounded, nnx.Param))}
    assert {leaf.get_value().dtype for leaf in shapes.values()} == {jnp.dtype("float32")}
    assert set(shapes) <= set(parameters.flatten(model))


def test_gradients_pass_through_the_rounding():
    model, crops = random_model(CONFIG), random_crops(CONFIG)
    provider = qwix.QtProvider([qwix.QtRule(module_path=BLOCKS, weight_qtype=jnp.int4)])
    graphdef, trained, rest = nnx.split(qwix.quantize_model(model, provider, crops), nnx.Param, ...)
    gradients = jax.jit(jax.grad(lambda trained: jnp.square(nnx.merge(graphdef, trained, rest)(crops)).sum()))(trained)
    flat = {".".join(map(str, path)): leaf.get_value() for path, leaf in nnx.to_flat_state(gradients)}
    assert all(np.abs(leaf).max() > 0 for name, leaf in flat.items() if ".blocks." in name and name.endswith("kernel"))


def test_lora_of_qwix_fails_inside_the_scan():
    """So training/lora.py has rules of its own."""
    model, crops = random_model(CONFIG), random_crops(CONFIG)
    provider = qwix.LoraProvider(module_path=BLOCKS, rank=2, alpha=4.0)
    with pytest.raises(IndexError, match="tuple index out of range"):
        qwix.apply_lora_to_model(model, provider, crops, rngs=nnx.Rngs(0))


def test_the_classic_decoder_cannot_be_rounded():
    """Its transposed convolutions cut their kernels in pieces, which qwix does not know as parameters."""
    config = CONFIG.replace(decoder="classic")
    model, crops = random_model(config), random_crops(config)
    rounded = [qwix.QtRule(module_path=".*", weight_qtype=jnp.int8)]
    with pytest.raises(AssertionError):
        qwix.quantize_model(model, qwix.QtProvider(rounded), crops)(crops)
