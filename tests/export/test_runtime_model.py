"""Models whose networks run in ONNX Runtime or OpenVINO: the calls and the poses are those of JAX."""

import concurrent.futures
import importlib.util
import json
import subprocess
import sys
import weakref
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import onnx
import onnxruntime
import pyarrow.parquet as parquet
import pytest
from onnx import TensorProto

from tests.support.bulk import write_images
from tests.support.cli import run
from tests.support.images import random_image
from tests.support.models import SMALL_PLUS, smallest_model
from tests.tolerances import (
    BFLOAT16,
    BFLOAT16_MEDIAN,
    BFLOAT16_MOST,
    KEYPOINTS,
    NEARLY_ALL,
    REFINED,
    REFINED_MOST,
    ROUNDED_PIXELS,
    ROUNDED_SCORES,
)
from vitpose_jax import PoseEstimator, Poses, checkpoint, export
from vitpose_jax.bulk.settings import estimator_settings, hash_model
from vitpose_jax.bundled import DEFAULT_MODEL, DEMO_IMAGE
from vitpose_jax.datasets import read_dataset
from vitpose_jax.estimator import MAX_BATCH, MAX_BATCH_CPU
from vitpose_jax.evaluation import evaluate
from vitpose_jax.export import runtimes
from vitpose_jax.vitpose import ops
from vitpose_jax.web.overlays import Overlays

RUNTIMES = ("onnxruntime", "openvino")
KINDS: list[dict[str, Any]] = [{}, {"quantize": "int8"}, {"quantize": "int4", "group_size": 8}]
BOXES = np.asarray([[10, 10, 50, 60], [30, 20, 70, 80], [-5, 4, 60, 90]], np.float32)
# Of the astronaut, and parts of it.
PERSON = np.asarray([[15, 10, 345, 502], [100, 10, 240, 300]], np.float32)

pytestmark = pytest.mark.usefixtures("compiled_once")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("models") / "smallest"
    checkpoint.save(smallest_model(), folder)
    return folder


@pytest.fixture(scope="module")
def plus(tmp_path_factory):
    """Six experts, and two heads: the first and the fourth."""
    folder = tmp_path_factory.mktemp("models") / "plus"
    checkpoint.save(smallest_model(**SMALL_PLUS), folder)
    return folder


@pytest.fixture(scope="module")
def expected() -> Poses:
    return PoseEstimator.from_pretrained()(DEMO_IMAGE, PERSON, flip_test=True)


def check_like(poses: Poses, expected: Poses) -> None:
    """The poses of an untrained model, whose heatmaps have no clear peaks."""
    largest = np.abs(expected.scores).max()
    np.testing.assert_allclose(poses.scores / largest, expected.scores / largest, rtol=0, atol=ROUNDED_PIXELS)
    assert (np.abs(poses.keypoints - expected.keypoints).max(axis=-1) < REFINED).mean() > REFINED_MOST
    assert poses.skeletons == expected.skeletons


@pytest.mark.parametrize("runtime", RUNTIMES)
def test_a_photograph(expected, runtime):
    """The bundled model, whose kernels become float32."""
    estimator = PoseEstimator.from_pretrained(runtime=runtime)
    poses = estimator(DEMO_IMAGE, PERSON, flip_test=True)
    np.testing.assert_allclose(poses.scores, expected.scores, rtol=0, atol=ROUNDED_SCORES)
    assert (np.abs(poses.keypoints - expected.keypoints).max(axis=-1) < KEYPOINTS).mean() > NEARLY_ALL
    assert (estimator.runtime, estimator.dtype, estimator.device_kind) == (runtime, np.float32, "cpu")


def test_openvino_in_bfloat16(expected):
    poses = PoseEstimator.from_pretrained(runtime="openvino", dtype=jnp.bfloat16)(DEMO_IMAGE, PERSON, flip_test=True)
    np.testing.assert_allclose(poses.scores, expected.scores, rtol=0, atol=BFLOAT16 * expected.scores.max())
    distances = np.abs(poses.keypoints - expected.keypoints).max(axis=-1)[expected.visible(0.3)]
    assert np.median(distances) < BFLOAT16_MEDIAN and (distances < BFLOAT16_MOST).mean() > NEARLY_ALL


