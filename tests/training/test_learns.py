"""Training works end to end: a model finds the people that it was trained on."""

import json
import pathlib
import zipfile

import numpy as np
import pytest

from vitpose_jax import PoseEstimator
from vitpose_jax.evaluation import Dataset, object_keypoint_similarity, read_dataset
from vitpose_jax.training.config import from_dict
from vitpose_jax.training.loop import fit

PEOPLE = 64


@pytest.fixture
def people(data, tmp_path) -> dict[str, str]:
    """A dataset of photographs of one person each, with at least 12 labelled keypoints."""
    document = json.loads((data / "train" / "person_keypoints.json").read_text())
    names = {image["id"]: image["file_name"] for image in document["images"]}
    labelled = [entry for entry in document["annotations"] if entry["num_keypoints"] >= 12]
    document["annotations"] = [e for e in labelled if names[e["image_id"]].startswith("s40_")][:PEOPLE]
    image_ids = {entry["image_id"] for entry in document["annotations"]}
    document["images"] = [image for image in document["images"] if image["id"] in image_ids]
    (tmp_path / "people.json").write_text(json.dumps(document))
    wanted = {names[number] for number in image_ids}
    for path in (data / "train").glob("stanford40_*.zip"):
        with zipfile.ZipFile(path) as archive:
            for entry in archive.infolist():
                if pathlib.Path(entry.filename).name in wanted:
                    (tmp_path / pathlib.Path(entry.filename).name).write_bytes(archive.read(entry))
    return {"dataset": "coco", "annotations": str(tmp_path / "people.json"), "images": str(tmp_path)}


def mean_oks(estimator: PoseEstimator, dataset: Dataset) -> float:
    """Mean OKS over all people of a dataset, in their annotated boxes."""
    similarities = []
    stream = estimator.stream((sample.path, sample.boxes) for sample in dataset.samples)
    for sample, poses in zip(dataset.samples, stream, strict=True):
        one = sample.people
        visible, sigmas = one.visible > 0, dataset.protocol.skeleton.sigmas
        similarities += object_keypoint_similarity(poses.keypoints, one.keypoints, visible, one.areas, sigmas).tolist()
    assert len(similarities) == PEOPLE
    return float(np.mean(similarities))


@pytest.mark.slow
def test_a_small_model_memorises_its_people(people, tmp_path):
    """Crops, targets, the network, its gradients, the optimiser, export and decoding together, as in use.

    A shift by half a heatmap pixel in any of them would show.
    """
    result = fit(
        from_dict(
            {
                "output": str(tmp_path / "output"),
                "data": [{**people, "cache": "memory"}],
                "model": {
                    "image_size": [128, 96],
                    "hidden_size": 128,
                    "num_layers": 2,
                    "num_heads": 4,
                    "mlp_ratio": 2,
                },
                "steps": 240,
                "batch_size": 8,
                "sigma": 1.5,
                "augmentation": dict.fromkeys(("jitter", "flip", "half_body", "scale", "rotation"), 0.0),
                "optim": {
                    "learning_rate": 1e-3,
                    "layer_decay": 1.0,
                    "weight_decay": 0.0,
                    "drop_path": 0.0,
                    "warmup_steps": 20,
                    "schedule": "cosine",
                },
                "checkpoint": {"every_steps": 240},
                "loader": {"threads": 1},
            }
        )
    )
    estimator = PoseEstimator.from_pretrained(result.model, border="opencv", max_batch=16)
    assert mean_oks(estimator, read_dataset("coco", people["annotations"], people["images"])) >= 0.95
