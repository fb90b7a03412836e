"""The listings of transformers' page run with another import line, on checkpoints written here and without network."""

import io
import pathlib
import re
import runpy
import types

import huggingface_hub
import numpy as np
import pytest
import requests
from PIL import Image
from transformers import VitPoseImageProcessorPil

from tests.support import reference_rtdetr, reference_torch
from vitpose_jax.bundled import GROUP_IMAGE
from vitpose_jax.skeletons import COCO
from vitpose_jax.vitpose.quantized import Quantization

ROOT = pathlib.Path(__file__).parents[2]
EXAMPLES = ROOT / "examples" / "from_transformers"
NAMES = ("detect_and_draw", "quantize", "experts")

pytestmark = pytest.mark.usefixtures("compiled_once", "unchecked")


@pytest.fixture(scope="module")
def repositories(tmp_path_factory):
    """The folder of each repository of the Hub that a listing names: small ones, with random weights."""
    folder = tmp_path_factory.mktemp("hub")
    detector = reference_rtdetr.tiny_detector(id2label={0: "person"}, label2id={"person": 0})
    reference_rtdetr.save(detector, folder / "detector")
    for name, fields in (
        ("pose", {}),
        ("experts", {"num_experts": 6}),
        ("huge", {"num_experts": 6, "hidden_size": 128}),
    ):
        model = reference_torch.tiny_model(**fields)
        model.config.edges = [list(edge) for edge in COCO.edges]  # as the published ones have
        model.save_pretrained(folder / name)
        VitPoseImageProcessorPil(size={"height": 64, "width": 48}).save_pretrained(folder / name)
    return {
        "PekingU/rtdetr_r50vd_coco_o365": folder / "detector",
        "usyd-community/vitpose-base-simple": folder / "pose",
        "usyd-community/vitpose-plus-base": folder / "experts",
        "usyd-community/vitpose-plus-huge": folder / "huge",
    }


@pytest.fixture
def run(repositories, monkeypatch, tmp_path):
    def get(url, stream):
        return types.SimpleNamespace(raw=io.BytesIO(GROUP_IMAGE.read_bytes()))

    monkeypatch.setattr(requests, "get", get)
    monkeypatch.setattr(huggingface_hub, "snapshot_download", lambda name, **options: str(repositories[name]))
    monkeypatch.chdir(tmp_path)
    return lambda name: runpy.run_path(str(EXAMPLES / f"{name}.py"), run_name="__main__")


def assert_poses(values):
    poses = values["image_pose_result"]
    assert len(poses) == len(values["person_boxes"]) > 0
    assert all(pose["keypoints"].shape == (17, 2) for pose in poses)


@pytest.mark.slow
def test_detect_and_draw(run):
    values = run("detect_and_draw")
    assert_poses(values)
    assert values["xy"].shape == (len(values["person_boxes"]), 17, 2)
    frame = np.asarray(values["annotated_frame"])
    assert frame.shape == np.asarray(values["image"]).shape
    assert (frame != np.asarray(values["image"])).any()


@pytest.mark.slow
def test_quantize(run):
    values = run("quantize")
    assert_poses(values)
    assert values["model"].network.quantization == Quantization(kind="int4", group_size=128)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")  # PyTorch's, in np.array(tensor)
def test_experts(run):
    values = run("experts")
    assert_poses(values)
    assert isinstance(values["pose_image"], Image.Image)
    assert (values["numpy_image"] != np.asarray(values["image"])).any()


@pytest.mark.parametrize("name", NAMES)
def test_only_marked_lines_differ(name):
    """No line of a listing uses a name of this library, but for the import."""
    lines = (EXAMPLES / f"{name}.py").read_text().splitlines()
    changed = [line for line in lines if re.search(r"#.*\b(changed|added)\b", line)]
    others = [line for line in lines if "vitpose_jax" in line and line not in changed]
    imports = [line for line in others if line.startswith("from vitpose_jax.interop.transformers import ")]
    assert len(imports) == 1 and len(changed) <= 3
    assert [line for line in others if line not in imports and "bundled" not in line] == []


def test_every_listing_has_a_test():
    assert {path.stem for path in EXAMPLES.glob("*.py")} == set(NAMES)
