"""Models whose kernels stay int8 or int4 in memory: beside their twins in floating point, and how much they take."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.support.models import PLUS, SMALLEST, assert_same_model, random_crops, random_model
from tests.tolerances import BFLOAT16, HEATMAPS, KEYPOINTS
from vitpose_jax import PoseEstimator, VitPose, VitPoseConfig, checkpoint, from_pretrained
from vitpose_jax.convert import write
from vitpose_jax.convert.backbones import load_backbone
from vitpose_jax.storage import int4, int8, parameters
from vitpose_jax.storage.tensors import LazyTensor
from vitpose_jax.training import split, training_view
from vitpose_jax.vitpose import quantized
from vitpose_jax.vitpose.modeling import abstract_vitpose

WIDTH = 16
FIELDS = {**SMALLEST, "hidden_size": WIDTH}
CONFIG = VitPoseConfig(**FIELDS)
EXPERTS = VitPoseConfig(**{**FIELDS, **PLUS})
pytestmark = pytest.mark.usefixtures("compiled_once")

KINDS = [("int8", None), ("int4", 8), ("int4", WIDTH)]


def in_floating_point(model: VitPose) -> VitPose:
    """The twin: a model with the weights that the integers stand for."""
    tensors = quantized.dequantize_tensors(parameters.flatten(model))
    return parameters.fill(abstract_vitpose(model.config, dtype=model.backbone.dtype), tensors)


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """Float models in the native format, with and without experts; the second also in the Hub's."""
    root = tmp_path_factory.mktemp("models")
    for name, config in (("plain", CONFIG), ("experts", EXPERTS)):
        checkpoint.save(random_model(config), root / name)
    write(random_model(EXPERTS.replace(skeletons=EXPERTS.skeletons[:1])), root / "hub", to="huggingface")
    return root