@pytest.mark.parametrize("runtime", RUNTIMES)
def test_quantized_kernels_stay_so(folder, runtime, monkeypatch):
    graphs = []
    load = runtimes._LOADERS[runtime]
    monkeypatch.setitem(
        runtimes._LOADERS, runtime, lambda content, *more: graphs.append(content) or load(content, *more)
    )
    for kind in KINDS:
        estimator, model = (PoseEstimator.from_pretrained(folder, runtime=name, **kind) for name in (runtime, "jax"))
        check_like(estimator(random_image(1), BOXES), model(random_image(1), BOXES))
        assert getattr(estimator.model.quantization, "kind", None) == kind.get("quantize")
    stored = [{tensor.data_type for tensor in onnx.load_from_string(graph).graph.initializer} for graph in graphs]
    integers = [types & {TensorProto.INT8, TensorProto.INT4} for types in stored]
    assert integers == [set(), {TensorProto.INT8}, {TensorProto.INT4}]


@pytest.mark.slow
@pytest.mark.parametrize("runtime", RUNTIMES)
def test_several_heads(plus, runtime):
    """Each dataset has its own network, which is made when it is first used; a call may mix them."""
    estimator, expected = PoseEstimator.from_pretrained(plus, runtime=runtime), PoseEstimator.from_pretrained(plus)
    assert estimator.config == expected.config and estimator.model._networks == {}
    image = random_image(1)
    for dataset in ("ap10k", None, 0, ["coco", "ap10k", "coco"], 3):
        for flip_test in (False, True):
            options = {"dataset": dataset, "flip_test": flip_test}
            check_like(estimator(image, BOXES, **options), expected(image, BOXES, **options))
        if dataset == "ap10k":
            assert list(estimator.model._networks) == [3]
    assert sorted(estimator.model._networks) == [0, 3]
    with pytest.raises(ValueError, match="has an expert for 'aic' but no head"):
        estimator(image, BOXES, dataset="aic")


def test_several_threads_make_a_network_once(plus, monkeypatch):
    made = []
    load = export.RuntimeModel._load
    monkeypatch.setattr(export.RuntimeModel, "_load", lambda *arguments: made.append(1) or load(*arguments))
    model = export.RuntimeModel(smallest_model(**SMALL_PLUS), "openvino")
    with concurrent.futures.ThreadPoolExecutor(8) as pool:
        networks = list(pool.map(model.network, [0, 3] * 8))
    assert len(made) == 2 and len(set(map(id, networks))) == 2


def test_the_model_in_jax_is_dropped():
    """Memory holds the weights once."""
    for runtime in RUNTIMES:
        model = smallest_model()
        wrapped, leaf = export.RuntimeModel(model, runtime), weakref.ref(model)
        del model
        assert leaf() is None and wrapped.quantization is None
    several = smallest_model(**SMALL_PLUS)
    assert export.RuntimeModel(several, "openvino").source is several


def test_onnxruntime_holds_no_second_copy(folder, monkeypatch):
    """Its sessions keep the bytes that they were made of; ours drops them."""
    sessions, session = [], onnxruntime.InferenceSession

    def make(*arguments, **options):
        sessions.append(session(*arguments, **options))
        return sessions[-1]

    monkeypatch.setattr(onnxruntime, "InferenceSession", make)
    PoseEstimator.from_pretrained(folder, runtime="onnxruntime")
    assert [session._model_bytes for session in sessions] == [None]


@pytest.mark.parametrize("runtime", RUNTIMES)
@pytest.mark.parametrize(("given", "threads"), [("1", 1), ("", None)])
def test_a_worker_takes_the_threads_that_it_was_given(folder, runtime, given, threads, monkeypatch):
    """Several workers of a machine share its processors; a number that is not given is the runtime's own choice."""
    PoseEstimator.from_pretrained(folder, runtime=runtime)
    import openvino  # the package imports it without its telemetry

    core, session, taken = openvino.Core.compile_model, onnxruntime.InferenceSession, []

    def compile_model(*arguments):
        compiled = core(*arguments)
        taken.append(arguments[-1]["INFERENCE_NUM_THREADS"] and compiled.get_property("INFERENCE_NUM_THREADS"))
        return compiled

    def open_session(*arguments, **options):
        opened = session(*arguments, **options)
        taken.append(opened.get_session_options().intra_op_num_threads)
        return opened

    monkeypatch.setenv("NPROC", given)
    monkeypatch.setattr(openvino.Core, "compile_model", compile_model)
    monkeypatch.setattr(onnxruntime, "InferenceSession", open_session)
    PoseEstimator.from_pretrained(folder, runtime=runtime)
    assert taken == [threads or 0]


