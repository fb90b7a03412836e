"""Models as ONNX files: the graph, in ONNX Runtime and in OpenVINO, beside the model."""

import concurrent.futures
import errno
import importlib.util
import os
import types

import jax
import jax.numpy as jnp
import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper

from tests.support.images import random_image
from tests.support.models import SMALL_PLUS, random_crops, smallest_model
from tests.tolerances import BFLOAT16, HEATMAPS, OPENVINO_BFLOAT16_MEDIAN, REFINED, REFINED_MOST, ROUNDED_PIXELS
from vitpose_jax import PoseEstimator, VitPose, export
from vitpose_jax.bulk.settings import estimator_settings, hash_model
from vitpose_jax.export import reference, runtimes, write
from vitpose_jax.export.metadata import KEY
from vitpose_jax.skeletons import AP10K, COCO

BOXES = np.asarray([[10, 10, 50, 60], [30, 20, 70, 80], [-5, 4, 60, 90]], np.float32)
RUNTIMES = ("onnxruntime", "openvino")

pytestmark = pytest.mark.usefixtures("compiled_once")


@pytest.fixture(scope="module")
def model() -> VitPose:
    return smallest_model()


@pytest.fixture(scope="module")
def network(compiled_once, model, tmp_path_factory):
    return export.to_onnx(model, tmp_path_factory.mktemp("exported") / "network.onnx").path


@pytest.mark.slow
@pytest.mark.parametrize(
    "fields",
    [
        {"decoder": "classic", "knowledge_token": 8},
        {"hidden_act": "gelu_tanh", "knowledge_token": 5},
        {"hidden_act": "relu", "qkv_bias": False, "out_indices": (1,), "image_size": (48, 32)},
        {**SMALL_PLUS, "part_features": 3, "decoder": "classic"},
        {"image_size": (80, 48), "window_size": (2, 2), "window_shift": True, "window_pool": True},
        {"image_size": (80, 48), "window_size": (3, 2), "window_shift": True},
        {"image_size": (80, 48), "window_size": (2, 8), "window_pool": True},
    ],
)
def test_every_kind_of_network(tmp_path, fields):
    model = smallest_model(**fields)
    written = export.to_onnx(model, tmp_path / "model.onnx", dataset="ap10k" if "experts" in fields else None)
    assert tuple(check.runtime for check in written.checks) == RUNTIMES
    assert written.metadata.skeleton == (AP10K if "experts" in fields else COCO)
    proto = onnx.load(written.path)
    onnx.checker.check_model(proto, full_check=True)
    assert [entry.version for entry in proto.opset_import] == [20]
    crops = random_crops(model.config, 3)
    dataset = "ap10k" if "experts" in fields else None
    expected = np.asarray(jax.jit(lambda model, crops: model(crops, dataset))(model, crops))
    largest = max(1, np.abs(expected).max())
    for runtime in RUNTIMES:
        network = export.load_onnx(written.path, runtime)
        for count in (1, 3):
            heatmaps = network(crops[:count])
            assert heatmaps.dtype == np.float32
            np.testing.assert_allclose(heatmaps / largest, expected[:count] / largest, rtol=0, atol=HEATMAPS)


@pytest.mark.parametrize("runtime", RUNTIMES)
def test_an_estimator_of_an_onnx_file(model, network, runtime):
    estimator, expected = PoseEstimator.from_exported(network, runtime=runtime), PoseEstimator(model)
    image, options = random_image(1), {"flip_test": True, "decode": "quarter"}
    poses, expected = estimator(image, BOXES, **options), expected(image, BOXES, **options)
    largest = np.abs(expected.scores).max()
    np.testing.assert_allclose(poses.scores / largest, expected.scores / largest, rtol=0, atol=ROUNDED_PIXELS)
    assert (np.abs(poses.keypoints - expected.keypoints).max(axis=-1) < REFINED).mean() > REFINED_MOST
    assert poses.skeleton == COCO and estimator.device_kind == "cpu" and estimator.num_compiled == 2
    settings = estimator_settings(estimator)
    assert settings["dtype"] == "float32" and len(settings["model_sha256"]) == 64


def test_settings_tell_files_and_runtimes_apart(tmp_path, network):
    files = [network]
    for fields in ({"hidden_act": "relu"}, {"layer_norm_eps": 0.5}):
        files.append(tmp_path / f"{len(files)}.onnx")
        export.to_onnx(smallest_model(**fields), files[-1], batch=2)
    hashes = [hash_model(export.ExportedModel.load(path, runtime)) for path in files for runtime in RUNTIMES]
    assert len(set(hashes)) == len(hashes)
    assert hash_model(export.ExportedModel.load(network)) == hashes[0]


