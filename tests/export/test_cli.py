"""`vitpose-jax export`."""

import pathlib

import numpy as np
import pytest

from tests.support.cli import run
from tests.support.models import smallest_model
from vitpose_jax import checkpoint, export

pytestmark = pytest.mark.usefixtures("compiled_once")


@pytest.fixture(scope="module")
def model(tmp_path_factory) -> pathlib.Path:
    folder = tmp_path_factory.mktemp("model") / "smallest"
    checkpoint.save(smallest_model(), folder)
    return folder


def test_stablehlo(capsys, model, tmp_path):
    file = tmp_path / "folder" / "path"
    options = ("--part", "path", "--flip-test", "--decode", "argmax", "--platforms", "cpu, tpu", "--batch", 2)
    status, printed, said = run(capsys, "export", model, "--to", "stablehlo", "--output", file, *options)
    assert (status, said) == (0, "")
    first, second, third = printed.splitlines()
    assert first.startswith(f"file         {file}, 0.1 MB, written in ")
    assert second == "holds        path, coco, float32, 2 crops, for cpu, tpu"
    assert third.startswith("jax          differs from the model at most: keypoints by 0.0e+00, scores by 0.0e+00 (")
    metadata = export.load(file).metadata
    assert metadata.options["decode"] == "argmax" and metadata.outputs[0]["shape"] == [2, 17, 2]
    status, _, said = run(capsys, "export", model, "--to", "stablehlo", "--output", file)
    assert status == 1 and "exists already" in said


def test_onnx(capsys, model, tmp_path):
    arguments = ("export", model, "--to", "onnx", "--output", tmp_path / "model.onnx")
    status, printed, said = run(capsys, *arguments)
    assert (status, said) == (0, "")
    assert [line.split()[0] for line in printed.splitlines()] == ["file", "holds", "onnxruntime", "openvino", "beside"]
    assert "float32, any number of crops\n" in printed
    assert export.load_onnx(tmp_path / "model.onnx")(np.zeros((2, 32, 16, 3))).shape == (2, 8, 4, 17)
    assert run(capsys, *arguments, "--overwrite")[0] == 0


@pytest.mark.parametrize(
    ("to", "options", "message"),
    [
        ("onnx", ("--part", "path"), "--part path: not with --to onnx"),
        ("onnx", ("--platforms", "cpu"), "--platforms: not with --to onnx"),
        ("onnx", ("--dtype", "bfloat16"), "expected a model that computes in float32, got bfloat16"),
        ("stablehlo", ("--flip-test",), "--flip-test: expected --part path with it"),
        ("stablehlo", ("--decode", "argmax"), "--decode: expected --part path with it"),
        ("stablehlo", ("--platforms", "abacus"), "platforms: expected one or more of cpu, cuda, rocm, tpu"),
        ("stablehlo", ("--dataset", "ap10k"), "no dataset 'ap10k' in this model"),
    ],
)
def test_mistakes_are_one_line(capsys, model, tmp_path, to, options, message):
    status, printed, said = run(capsys, "export", model, "--to", to, "--output", tmp_path / f"x.{to}", *options)
    assert (status, printed) == (1, "")
    assert said.startswith("vitpose-jax: error: ") and message in said and said.count("\n") == 1
    assert list(tmp_path.iterdir()) == []
