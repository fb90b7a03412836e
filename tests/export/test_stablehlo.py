"""Models as StableHLO files: written, read with JAX alone, run, refused where they are damaged."""

import json
import subprocess
import types

import jax
import jax.export
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from safetensors import safe_open
from safetensors.numpy import load_file, save_file

from tests.support import programs
from tests.support.images import random_image
from tests.support.limits import largest_file
from tests.support.models import SMALL_PLUS, random_crops, smallest_model
from tests.tolerances import BFLOAT16, HEATMAPS, KEYPOINTS, REFINED, REFINED_MOST, ROUNDED_PIXELS
from vitpose_jax import PoseEstimator, VitPose, export
from vitpose_jax.bulk.settings import estimator_settings, hash_model
from vitpose_jax.export import write
from vitpose_jax.export.metadata import KEY
from vitpose_jax.export.program import runs_here
from vitpose_jax.skeletons import AP10K, COCO, Skeleton
from vitpose_jax.storage.tensors import open_safetensors

# Enough people for batches of several sizes.
BOXES = np.asarray([[10, 10, 50, 60], [30, 20, 70, 80], [-5, 4, 60, 90]], np.float32)


pytestmark = pytest.mark.usefixtures("compiled_once")


def assert_same_heatmaps(
    actual: object, model: VitPose, crops: object, dataset: str | None = None, *, tolerance: float
):
    """Relative to the largest value, if that is above 1."""
    expected = np.asarray(jax.jit(lambda model, crops: model(crops, dataset))(model, crops), np.float32)
    limit = max(1, np.abs(expected).max())
    np.testing.assert_allclose(np.asarray(actual, np.float32) / limit, expected / limit, rtol=0, atol=tolerance)


@pytest.fixture(scope="module")
def model() -> VitPose:
    return smallest_model()


@pytest.fixture(scope="module")
def network(compiled_once, model, tmp_path_factory):
    path = tmp_path_factory.mktemp("exported") / "network.stablehlo"
    return export.to_stablehlo(model, path, platforms=("cpu",), batch=2).path


# Of the exported path, none as the defaults are.
OPTIONS = {"flip_test": True, "decode": "quarter"}


@pytest.fixture(scope="module")
def path_file(compiled_once, model, tmp_path_factory):
    path = tmp_path_factory.mktemp("exported") / "path.stablehlo"
    return export.to_stablehlo(model, path, part="path", platforms=("cpu",), border="opencv", **OPTIONS).path


def test_a_network_for_any_number_of_crops(tmp_path, model):
    written = export.to_stablehlo(model, tmp_path / "model.stablehlo")
    assert written.metadata.platforms == ["cpu", "cuda", "tpu"]
    assert written.size == written.path.stat().st_size
    (check,) = written.checks
    assert check.runtime == "jax" and check.counts == (1, 3)
    program = export.load(written.path)
    for count in (1, 3):
        crops = random_crops(model.config, count)
        assert_same_heatmaps(program(crops), model, crops, tolerance=HEATMAPS)
    assert program.num_compiled == 2
    assert program.metadata.skeleton == COCO and program.metadata.image_size == model.config.image_size
    assert program.metadata.image_mean == model.config.image_mean
    assert program.metadata.image_std == model.config.image_std
    assert repr(program) == "ExportedProgram(network, coco, crops float32['n', 32, 16, 3])"
    assert [path.name for path in tmp_path.iterdir()] == ["model.stablehlo"]


def test_one_expert_and_its_classic_head(tmp_path):
    model = smallest_model(**{**SMALL_PLUS, "part_features": 3, "decoder": "classic"})
    export.to_stablehlo(model, tmp_path / "animals", dataset="ap10k", platforms=("cpu",), batch=2)
    program = export.load(tmp_path / "animals")
    assert program.metadata.skeleton == AP10K and program.metadata.config["experts"] == []
    crops = random_crops(model.config, 2)
    assert_same_heatmaps(program(crops), model, crops, "ap10k", tolerance=HEATMAPS)