def test_openvino_computes_in_other_dtypes(model, network):
    estimator = PoseEstimator.from_exported(network, runtime="openvino", dtype="bfloat16")
    assert repr(estimator) == "PoseEstimator(coco, crops 32 x 16, bfloat16, max_batch=16)"
    assert repr(estimator.model.exported) == "OnnxNetwork(coco, crops 32 x 16, openvino, bfloat16)"
    poses, expected = (of(random_image(0), BOXES) for of in (estimator, PoseEstimator(model)))
    largest = np.abs(expected.scores).max()
    np.testing.assert_allclose(poses.scores / largest, expected.scores / largest, rtol=0, atol=BFLOAT16)
    distances = np.abs(poses.keypoints - expected.keypoints).max(axis=-1)
    assert np.median(distances) < OPENVINO_BFLOAT16_MEDIAN


def test_what_a_file_says(tmp_path, model):
    written = export.to_onnx(model, tmp_path / "two.onnx", batch=2)
    (crops,), (heatmaps,) = written.metadata.inputs, written.metadata.outputs
    assert crops == {"name": "crops", "shape": [2, 32, 16, 3], "dtype": "float32"}
    assert heatmaps == {"name": "heatmaps", "shape": [2, 8, 4, 17], "dtype": "float32"}
    assert written.checks[0].counts == (2,) and written.size == written.path.stat().st_size
    assert written.reference == tmp_path / "two_numpy.py"
    with open(reference.__file__, "rb") as file:
        assert written.reference.read_bytes() == file.read()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["two.onnx", "two_numpy.py"]
    network = export.load_onnx(written.path)
    for count in (1, 3):
        with pytest.raises(ValueError, match=rf"crops: expected shape \(2, 32, 16, 3\), got \({count}, 32, 16, 3\)"):
            network(np.zeros((count, 32, 16, 3), np.float32))


def test_a_network_that_openvino_cannot_compile(network, monkeypatch):
    openvino = runtimes._import_openvino()

    class Core(openvino.Core):
        def compile_model(self, *arguments):
            raise RuntimeError("not on this processor")

    monkeypatch.setattr(runtimes, "_import_openvino", lambda: types.SimpleNamespace(Core=Core))
    with pytest.raises(ValueError, match=r"network\.onnx: OpenVINO cannot compile it in float16 \(not on this"):
        export.load_onnx(network, "openvino", dtype="float16")


@pytest.mark.parametrize("runtime", RUNTIMES)
def test_several_threads_call_a_network(model, network, runtime):
    loaded, crops = export.load_onnx(network, runtime), np.asarray(random_crops(model.config, 4))
    expected = [loaded(crops[index : index + 1]) for index in range(4)]
    with concurrent.futures.ThreadPoolExecutor(4) as pool:
        results = list(pool.map(lambda index: loaded(crops[index % 4 : index % 4 + 1]), range(64)))
    for index, heatmaps in enumerate(results):
        np.testing.assert_array_equal(heatmaps, expected[index % 4])


def test_a_file_in_the_place_of_the_companion_stays(tmp_path, model):
    companion = tmp_path / "new_numpy.py"
    companion.write_text("mine")
    with pytest.raises(ValueError, match=r"new_numpy\.py: exists already"):
        export.to_onnx(model, tmp_path / "new.onnx", batch=2)
    assert list(tmp_path.iterdir()) == [companion] and companion.read_text() == "mine"


def test_no_file_without_its_companion(tmp_path, model, monkeypatch):
    def fail(path, content):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(path))

    monkeypatch.setattr(write, "write_whole", fail)
    with pytest.raises(OSError, match="No space left"):
        export.to_onnx(model, tmp_path / "new.onnx", batch=2)
    assert list(tmp_path.iterdir()) == []


def test_a_fixed_number_of_crops_in_an_estimator(tmp_path, model):
    path = export.to_onnx(model, tmp_path / "three.onnx", batch=3).path
    estimator, expected = PoseEstimator.from_exported(path), PoseEstimator(model)
    assert estimator.max_batch == 3
    for count in (1, 3, 5):
        boxes = np.tile(BOXES, (2, 1))[:count]
        poses, others = estimator(random_image(1), boxes), expected(random_image(1), boxes)
        largest = np.abs(others.scores).max()
        np.testing.assert_allclose(poses.scores / largest, others.scores / largest, rtol=0, atol=ROUNDED_PIXELS)
    estimator.warmup((64, 64))
    with pytest.raises(ValueError, match="flip_test: expected a file for an even number of crops, got one for 3"):
        estimator(random_image(1), BOXES, flip_test=True)
    with pytest.raises(ValueError, match="max_batch: expected the 3 that this file takes, got 4"):
        PoseEstimator.from_exported(path, max_batch=4)