@settings(max_examples=20, deadline=None)
@given(st.integers(0, 2**32 - 1), st.sampled_from([2, 4, 6, 12]))
def test_jax_and_numpy_read_the_same_weights(seed, group_size):
    random = np.random.default_rng(seed)
    packed = random.integers(0, 256, (2, 6, 5), np.uint8)
    scale = random.uniform(0.1, 1, (2, 12 // group_size, 5)).astype(np.float32)
    read = quantized.dequantize_int4(jnp.asarray(packed), jnp.asarray(scale))
    np.testing.assert_array_equal(read, int4.dequantize(packed, scale))


@pytest.mark.parametrize(
    ("source", "kind", "group_size"),
    [("plain", "int8", None), ("hub", "int4", WIDTH), ("experts", "int8", None), ("experts", "int4", 8)],
)
def test_a_quantized_model_equals_its_twin(folders, source, kind, group_size):
    model = from_pretrained(folders / source, quantize=kind, group_size=group_size)
    plain = from_pretrained(folders / source)
    assert model.quantization == quantized.Quantization(kind=kind, group_size=group_size or int4.GROUP_SIZE)
    assert quantized.num_parameters(model) == quantized.num_parameters(plain)
    crops = random_crops(model.config)
    # A dataset for all crops, and one for each.
    datasets = (1, np.array([0, 2, 1])) if source == "experts" else (None,)
    twin = in_floating_point(model)
    for dataset in datasets:
        heatmaps, expected = (np.asarray(each(crops, dataset)) for each in (model, twin))
        np.testing.assert_allclose(heatmaps, expected, rtol=0, atol=HEATMAPS * np.abs(expected).max())
        assert (heatmaps != np.asarray(plain(crops, dataset))).any()
    # Every kernel of the blocks, and nothing else.
    leaves = parameters.flatten(model).items()
    integers = [name for name, leaf in leaves if not jnp.issubdtype(leaf.dtype, jnp.floating)]
    names = {name.removesuffix(quantized.VALUES) for name in integers}
    assert names == {name for name in parameters.shapes(plain) if ".blocks." in name and name.endswith("kernel")}


def test_computed_in_bfloat16(folders):
    crops = random_crops(EXPERTS)
    for kind, group_size in KINDS[:2]:
        model = from_pretrained(folders / "experts", quantize=kind, group_size=group_size, dtype="bfloat16")
        expected = np.asarray(
            in_floating_point(from_pretrained(folders / "experts", quantize=kind, group_size=group_size))(crops)
        )
        heatmaps = np.asarray(model(crops), np.float32)
        np.testing.assert_allclose(heatmaps, expected, rtol=0, atol=BFLOAT16 * np.abs(expected).max())


@pytest.mark.parametrize(("kind", "group_size"), KINDS)
def test_round_trips_keep_every_bit(folders, tmp_path, kind, group_size):
    model = from_pretrained(folders / "experts", quantize=kind, group_size=group_size)
    checkpoint.save(model, tmp_path / "one")
    # The group size is the file's.
    for load in (checkpoint.load, from_pretrained):
        assert_same_model(load(tmp_path / "one", quantize=kind), model)
    # In floating point as before.
    assert_same_model(checkpoint.load(tmp_path / "one"), in_floating_point(model))
    # Another kind or group size is rounded anew.
    other = from_pretrained(tmp_path / "one", quantize="int4", group_size=4)
    assert other.quantization.group_size == 4


def test_stored_integers_are_not_converted(folders, tmp_path, monkeypatch):
    for kind, group_size in KINDS:
        folder = tmp_path / f"{kind}-{group_size}"
        model = from_pretrained(folders / "plain", quantize=kind, group_size=group_size)
        checkpoint.save(model, folder)
        with monkeypatch.context() as patch:
            for module in (int8, int4):
                patch.setattr(module, "dequantize", None)
            assert_same_model(from_pretrained(folder, quantize=kind), model)


def test_kernels_are_rounded_layer_by_layer():
    """Layers are read one by one, and the results are those of the whole kernel."""
    name = "backbone.blocks.mlp.fc1.kernel"
    weights = np.random.default_rng(0).normal(size=(3, 8, 4)).astype(np.float32)
    read = []

    def layer(index: int) -> np.ndarray:
        read.append(index)
        return weights[index]

    tensor = LazyTensor(weights.shape, weights.dtype, lambda: pytest.fail("reads everything"), read_layer=layer)
    tensors = quantized.quantize_tensors({name: tensor}, quantized.Quantization(kind="int4", group_size=4))
    scale, values = np.asarray(tensors[name + ".scale"]), np.asarray(tensors[name + ".values"])
    assert read == [0, 1, 2]
    for mine, expected in zip((values, scale), int4.quantize(weights, 4), strict=True):
        np.testing.assert_array_equal(mine, expected)


def test_one_dataset_another_size_and_windows(folders):
    """What rebuilds a model keeps its integers: `specialize` joins the expert's to those of the second layer."""
    for kind, group_size in KINDS[:2]:
        model = from_pretrained(folders / "experts", quantize=kind, group_size=group_size)
        crops = random_crops(model.config)
        plain = model.specialize("aic")
        assert plain.quantization == model.quantization and not plain.config.experts
        expected = np.asarray(model(crops, "aic"))
        np.testing.assert_allclose(plain(crops), expected, rtol=0, atol=HEATMAPS * np.abs(expected).max())
    assert model.resize((64, 32)).quantization == model.with_windows((2, 2)).quantization == model.quantization


def test_the_memory_of_the_parameters(folders):
    config = CONFIG.replace(hidden_size=256, num_layers=4)
    model = random_model(config)
    shapes = {name: shape for name, shape in parameters.shapes(model).items() if quantized.is_quantized(name)}
    weights = sum(int(np.prod(shape)) for shape in shapes.values())
    rest = quantized.num_bytes(model) - 4 * weights
    for kind, size in (("int8", 1), ("int4", 0.5)):
        tensors = quantized.quantize_tensors(parameters.flatten(model), quantized.Quantization(kind=kind))
        small = parameters.fill(abstract_vitpose(config, quantization=quantized.Quantization(kind=kind)), tensors)
        scales = sum(leaf.nbytes for name, leaf in parameters.flatten(small).items() if name.endswith("kernel.scale"))
        assert quantized.num_bytes(small) == size * weights + scales + rest
        assert scales < 0.1 * size * weights


@pytest.mark.parametrize("kind", ["int8", "int4"])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_the_compiled_program_widens_one_layer_at_a_time(kind, dtype):
    """Twice as many layers need no more temporary memory. A compiler that moves the conversion out of the loop would
    widen all of them."""

    def temporary_bytes(layers: int) -> int:
        config = CONFIG.replace(hidden_size=256, num_layers=layers)
        model = abstract_vitpose(config, dtype=dtype, quantization=quantized.Quantization(kind=kind))
        graphdef, state = nnx.split(model)
        crops = jax.ShapeDtypeStruct((1, *config.image_size, 3), jnp.float32)
        program = jax.jit(lambda state, crops: nnx.merge(graphdef, state)(crops))
        return program.lower(state, crops).compile().memory_analysis().temp_size_in_bytes

    few, many = temporary_bytes(4), temporary_bytes(8)
    layer = 4 * 256 * 4 * 256  # bytes of the largest kernel in float32
    assert many - few < layer / 8
    assert few < 6 * layer


def test_an_estimator(folders):
    image = np.random.default_rng(0).integers(0, 256, (40, 30, 3), np.uint8)
    source = folders / "plain"
    for kind, group_size in KINDS[:2]:
        estimator = PoseEstimator.from_pretrained(source, quantize=kind, group_size=group_size)
        expected = PoseEstimator(in_floating_point(estimator.model))(image, [[2, 3, 20, 30]])
        poses = estimator(image, [[2, 3, 20, 30]])
        np.testing.assert_allclose(poses.scores, expected.scores, rtol=0, atol=HEATMAPS)
        np.testing.assert_allclose(poses.keypoints, expected.keypoints, rtol=0, atol=KEYPOINTS)


def test_training_needs_floating_point(folders):
    model = from_pretrained(folders / "plain", quantize="int8")
    for call, purpose in ((split, "training"), (training_view, "training")):
        with pytest.raises(
            ValueError, match=f"{purpose}: expected a model with parameters in floating point, got int8"
        ):
            call(model)
    with pytest.raises(ValueError, match="load_backbone: expected a model with parameters in floating point, got int8"):
        load_backbone(model, CONFIG)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (
            {"quantize": "int4"},
            r"group_size: expected a divisor of the 16 inputs of a layer \(2, 4, 8, ..., 16\), got 128",
        ),
        ({"quantize": "int4", "group_size": 5}, "group_size: expected a divisor of the 16 inputs .* got 5"),
        ({"quantize": "int8", "group_size": 4}, "group_size: expected only with int4, got 4 with int8"),
        ({"group_size": 4}, "group_size: expected only with int4, got 4 with floating point"),
    ],
)
def test_errors_of_group_sizes(folders, options, message):
    for load in (checkpoint.load, from_pretrained):
        with pytest.raises(ValueError, match=message):
            load(folders / "plain", **options)


@pytest.mark.usefixtures("unchecked")
def test_unknown_kinds(folders):
    for load in (checkpoint.load, from_pretrained):
        with pytest.raises(ValueError, match="quantize: expected 'int8' or 'int4', got 'int3'"):
            load(folders / "plain", quantize="int3")