@pytest.mark.parametrize("decoder", ["simple", "classic"])
def test_bfloat16_takes_half_of_the_bytes(tmp_path, decoder):
    """Also where the model holds float32 parameters."""
    config = smallest_model(decoder=decoder).config
    model = VitPose(config, dtype=jnp.bfloat16, rngs=nnx.Rngs(0))
    export.to_stablehlo(model, tmp_path / "narrow", platforms=("cpu",), batch=2)
    tensors = open_safetensors(tmp_path / "narrow")
    assert tensors["backbone.blocks.attention.qkv.kernel"].dtype == jnp.bfloat16
    assert tensors["backbone.norm.scale"].dtype == np.float32
    program, crops = export.load(tmp_path / "narrow"), random_crops(config, 2)
    heatmaps = program(crops)
    assert heatmaps.dtype == jnp.float32
    assert_same_heatmaps(heatmaps, model, crops, tolerance=BFLOAT16)


def test_the_whole_path(model, path_file):
    program, image = export.load(path_file), random_image(0)
    assert program.metadata.options["flip_test"] is True
    expected = PoseEstimator(model, border="opencv")(image, BOXES, **OPTIONS)
    shapes = np.asarray([[0, *image.shape[:2]]] * 3, np.int32)
    keypoints, scores, covariances = program(image.reshape(-1, 3), shapes, BOXES)
    np.testing.assert_allclose(keypoints, expected.keypoints, rtol=0, atol=KEYPOINTS)
    np.testing.assert_allclose(scores, expected.scores, rtol=0, atol=HEATMAPS)
    assert covariances.shape == (3, 17, 2, 2)
    poses = PoseEstimator.from_exported(path_file, border="opencv")(image, BOXES, **OPTIONS)
    np.testing.assert_allclose(poses.keypoints, expected.keypoints, rtol=0, atol=KEYPOINTS)


def test_an_estimator_of_a_network(tmp_path, model):
    """The same calls; the crops are made by another program, which may round a pixel value the other way."""
    path = export.to_stablehlo(model, tmp_path / "network", platforms=("cpu",)).path
    estimator, reference = PoseEstimator.from_exported(path, max_batch=2), PoseEstimator(model, max_batch=2)
    image = random_image(1)
    poses, expected = estimator(image, BOXES, **OPTIONS), reference(image, BOXES, **OPTIONS)
    largest = np.abs(expected.scores).max()
    np.testing.assert_allclose(poses.scores / largest, expected.scores / largest, rtol=0, atol=ROUNDED_PIXELS)
    near = np.abs(poses.keypoints - expected.keypoints).max(axis=-1) < REFINED
    assert near.mean() > REFINED_MOST
    assert poses.skeleton == COCO and poses.covariances.shape == (3, 17, 2, 2)
    (streamed,) = estimator.stream([(image, BOXES)], **OPTIONS)
    np.testing.assert_array_equal(streamed.keypoints, poses.keypoints)
    assert repr(estimator) == "PoseEstimator(coco, crops 32 x 16, float32, max_batch=2)"
    assert estimator.device_kind == "cpu" and estimator.num_compiled > 0
    assert len(estimator_settings(estimator)["model_sha256"]) == 64


def test_options_that_do_not_fit_a_file(network, path_file):
    estimator = PoseEstimator.from_exported(path_file, border="opencv")
    with pytest.raises(ValueError, match="flip_test: this file was exported with True, got False"):
        estimator(random_image(0), BOXES)
    with pytest.raises(ValueError, match="border: this file was exported with 'opencv', got 'scipy'"):
        PoseEstimator.from_exported(path_file)
    with pytest.raises(ValueError, match="expected the runtime 'jax'"):
        PoseEstimator.from_exported(network, runtime="openvino")
    with pytest.raises(ValueError, match="computes in float32, expected no other dtype, got bfloat16"):
        PoseEstimator.from_exported(network, dtype="bfloat16")
    with pytest.raises(ValueError, match="devices: expected none with an exported model"):
        PoseEstimator(export.ExportedModel.load(network), devices=jax.devices()[:1])


def test_a_fixed_number_of_crops(model, network):
    program = export.load(network)
    assert program.metadata.inputs[0]["shape"] == [2, 32, 16, 3]
    with pytest.raises(ValueError, match=r"crops: expected float32 of shape \(2, 32, 16, 3\), got float32 of \(3, "):
        program(random_crops(model.config, 3))