def test_what_cannot_be_written(tmp_path, model, network, monkeypatch):
    for changes, message in (
        ({"model": smallest_model(dtype=jnp.bfloat16)}, "expected a model that computes in float32, got bfloat16"),
        ({"path": tmp_path / "model.bin"}, "expected a name that ends with .onnx"),
        ({"path": network}, "exists already"),
        ({"batch": 0}, "batch: expected at least 1, got 0"),
    ):
        with pytest.raises(ValueError, match=message):
            export.to_onnx(**{"model": model, "path": tmp_path / "new.onnx", **changes})
    monkeypatch.setattr(export.onnx, "LARGEST_FILE", 1000)
    with pytest.raises(ValueError, match="expected a model of at most 2 GiB"):
        export.to_onnx(model, tmp_path / "new.onnx")
    monkeypatch.undo()
    monkeypatch.setattr(importlib.util, "find_spec", lambda _: None)
    with pytest.raises(ImportError, match=r'is run before it is kept: pip install "vitpose-jax\[onnxruntime\]"'):
        export.to_onnx(model, tmp_path / "new.onnx")
    with pytest.raises(ImportError, match="needs the package openvino: pip install openvino"):
        export.load_onnx(network, "openvino")
    monkeypatch.undo()
    monkeypatch.setattr(write, "load_onnx", lambda *_: export.load_onnx(network))
    with pytest.raises(ValueError, match="the export failed its check"):
        export.to_onnx(smallest_model(hidden_act="relu"), tmp_path / "new.onnx", batch=2)
    assert list(tmp_path.iterdir()) == []


def test_damaged_and_foreign_files(tmp_path, network):
    def save(name: str, properties: dict[str, str]):
        shapes = [helper.make_tensor_value_info(key, TensorProto.FLOAT, [1]) for key in ("a", "b")]
        graph = helper.make_graph([helper.make_node("Relu", ["a"], ["b"])], "graph", shapes[:1], shapes[1:])
        proto = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=9)
        helper.set_model_props(proto, properties)
        onnx.save(proto, tmp_path / name)
        return tmp_path / name

    (tmp_path / "text.onnx").write_text("not a model")
    content = network.read_bytes()
    (tmp_path / "cut.onnx").write_bytes(content[:-500])
    # A bit of a weight: no runtime sees it.
    weight = np.asarray(0.125, np.float32).tobytes()
    proto = onnx.load(network)
    (kernel,) = (entry for entry in proto.graph.initializer if entry.name == "head.conv.kernel")
    kernel.raw_data = weight + kernel.raw_data[4:]
    onnx.save(proto, tmp_path / "flipped.onnx")
    proto = onnx.load(network)
    proto.doc_string = "more"
    onnx.save(proto, tmp_path / "more.onnx")
    for runtime in RUNTIMES:
        for path, message in (
            (tmp_path / "nowhere.onnx", "expected an ONNX file, found none"),
            (tmp_path, "expected an ONNX file, found a folder"),
            (tmp_path / "text.onnx", "cannot read it"),
            (tmp_path / "cut.onnx", "cannot read it"),
            (tmp_path / "flipped.onnx", "damaged or changed: its checksum is not the one in its metadata"),
            (tmp_path / "more.onnx", "damaged or changed: its checksum is not the one in its metadata"),
            (save("foreign.onnx", {}), "got another ONNX file"),
            (save("damaged.onnx", {KEY: "{}"}), "damaged metadata"),
        ):
            with pytest.raises(ValueError, match=message):
                export.load_onnx(path, runtime)
    for changes, message in (
        ({"runtime": "tvm"}, "runtime: expected one of onnxruntime, openvino, got 'tvm'"),
        ({"dtype": "bfloat16"}, "dtype: onnxruntime expects float32, got bfloat16"),
        ({"runtime": "openvino", "dtype": "int8"}, "dtype: openvino expects float32 or bfloat16 or float16, got int8"),
    ):
        with pytest.raises(ValueError, match=message):
            export.load_onnx(network, **changes)
    with pytest.raises(ValueError, match="expected the runtime onnxruntime or openvino for an ONNX file, got 'jax'"):
        PoseEstimator.from_exported(network, runtime="jax")
