"""Exported models whose kernels are int8 or int4: the integers are in the file, and the file is the model."""

from typing import Any

import jax
import numpy as np
import onnx
import pytest
from onnx import TensorProto

from tests.support.cli import run
from tests.support.models import PLUS, SMALLEST, random_crops, random_model
from tests.tolerances import BFLOAT16, HEATMAPS
from vitpose_jax import VitPose, VitPoseConfig, checkpoint, export, from_pretrained
from vitpose_jax.export import runtimes
from vitpose_jax.storage import parameters
from vitpose_jax.storage.tensors import open_safetensors

KINDS: list[dict[str, Any]] = [{"quantize": "int8"}, {"quantize": "int4", "group_size": 8}]
RUNTIMES = ("onnxruntime", "openvino")

pytestmark = pytest.mark.usefixtures("compiled_once")


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    root = tmp_path_factory.mktemp("models")
    # Wide enough that kernels of blocks are most of the bytes.
    wide = {**SMALLEST, "hidden_size": 128, "num_layers": 4}
    checkpoint.save(random_model(VitPoseConfig(**wide)), root / "plain")
    checkpoint.save(random_model(VitPoseConfig(**{**SMALLEST, "hidden_size": 16, **PLUS})), root / "experts")
    return root


def expected(model: VitPose, crops: jax.Array, dataset: str | None = None) -> np.ndarray:
    return np.asarray(jax.jit(lambda model, crops: model(crops, dataset))(model, crops))


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_stablehlo(folders, tmp_path, kind, dtype):
    model = from_pretrained(folders / "plain", dtype=dtype, **kind)
    written = export.to_stablehlo(model, tmp_path / "small", platforms=("cpu",), batch=2)
    tensors = open_safetensors(written.path)
    for name, leaf in parameters.flatten(model).items():
        if name.endswith((".values", ".scale")):
            np.testing.assert_array_equal(np.asarray(tensors[name]), np.asarray(leaf), err_msg=name)
            assert tensors[name].dtype == leaf.dtype
    crops = random_crops(model.config, 2)
    heatmaps, reference = np.asarray(export.load(written.path)(crops)), expected(model, crops).astype(np.float32)
    tolerance = HEATMAPS if dtype == "float32" else BFLOAT16
    np.testing.assert_allclose(heatmaps, reference, rtol=0, atol=tolerance * np.abs(reference).max())
    assert written.weights.startswith(kind["quantize"])


@pytest.mark.parametrize("kind", KINDS)
def test_onnx(folders, tmp_path, kind):
    model = from_pretrained(folders / "plain", **kind)
    written = export.to_onnx(model, tmp_path / "small.onnx")
    assert tuple(check.runtime for check in written.checks) == RUNTIMES
    proto = onnx.load(written.path)
    onnx.checker.check_model(proto, full_check=True)
    stored = TensorProto.INT8 if kind["quantize"] == "int8" else TensorProto.INT4
    kernels = {tensor.name for tensor in proto.graph.initializer if tensor.data_type == stored}
    assert len(kernels) == 4 * 4 and all(name.endswith(".kernel") for name in kernels)
    assert proto.opset_import[0].version == (20 if kind["quantize"] == "int8" else 21)
    crops = random_crops(model.config, 3)
    reference = expected(model, crops)
    for runtime in RUNTIMES:
        heatmaps = export.load_onnx(written.path, runtime)(crops)
        np.testing.assert_allclose(heatmaps, reference, rtol=0, atol=HEATMAPS * np.abs(reference).max())


def test_an_expert(folders, tmp_path):
    """Its rows join those of the second layer, with their scales."""
    for kind in KINDS:
        model, crops = from_pretrained(folders / "experts", **kind), random_crops(VitPoseConfig(**SMALLEST), 3)
        written = export.to_onnx(model, tmp_path / f"{kind['quantize']}.onnx", dataset="aic")
        reference = expected(model, crops, "aic")
        for runtime in RUNTIMES:
            heatmaps = export.load_onnx(written.path, runtime)(crops)
            np.testing.assert_allclose(heatmaps, reference, rtol=0, atol=HEATMAPS * np.abs(reference).max())


@pytest.mark.slow
def test_sizes(folders, tmp_path):
    """The kernels of the blocks are a quarter and an eighth; the rest of the file is the same, up to its names."""
    sizes = {}
    for name, kind in (("float32", {}), ("int8", KINDS[0]), ("int4", KINDS[1])):
        model = from_pretrained(folders / "plain", **kind)
        for to, write in (("stablehlo", export.to_stablehlo), ("onnx", export.to_onnx)):
            sizes[to, name] = write(model, tmp_path / f"{name}.{to}").size
    config = VitPoseConfig.from_dict(from_pretrained(folders / "plain").config.to_dict())
    weights = config.num_layers * 12 * config.hidden_size**2
    for to in ("stablehlo", "onnx"):
        rest = sizes[to, "float32"] - 4 * weights
        assert abs(sizes[to, "int8"] - rest - weights) < 0.1 * weights
        assert abs(sizes[to, "int4"] - rest - weights / 2 - 4 * weights / 8) < 0.1 * weights


def test_activations_are_not_rounded(folders, tmp_path, monkeypatch):
    """Without the options that loading sets, both runtimes round them, and the export fails its check."""
    model = from_pretrained(folders / "plain", quantize="int8")
    with monkeypatch.context() as patch:
        patch.setattr(runtimes, "ACCURACY_LEVEL", "4")
        with pytest.raises(ValueError, match="the export failed its check: onnxruntime: heatmaps"):
            export.to_onnx(model, tmp_path / "small.onnx")
    monkeypatch.setattr(runtimes, "EXACT_PRODUCTS", {})
    with pytest.raises(ValueError, match="the export failed its check: openvino: heatmaps"):
        export.to_onnx(model, tmp_path / "small.onnx")
    assert list(tmp_path.iterdir()) == []


def test_the_command(folders, tmp_path, capsys):
    arguments = ("export", folders / "plain", "--to", "onnx", "--output", tmp_path / "small.onnx")
    status, printed, said = run(capsys, *arguments, "--quantize", "int4", "--group-size", 8)
    assert (status, said) == (0, "")
    assert "float32, weights of the blocks in int4 (groups of 8), any number of crops\n" in printed
    status, _, said = run(capsys, *arguments, "--group-size", 8, "--overwrite")
    assert status == 1 and "--group-size: expected it with --quantize int4" in said