@pytest.mark.parametrize("part", ["network", "path"])
def test_a_fixed_number_of_crops_in_an_estimator(tmp_path, model, part):
    """Both with a flip test: a network then computes two crops of each box."""
    options = OPTIONS if part == "path" else {}
    path = export.to_stablehlo(model, tmp_path / "fixed", part=part, platforms=("cpu",), batch=2, **options).path
    estimator, reference = PoseEstimator.from_exported(path), PoseEstimator(model)
    image = random_image(1)
    poses, expected = estimator(image, BOXES, **OPTIONS), reference(image, BOXES, **OPTIONS)
    largest = np.abs(expected.scores).max()
    np.testing.assert_allclose(poses.scores / largest, expected.scores / largest, rtol=0, atol=ROUNDED_PIXELS)


@pytest.mark.parametrize(("version", "platform"), [("rocm 70000", "rocm"), ("cuda 13000", "cuda")])
def test_programs_for_cuda_and_for_rocm_are_told_apart(network, monkeypatch, version, platform):
    """For JAX both are "gpu"."""
    backend = types.SimpleNamespace(platform_version=f"PJRT C API\n{version}")
    monkeypatch.setattr(jax, "default_backend", lambda: "gpu")
    monkeypatch.setattr(jax.extend.backend, "get_backend", lambda: backend)
    assert runs_here([platform, "cpu"])
    assert not runs_here(sorted({"rocm", "cuda", "cpu", "tpu"} - {platform}))
    with pytest.raises(ValueError, match=f"was exported for cpu, and this is {platform}; export it with --platforms"):
        export.load(network)


def test_settings_tell_paths_apart(tmp_path, model, path_file):
    """The options of a path are in its program, and in its metadata; the weights are the same."""
    other = export.to_stablehlo(model, tmp_path / "path", part="path", platforms=("cpu",), batch=1).path
    hashes = {hash_model(export.ExportedModel.load(path)) for path in (path_file, path_file, other)}
    assert len(hashes) == 2


def test_a_full_disk_is_one_error(tmp_path, model):
    path = tmp_path / "model.stablehlo"
    with largest_file(20_000), pytest.raises(OSError, match="File too large") as caught:
        export.to_stablehlo(model, path, platforms=("cpu",), batch=2)
    assert caught.value.filename == str(path) and list(tmp_path.iterdir()) == []


def test_inputs_are_checked(network):
    program = export.load(network)
    with pytest.raises(ValueError, match=r"expected 1 arrays \(crops\), got 2"):
        program(np.zeros((2, 32, 16, 3), np.float32), 0)
    for shape, dtype in (((2, 16, 32, 3), "float32"), ((32, 16, 3), "float32"), ((2, 32, 16, 3), "float64")):
        with pytest.raises(ValueError, match=r"crops: expected float32 of shape \(2, 32, 16, 3\)"):
            program(np.zeros(shape, dtype))


@pytest.mark.parametrize("program", ["run_exported", "run_exported_alone"])
def test_without_flax_and_the_network(tmp_path, model, network, program):
    crops = random_crops(model.config, 2)
    np.save(tmp_path / "crops.npy", crops)
    command = programs.command(program, network, tmp_path / "crops.npy", tmp_path / "heatmaps.npy")
    subprocess.run(command, check=True, env=programs.environment())
    assert_same_heatmaps(np.load(tmp_path / "heatmaps.npy"), model, crops, tolerance=HEATMAPS)


