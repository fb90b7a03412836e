"""Weights in another form: the same outputs, from views of the same memory."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from tests.support.models import SMALL_PLUS, TINY, random_crops, random_model
from tests.tolerances import BLOCK
from vitpose_jax import VitPose, VitPoseConfig
from vitpose_jax.serving.program import Program
from vitpose_jax.storage import parameters
from vitpose_jax.vitpose.adapters import Lora
from vitpose_jax.vitpose.modeling import Block, Deconv, abstract_vitpose
from vitpose_jax.vitpose.prepared import ParityDeconv, prepare_for_cpu
from vitpose_jax.vitpose.quantized import Quantization

pytestmark = pytest.mark.usefixtures("compiled_once")

CONFIGS = {
    "plain": {},
    "experts": SMALL_PLUS,
    "windows": {"window_size": (2, 2)},
    "knowledge token": {"knowledge_token": 24},
    "an earlier block": {"num_layers": 3, "out_indices": (2,)},
}


def tiny(dtype=jnp.float32, param_dtype=jnp.float32, **fields) -> VitPose:
    return random_model(VitPoseConfig(**{**TINY, **fields}), dtype=dtype, param_dtype=param_dtype)


@pytest.mark.parametrize("name", CONFIGS)
def test_outputs_are_the_same(name):
    model = tiny(**CONFIGS[name])
    apart = prepare_for_cpu(model)
    assert isinstance(model.backbone.blocks, Block) and len(apart.backbone.blocks) == model.config.num_layers
    decoders = [next(iter(each.heads.values())) for each in (model, apart)]
    assert [type(decoder.deconv1) for decoder in decoders] == [Deconv, ParityDeconv]
    crops = random_crops(model.config)

    def run(model: VitPose, crops):
        windows = model.config.window_size is not None
        options = {"output_hidden_states": True, "output_attentions": not windows, "feature_blocks": (0, 2)}
        drops = {"drop_path": 0.3, "key": jax.random.key(0)}
        backbone = model.backbone
        return model(crops), backbone(crops, 0, **options), backbone(crops, 0, **drops).tokens

    for ours, expected in zip(*(jax.tree.leaves(nnx.jit(run)(each, crops)) for each in (apart, model)), strict=True):
        np.testing.assert_allclose(ours, expected, rtol=0, atol=BLOCK)


def test_arrays_are_views_of_the_stacked_ones():
    model = tiny(hidden_size=48)
    blocks = prepare_for_cpu(model).backbone.blocks
    kernel = nnx.split(model)[1]["backbone"]["blocks"]["mlp"]["fc1"]["kernel"].get_value()
    size = kernel.nbytes // len(kernel)
    for index, block in enumerate(blocks):
        (row,) = jax.tree.leaves(nnx.split(block.mlp.fc1, nnx.Param)[1]["kernel"])
        assert row.unsafe_buffer_pointer() == kernel.unsafe_buffer_pointer() + index * size


def test_kernels_are_rounded_to_the_dtype_of_the_computation():
    model = tiny(jnp.bfloat16)
    apart = prepare_for_cpu(model)
    for ours, stacked in zip(
        *(jax.tree.leaves(nnx.split(module)[1]) for module in (apart.backbone.blocks[1], model.backbone.blocks)),
        strict=True,
    ):
        assert ours.dtype == (jnp.bfloat16 if ours.ndim > 1 else jnp.float32)
        np.testing.assert_array_equal(ours, stacked[1].astype(ours.dtype))
    # XLA rounds to bfloat16 at other places; neither is farther from float32.
    run = nnx.jit(lambda model, crops: model(crops).astype(jnp.float32))
    crops = random_crops(model.config)
    exact = run(tiny(), crops)
    ours, theirs = (float(jnp.abs(run(each, crops) - exact).mean()) for each in (apart, model))
    assert 0 < ours < 1.2 * theirs


@pytest.mark.parametrize(
    "options",
    [
        {"quantization": Quantization(kind="int8")},
        {"lora": Lora(rank=1, alpha=1.0, kernels=("backbone.blocks.mlp.fc1.kernel",))},
    ],
)
def test_quantized_and_adapted_kernels_stay_stacked(options):
    abstract = abstract_vitpose(VitPoseConfig(**TINY), **options)
    zeros = {name: np.zeros(leaf.shape, leaf.dtype) for name, leaf in parameters.flatten(abstract).items()}
    model = parameters.fill(abstract, zeros)
    assert isinstance(prepare_for_cpu(model).backbone.blocks, Block)


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
def test_a_program_reads_the_weights_where_they_are(dtype):
    model = tiny(dtype, dtype)
    crops = random_crops(model.config)
    program = Program((model, tiny(dtype, dtype)), lambda models, crops: models[0](crops))
    # 24 x 48 is the first kernel of an MLP: no operation has it, or all of them, as its result.
    shapes = [f"[{lead}24,48]" for lead in ("", "1,", "2,")]
    compiled = program._run.lower(program._leaves, crops).compile().as_text()
    results = [line.split(" = ")[1].split("(")[0] for line in compiled.splitlines() if " = " in line]
    assert not any(shape in result for result in results if "parameter" not in result for shape in shapes)
    stacked = jax.jit(lambda model, crops: model(crops)).lower(model, crops).compile().as_text()
    assert any(f"{shape}{{" in line and "slice" in line for line in stacked.splitlines() for shape in shapes)
