"""What a training would fail on, or do wrong in silence, shows at its start."""

import dataclasses
import json
import logging
import pathlib

import jax
import numpy as np
import pytest
from PIL import Image

from tests.support.cli import run
from vitpose_jax.pipeline.packing import pack_images
from vitpose_jax.pipeline.regions import Regions
from vitpose_jax.skeletons import COCO, Skeleton
from vitpose_jax.training.augment import Augmentation, augment_crops, skeleton_arrays
from vitpose_jax.training.config import TrainConfig, from_dict
from vitpose_jax.training.loop import fit
from vitpose_jax.training.setup import load_eval_dataset, open_loader

MODEL = {
    "image_size": [64, 48],
    "hidden_size": 12,
    "num_layers": 1,
    "num_heads": 2,
    "mlp_ratio": 2,
    "decoder": "simple",
    "skeletons": ["thing"],
}


def write_things(folder: pathlib.Path, images: int = 2) -> dict[str, str]:
    """A dataset of three keypoints."""
    rng = np.random.default_rng(0)
    document: dict[str, list] = {"images": [], "annotations": [], "categories": [{"id": 1, "name": "thing"}]}
    for number in range(images):
        Image.fromarray(rng.integers(0, 256, (128, 96, 3), np.uint8)).save(folder / f"{number}.png")
        document["images"].append({"id": number, "file_name": f"{number}.png", "width": 96, "height": 128})
        document["annotations"].append(
            {
                "id": number,
                "image_id": number,
                "category_id": 1,
                "bbox": [20, 20, 50, 90],
                "area": 2000,
                "iscrowd": 0,
                "num_keypoints": 3,
                "keypoints": [30, 40, 2, 31, 42, 2, 32, 44, 2],
            }
        )
    (folder / "things.json").write_text(json.dumps(document))
    return {"dataset": "thing", "annotations": str(folder / "things.json"), "images": str(folder)}


def settings(folder: pathlib.Path, *names: str, evaluation: dict | None = None, **changes) -> TrainConfig:
    """A training of two steps; `names` are those of the keypoints."""
    things = write_things(folder)
    skeleton = {"name": "thing", "keypoints": list(names), "sigmas": [0.05] * len(names)}
    values = {
        "output": str(folder / "out"),
        "data": [things],
        "model": MODEL,
        "skeletons": [skeleton | changes.pop("skeleton", {})],
        "steps": 2,
        "batch_size": 1,
        "loader": {"threads": 1},
        **changes,
    }
    if evaluation is not None:
        values["evaluation"] = {**things, "every_steps": 2, **evaluation}
    config = from_dict(values)
    assert isinstance(config, TrainConfig)
    return config


@pytest.mark.slow
def test_sides_in_names_make_flip_pairs(tmp_path, capsys):
    config = settings(tmp_path, "nose", "leftEye", "rightEye", evaluation={})
    assert config.model.skeletons[0].flip_pairs == ((1, 2),)
    result = fit(config)
    assert result.finished and result.best is not None and np.isfinite(result.best["AP"])
    # `evaluate` knows the skeleton by the model.
    files = ("--images", tmp_path, "--annotations", tmp_path / "things.json", "--output", tmp_path / "evaluated")
    options = ("--model", result.model, "--ground-truth-boxes", *files)
    status, printed, error = run(capsys, "evaluate", "--dataset", "thing", *options)
    assert status == 0 and "2 boxes in 2 images" in printed, error
    status, _, error = run(capsys, "evaluate", "--dataset", "other", *options)
    assert status == 1 and "no dataset named 'other' to evaluate; expected one of coco, " in error and "thing" in error


@pytest.mark.parametrize(
    ("evaluation", "skeleton", "message"),
    [
        ({}, {}, r"evaluation\.flip_test: the skeleton 'thing' has no flip pairs.*; give flip_pairs, or set flip_test"),
        ({"flip_test": False}, {"sigmas": []}, "evaluation: the skeleton 'thing' has no sigmas.* each of its 3 keyp"),
    ],
)
def test_evaluations_that_cannot_succeed_are_refused(tmp_path, evaluation, skeleton, message):
    with pytest.raises(ValueError, match=message):
        settings(tmp_path, "a", "b", "c", evaluation=evaluation, skeleton=skeleton)