def test_damaged_and_foreign_files(tmp_path, network):
    content = network.read_bytes()
    with safe_open(network, "numpy") as file:
        header = json.loads(file.metadata()[KEY])
    tensors = load_file(network)

    def changed(metadata: dict | str, **arrays: np.ndarray):
        path = tmp_path / "changed"
        text = metadata if isinstance(metadata, str) else json.dumps(metadata)
        save_file({**tensors, **arrays}, path, metadata={KEY: text})
        return path

    (tmp_path / "text").write_text("not a model")
    (tmp_path / "cut").write_bytes(content[:-10])
    (tmp_path / "flipped").write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    save_file({"a": np.zeros(3)}, tmp_path / "foreign")
    more_weights = [*header["weights"], "more"]
    for path, message in (
        (tmp_path / "nowhere", "cannot be read"),
        (tmp_path, "got a folder"),
        (tmp_path / "model.onnx", "load_onnx reads ONNX files"),
        (tmp_path / "text", "not an exported file, or truncated"),
        (tmp_path / "cut", "not an exported file, or truncated"),
        (tmp_path / "flipped", "its checksum is not the one"),
        (tmp_path / "foreign", "got other safetensors"),
        (changed("no JSON"), "damaged metadata: not valid JSON"),
    ):
        with pytest.raises(ValueError, match=message):
            export.load(path)
    for metadata, message in (
        ([], "expected a version, got None"),
        ({**header, "version": 99}, "has version 99 of the format, newer than this package's 1"),
        ({**header, "more": 1}, "damaged metadata: expected"),
        ({**header, "dtype": 32}, "dtype: expected a str"),
        ({**header, "part": "half"}, "part: expected one of network, path, got 'half'"),
        ({**header, "config": {}}, "damaged metadata: config"),
        ({**header, "dtype": "int8"}, "dtype: expected one of float32, bfloat16, float16, got 'int8'"),
        ({**header, "weights": [1]}, "damaged metadata: weights: expected names, got 1"),
        ({**header, "platforms": [["cpu"]]}, r"damaged metadata: platforms: expected names, got \['cpu'\]"),
        ({**header, "inputs": ["crops"]}, "damaged metadata: inputs: expected arrays with name, shape, dtype, got"),
        ({**header, "outputs": [{"name": "heatmaps"}]}, "damaged metadata: outputs: expected arrays with"),
        (
            {**header, "inputs": [{**header["inputs"][0], "dtype": 3}]},
            "damaged metadata: inputs: dtype: expected a str, got 3",
        ),
        (
            {**header, "inputs": [{**header["inputs"][0], "shape": [2, -1, True, None]}]},
            "damaged metadata: inputs: shape: expected names and numbers from 1 on",
        ),
        ({**header, "weights": more_weights}, "its tensors are not those that its metadata names"),
        ({**header, "platforms": ["tpu"]}, "was exported for tpu, and this is cpu"),
    ):
        with pytest.raises(ValueError, match=message):
            export.load(changed(metadata))


def test_a_program_of_another_version_of_jax(network, monkeypatch):
    def deserialize(_: bytearray) -> None:
        raise ValueError("unsupported version")

    monkeypatch.setattr(jax.export, "deserialize", deserialize)
    with pytest.raises(ValueError, match=rf"which JAX {jax.__version__} wrote \(unsupported version\)"):
        export.load(network)


def test_bad_options_leave_no_file(tmp_path, model, network, monkeypatch, unchecked):
    nameless = smallest_model(skeletons=(Skeleton(name="custom", keypoints=("a", "b")),))
    for changes, message in (
        ({"part": "half"}, "part: expected network or path, got 'half'"),
        ({"platforms": ("cpu", "abacus")}, "platforms: expected one or more of cpu, cuda, rocm, tpu"),
        ({"platforms": ()}, "got none"),
        ({"platforms": ("tpu",)}, "expected this machine's cpu among them"),
        ({"batch": 0}, "batch: expected at least 1, got 0"),
        ({"path": tmp_path / "new.onnx"}, "expected another name than one of an ONNX file"),
        ({"decode": "guess"}, "decode: expected one of"),
        ({"border": "wide"}, "border: expected one of"),
        ({"flip_test": True}, "expected them with the part 'path'"),
        ({"dataset": "ap10k"}, "no dataset 'ap10k'"),
        ({"model": nameless, "part": "path", "flip_test": True}, "'custom' has no flip pairs"),
    ):
        with pytest.raises(ValueError, match=message):
            export.to_stablehlo(**{"model": model, "path": tmp_path / "new", **changes})
    with pytest.raises(ValueError, match="exists already"):
        export.to_stablehlo(model, network)
    with pytest.raises(ValueError, match="expected a file to write, got a folder"):
        export.to_stablehlo(model, tmp_path)
    # Another model was written: its heatmaps are not these.
    other = smallest_model(hidden_act="relu")
    build = write.build_program
    monkeypatch.setattr(write, "build_program", lambda _, *rest, **options: build(other, *rest, **options))
    with pytest.raises(ValueError, match="the export failed its check: jax: heatmaps: expected at most"):
        export.to_stablehlo(model, tmp_path / "new", platforms=("cpu",), batch=2)
    assert list(tmp_path.iterdir()) == []