def test_openvino_gets_the_batches_of_a_cpu_beside_a_gpu(folder, monkeypatch):
    monkeypatch.setattr(jax, "default_backend", lambda: "gpu")
    assert PoseEstimator.from_pretrained(folder).max_batch == MAX_BATCH
    assert PoseEstimator.from_pretrained(folder, runtime="openvino").max_batch == MAX_BATCH_CPU


def test_auto_is_the_dtype_that_the_processor_is_fastest_in(folder, monkeypatch):
    def dtype(runtime):
        return PoseEstimator.from_pretrained(folder, runtime=runtime, dtype="auto").dtype.name

    for flags, expected in (("sse avx512_bf16", "bfloat16"), ("avx512f", "float32")):
        with monkeypatch.context() as patch:
            patch.setattr(ops.Path, "read_text", lambda *_, flags=flags, **__: f"flags : fpu {flags}\n")
            ops.has_bfloat16_products.cache_clear()
            chosen = ops.has_bfloat16_products()
        assert chosen == (expected == "bfloat16")
        assert (dtype("onnxruntime"), dtype("openvino")) == ("float32", expected)
    ops.has_bfloat16_products.cache_clear()


def test_what_does_not_go_is_one_line_before_the_model_is_read(unchecked, tmp_path, monkeypatch):
    nowhere = tmp_path / "nowhere"
    for options, message in (
        ({"runtime": "tvm"}, "runtime: expected one of jax, onnxruntime, openvino, got 'tvm'"),
        ({"runtime": "onnxruntime", "dtype": "bfloat16"}, "dtype: onnxruntime expects float32, got bfloat16"),
        ({"runtime": "openvino", "dtype": "float64"}, "dtype: expected float32, bfloat16 or float16, got float64"),
        ({"runtime": "openvino", "param_dtype": "bfloat16"}, "param_dtype: expected float32 with the runtime openvino"),
        ({"runtime": "openvino", "devices": jax.devices()[:1]}, "devices: expected none with the runtime openvino"),
    ):
        with pytest.raises(ValueError, match=message) as raised:
            PoseEstimator.from_pretrained(nowhere, **options)
        assert "\n" not in str(raised.value)
    find = importlib.util.find_spec
    for missing, message in (
        (("openvino",), r'runtime openvino needs the package openvino: pip install "vitpose-jax\[openvino\]"'),
        (("onnx", "openvino"), r"needs the packages onnx and openvino: pip install"),
        (("onnxruntime",), r'runtime onnxruntime needs the package onnxruntime: pip install "vitpose-jax\[onnx\]"'),
    ):
        hidden = lambda name, *more, missing=missing: None if name in missing else find(name, *more)  # noqa: E731
        with monkeypatch.context() as patch:
            patch.setattr(importlib.util, "find_spec", hidden)
            with pytest.raises(ImportError, match=message):
                PoseEstimator.from_pretrained(nowhere, runtime=missing[-1])


def test_an_evaluation_names_a_missing_runtime_before_it_reads_annotations(tmp_path, capsys, monkeypatch):
    find = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name, *more: None if name == "openvino" else find(name))
    data = ("--annotations", tmp_path / "none.json", "--images", tmp_path, "--output", tmp_path / "out")
    options = ("--dataset", "coco", "--model", DEFAULT_MODEL, "--ground-truth-boxes", "--runtime", "openvino")
    status, _, said = run(capsys, "evaluate", *options, *data)
    assert status == 1 and "vitpose-jax[openvino]" in said and "none.json" not in said


def test_a_network_above_2_gib(folder, monkeypatch):
    monkeypatch.setattr(export.onnx, "LARGEST_FILE", 1000)
    with pytest.raises(ValueError, match=r"at most 2 GiB, got .*; quantize it, or use the runtime"):
        PoseEstimator.from_pretrained(folder, runtime="openvino")


def test_devices_of_the_class(folder):
    model = PoseEstimator.from_pretrained(folder, runtime="openvino").model
    with pytest.raises(ValueError, match="devices: expected none"):
        PoseEstimator(model, devices=jax.devices()[:1])
    with pytest.raises(ValueError, match="expected a model in JAX for heatmaps and attention"):
        Overlays(PoseEstimator(model))(random_image(0), BOXES, "heatmaps")