def test_the_command_says_so_in_one_line(tmp_path, capsys):
    things = write_things(tmp_path)
    (tmp_path / "train.toml").write_text(
        f"output = '{tmp_path / 'out'}'\nsteps = 2\nbatch_size = 1\n"
        '[model]\npreset = "small-simple"\nnum_layers = 1\nimage_size = [64, 48]\nskeletons = ["thing"]\n'
        '[[skeletons]]\nname = "thing"\nkeypoints = ["nose", "left_eye", "right_eye"]\n'
        + "".join(
            f"[{table}]\n" + "".join(f"{key} = '{value}'\n" for key, value in things.items())
            for table in ("[data]", "evaluation")
        )
    )
    status, _, error = run(capsys, "train", tmp_path / "train.toml")
    assert status == 1 and len(error.splitlines()) == 1
    assert "the skeleton 'thing' has no sigmas, which average precision needs" in error
    assert not (tmp_path / "out").exists()


def test_missing_images_of_the_evaluation_are_refused(tmp_path):
    config = settings(tmp_path, "nose", "left_eye", "right_eye", evaluation={})
    dataset = load_eval_dataset(config)
    assert dataset is not None and len(dataset.samples) == 2
    (tmp_path / "1.png").unlink()
    with pytest.raises(ValueError, match=r"evaluation: expected 2 images in .*, 1 are missing: .*1\.png"):
        load_eval_dataset(config)
    assert config.evaluation is not None
    load_eval_dataset(dataclasses.replace(config, evaluation=dataclasses.replace(config.evaluation, limit=1)))


def test_an_evaluation_in_which_every_image_fails_ends_the_run(tmp_path):
    config = settings(tmp_path, "nose", "left_eye", "right_eye", evaluation={})
    assert config.evaluation is not None
    broken = tmp_path / "broken"
    broken.mkdir()
    for number in range(2):
        (broken / f"{number}.png").write_text("text")
    config = dataclasses.replace(config, evaluation=dataclasses.replace(config.evaluation, images=str(broken)))
    with pytest.raises(ValueError, match=r"evaluation: 2 images failed: .*0\.png: .*expected an image"):
        fit(config)


# Mirroring


def test_a_skeleton_without_pairs_is_not_mirrored_and_says_so(tmp_path, caplog):
    with open_loader(settings(tmp_path, "a", "b", "c")):
        messages = [record.getMessage() for record in caplog.records if record.levelno == logging.WARNING]
        assert len(messages) == 1
        assert "the crops of thing are not mirrored: the skeleton 'thing' has no flip pairs" in messages[0]
    for change in ({"skeleton": {"flip_pairs": [[0, 1]]}}, {"augmentation": {"flip": 0.0}}):
        caplog.clear()
        with open_loader(settings(tmp_path, "a", "b", "c", **change)):
            assert not caplog.records


@pytest.mark.slow
def test_only_crops_of_skeletons_with_pairs_are_mirrored():
    skeletons = [COCO, Skeleton(name="x", keypoints=("a", "b", "c")), Skeleton(name="y", keypoints=("a",))]
    count = 8
    image = np.random.default_rng(0).integers(0, 256, (64, 48, 3), np.uint8)
    regions = Regions(np.full((count, 2), [24, 32], np.float32), np.full((count, 2), [48, 64], np.float32))
    keypoints = np.random.default_rng(1).uniform(5, 40, (count, 17, 2)).astype(np.float32)
    packed = pack_images([image])

    def crops(skeletons: list[Skeleton], flip: float) -> np.ndarray:
        flip_indices, upper_body = skeleton_arrays(skeletons)
        rows = np.arange(count) % len(skeletons)
        points = keypoints[:, : flip_indices.shape[1]]
        return np.asarray(
            augment_crops(
                jax.random.key(0),
                packed.select(np.zeros(count, int)),
                regions,
                points,
                np.ones(points.shape[:2]),
                flip_indices=flip_indices[rows],
                upper_body=upper_body[rows],
                size=(64, 48),
                augmentation=dataclasses.replace(Augmentation.none(), flip=flip),
            )[0]
        )

    upright, mirrored = crops(skeletons[:2], 0.0), crops(skeletons[:2], 1.0)
    for row in range(count):
        assert (mirrored[row] == upright[row]).all() == (row % 2 == 1)
    # A single keypoint is its own mirror image.
    assert (crops(skeletons[2:], 0.0) != crops(skeletons[2:], 1.0)).any()
