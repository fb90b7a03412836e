"""configs/finetune_small_open.toml: fifty labelled photographs do the bundled model no harm."""

import json
import pathlib
import zipfile

import pytest

from tests.conftest import ROOT
from tests.support.training import lines
from tests.tolerances import FINE_TUNED
from vitpose_jax import PoseEstimator
from vitpose_jax.evaluation import evaluate, read_dataset
from vitpose_jax.training.config import read_config
from vitpose_jax.training.loop import fit

IMAGES, EVALUATED = 50, 40


@pytest.fixture
def mine(data, tmp_path) -> dict[str, str]:
    """Fifty labelled people of the training data, laid out as a user's."""
    document = json.loads((data / "train" / "person_keypoints.json").read_text())
    images = {image["id"]: image for image in document["images"] if image["file_name"].startswith("coco_")}
    people = [entry for entry in document["annotations"] if entry["image_id"] in images]
    people = [entry for entry in people if entry["num_keypoints"] >= 12][:IMAGES]
    document |= {"annotations": people, "images": [images[entry["image_id"]] for entry in people]}
    wanted = {image["file_name"] for image in document["images"]}
    (tmp_path / "images").mkdir()
    for path in (data / "train").glob("*.zip"):
        with zipfile.ZipFile(path) as archive:
            for entry in archive.infolist():
                name = pathlib.Path(entry.filename).name
                if name in wanted:
                    (tmp_path / "images" / name).write_bytes(archive.read(entry))
    (tmp_path / "train.json").write_text(json.dumps(document))
    return {"annotations": str(tmp_path / "train.json"), "images": str(tmp_path / "images")}


@pytest.mark.slow
def test_fifty_images_do_the_bundled_model_no_harm(data, mine, tmp_path):
    """A third of the steps, in batches of half the size: AP on other photographs stays."""
    photographs = {
        "annotations": str(data / "coco_val" / "person_keypoints.json"),
        "images": str(data / "coco_val" / "images"),
    }
    dataset = read_dataset("coco", photographs["annotations"], photographs["images"])
    estimator = PoseEstimator.from_pretrained(border="opencv")
    before = evaluate(estimator, dataset, flip_test=False, limit=EVALUATED).metrics["AP"]
    replaced = {
        "output": tmp_path / "output",
        **{f"data.0.{key}": value for key, value in mine.items()},
        **{f"evaluation.{key}": value for key, value in photographs.items()},
        "evaluation.limit": EVALUATED,
        "evaluation.flip_test": "false",
        "steps": 20,
        "batch_size": 8,
    }
    quoted = [f"{key}={value if str(value).isalnum() else repr(str(value))}" for key, value in replaced.items()]
    result = fit(read_config(ROOT / "configs" / "finetune_small_open.toml", quoted))
    losses = list(lines(tmp_path / "output").values())
    print(f"AP {before:.4f}, then {result.best['AP']:.4f}; losses {losses}")
    assert result.finished and result.best is not None
    assert result.best["AP"] > before - FINE_TUNED