def test_settings_tell_runtimes_and_weights_apart(folder, plus, tmp_path):
    estimators = [PoseEstimator.from_pretrained(folder)]
    for source in (folder, plus):
        estimators += [PoseEstimator.from_pretrained(source, runtime=runtime) for runtime in RUNTIMES]
    other = smallest_model(**SMALL_PLUS, layer_norm_eps=0.5)
    estimators += [
        PoseEstimator(export.RuntimeModel(model, "openvino")) for model in (smallest_model(decoder="classic"), other)
    ]
    hashes = [estimator_settings(estimator)["model_sha256"] for estimator in estimators]
    assert len(set(hashes)) == len(hashes)
    written = export.to_onnx(smallest_model(), tmp_path / "smallest.onnx").path
    assert hash_model(export.ExportedModel.load(written, "onnxruntime")) == hashes[1]


def test_an_evaluation_is_resumed_in_the_same_runtime(tmp_path, sample_folder):
    checkpoint.save(smallest_model(), tmp_path / "model")
    samples = read_dataset("coco", sample_folder / "person_keypoints.json", sample_folder / "images")
    options = {"output": tmp_path / "out", "limit": 2, "model_name": "smallest"}
    for runtime, weights in (("openvino", {"quantize": "int8"}), ("jax", {})):
        estimator = PoseEstimator.from_pretrained(tmp_path / "model", runtime=runtime, border="opencv", **weights)
        if runtime == "jax":
            with pytest.raises(ValueError, match="cannot resume with other settings; runtime was 'openvino', now None"):
                evaluate(estimator, samples, resume=True, **options)
            continue
        settings = evaluate(estimator, samples, **options).settings
        assert (settings["runtime"], settings["weights"]) == ("openvino", "int8")


def test_predict_and_its_settings(capsys, folder, tmp_path):
    out, arguments = tmp_path / "out", ("predict", DEMO_IMAGE, "--model", folder, "--whole-image", "--output")
    status, _, said = run(capsys, *arguments, out, "--runtime", "openvino", "--quantize", "int8")
    assert (status, said) == (0, "")
    settings = json.loads((out / "settings.jsonl").read_text())
    assert (settings["runtime"], settings["quantize"]) == ("openvino", "int8")
    status, _, said = run(capsys, *arguments, out, "--runtime", "onnxruntime", "--quantize", "int8")
    assert status == 1 and 'runtime was "openvino", now "onnxruntime"' in said
    assert run(capsys, *arguments, tmp_path / "jax")[0] == 0
    # Older results have no such setting, and can be resumed.
    assert "runtime" not in json.loads((tmp_path / "jax" / "settings.jsonl").read_text())
    status, _, said = run(capsys, *arguments, tmp_path / "new", "--runtime", "onnxruntime", "--dtype", "bfloat16")
    assert status == 1 and said == "vitpose-jax: error: dtype: onnxruntime expects float32, got bfloat16\n"


def test_bulk_and_its_settings(capsys, folder, tmp_path):
    """A run that cannot begin leaves nothing that the next one would differ from."""
    write_images(tmp_path / "images", 3)
    arguments = ("bulk", tmp_path / "images", "--model", folder, "--whole-image", "--concurrency", "0", "--output")
    quantized = ("--runtime", "openvino", "--quantize", "int8")
    status, _, said = run(capsys, *arguments, tmp_path / "out", "--runtime", "onnxruntime", "--dtype", "bfloat16")
    assert status == 1 and said == "vitpose-jax: error: dtype: onnxruntime expects float32, got bfloat16\n"
    assert run(capsys, *arguments, tmp_path / "out", *quantized)[0] == 0
    settings = json.loads((tmp_path / "out" / "_run" / "settings.jsonl").read_text())
    assert (settings["runtime"], settings["quantize"]) == ("openvino", "int8") and "group_size" not in settings
    table = parquet.read_table(tmp_path / "out").to_pylist()
    estimator = PoseEstimator.from_pretrained(folder, runtime="openvino", quantize="int8")
    poses = estimator(table[0]["image"], "image")
    np.testing.assert_allclose(np.asarray(table[0]["keypoints"]), poses.keypoints[0], rtol=0, atol=KEYPOINTS)
    status, _, said = run(capsys, *arguments, tmp_path / "out")
    assert status == 1 and 'runtime was "openvino", now null' in said
    assert run(capsys, *arguments, tmp_path / "jax")[0] == 0
    assert "runtime" not in json.loads((tmp_path / "jax" / "_run" / "settings.jsonl").read_text())


def test_users_of_jax_import_no_runtime(folder):
    program = (
        "import sys\n"
        "from vitpose_jax import PoseEstimator\n"
        f"PoseEstimator.from_pretrained({str(folder)!r})\n"
        "assert not {'onnx', 'onnxruntime', 'openvino'} & set(sys.modules)\n"
    )
    subprocess.run([sys.executable, "-c", program], check=True)
