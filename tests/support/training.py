"""Short trainings from files of drawn people, and what they write."""

import json
import pathlib

import numpy as np
from PIL import Image

from tests.support.fitted import draw_people
from vitpose_jax import checkpoint
from vitpose_jax.storage import parameters
from vitpose_jax.training.config import TrainConfig, from_dict

ONE_BLOCK = {
    "image_size": [64, 48],
    "hidden_size": 12,
    "num_layers": 1,
    "num_heads": 2,
    "mlp_ratio": 2,
    "decoder": "simple",
}


def write_people(folder: pathlib.Path, images: int) -> dict[str, str]:
    """A dataset in COCO's layout: drawn people, two to an image."""
    (folder / "images").mkdir(parents=True)
    document: dict[str, list] = {"images": [], "annotations": [], "categories": [{"id": 1, "name": "person"}]}
    for number in range(images):
        picture = draw_people(number, 2, (120, 160))
        name = f"{number:06}.png"
        Image.fromarray(picture.image).save(folder / "images" / name)
        height, width, _ = picture.image.shape
        document["images"].append({"id": number, "file_name": name, "height": height, "width": width})
        for box, keypoints in zip(picture.boxes.tolist(), picture.keypoints, strict=True):
            points = np.concatenate([keypoints, np.full((17, 1), 2)], axis=1)
            document["annotations"].append(
                {
                    "id": len(document["annotations"]),
                    "image_id": number,
                    "category_id": 1,
                    "bbox": box,
                    "area": 0.5 * box[2] * box[3],
                    "iscrowd": 0,
                    "keypoints": points.ravel().tolist(),
                    "num_keypoints": 17,
                }
            )
    (folder / "people.json").write_text(json.dumps(document))
    return {"dataset": "coco", "annotations": str(folder / "people.json"), "images": str(folder / "images")}


def settings(people: dict[str, str], output: pathlib.Path, **changes) -> TrainConfig:
    values = {
        "output": str(output),
        "data": [people],
        "model": ONE_BLOCK,
        "steps": 7,
        "batch_size": 4,
        "optim": {"warmup_steps": 2, "ema_decay": 0.5, "drop_path": 0.1, "learning_rate": 1e-3},
        "checkpoint": {"every_steps": 3},
        "log": {"every_steps": 1},
        "loader": {"threads": 1},
    }
    return from_dict({**values, **changes})


def lines(output: pathlib.Path, key: str = "loss") -> dict[int, float]:
    """A metric by step."""
    found = [json.loads(line) for line in (output / "metrics.jsonl").read_text().splitlines()]
    steps = [line["step"] for line in found if key in line]
    assert steps == sorted(set(steps))
    return {line["step"]: line[key] for line in found if key in line}


def tensors(folder: pathlib.Path | None) -> dict[str, np.ndarray]:
    assert folder is not None
    return {name: np.asarray(leaf) for name, leaf in parameters.flatten(checkpoint.load(folder)).items()}


def assert_same_arrays(first: dict, second: dict) -> None:
    assert first.keys() == second.keys()
    for name in first:
        np.testing.assert_array_equal(first[name], second[name], err_msg=str(name))
