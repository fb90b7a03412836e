"""The second stage of the finder: crops, boxes that move, what changes in a detection, its files and its training."""

import contextlib
import dataclasses
import hashlib
import json
import re

import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from tests.support.boxes import TINY_FINDER, write_boxes
from tests.support.cli import run
from tests.support.models import TINY
from tests.tolerances import BLOCK, BOXES, PRINTED, REGRESSION, SECOND_STAGE, SHRUNK_CROP
from vitpose_jax import Detector, VitPose, VitPoseConfig, checkpoint
from vitpose_jax.bulk.settings import hash_model
from vitpose_jax.convert.detectors import load_detector, write_finder
from vitpose_jax.finder.config import FinderConfig, SecondStageConfig
from vitpose_jax.finder.modeling import PersonFinder
from vitpose_jax.finder.second_stage import (
    SecondStage,
    backbone_config,
    box_offsets,
    box_shapes,
    cut_crops,
    move_boxes,
)
from vitpose_jax.storage import parameters
from vitpose_jax.training.config import from_dict, read_config
from vitpose_jax.training.loop import fit
from vitpose_jax.training.second_stage.config import SecondStageTrainConfig
from vitpose_jax.training.second_stage.examples import Examples
from vitpose_jax.training.second_stage.fit import fit_second_stage
from vitpose_jax.training.second_stage.judge import Judge, calibrate, fit_judge, logistic_regression, split
from vitpose_jax.vitpose.modeling import Backbone

pytestmark = pytest.mark.usefixtures("compiled_once")

STAGE = SecondStageConfig(
    num_boxes=4, crop_size=(64, 48), hidden_size=24, num_layers=2, num_heads=3, token_features=4, hidden_features=16
)
FIELDS = {name: tuple(value) if isinstance(value, list) else value for name, value in TINY_FINDER.items()}
CONFIG = FinderConfig(**FIELDS)
CORNERS = st.tuples(*[st.floats(0, 300), st.floats(0, 300), st.floats(2, 200), st.floats(2, 200)])


def with_stage(finder: PersonFinder, **changes) -> PersonFinder:
    """The finder with a random second stage."""
    config = finder.config.replace(second_stage=dataclasses.replace(STAGE, **changes))
    model = PersonFinder(config, rngs=nnx.Rngs(1))
    return parameters.fill(model, {**parameters.flatten(model), **parameters.flatten(finder)})


@pytest.fixture(scope="module")
def finder() -> PersonFinder:
    """Random, but with scores that differ."""
    model = PersonFinder(CONFIG, rngs=nnx.Rngs(0))
    for head in model.heads:
        head.out.kernel[...] = head.out.kernel[...] * 5
    return model


@pytest.fixture(scope="module")
def photograph() -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (100, 128, 3), np.uint8)


def detections(model: PersonFinder, image: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    found = Detector(model, threshold=0, max_detections=20)(image)
    return found.boxes, found.scores


# Crops and boxes


def test_a_crop_at_the_scale_of_the_image_is_a_part_of_it(photograph):
    # 40 x 51.2 pixels, a little padding, become 48 x 64: every pixel is one of the image.
    stage = dataclasses.replace(STAGE, padding=1.25)
    box = np.array([[[20 + 4.8, 10 + 6.4, 20 + 48 - 4.8, 10 + 64 - 6.4]]], np.float32)
    (crop,) = np.asarray(cut_crops(jnp.asarray(photograph[None]), jnp.asarray(box), stage))[0]
    expected = (photograph[10:74, 20:68] / 255 - np.array(stage.image_mean)) / stage.image_std
    np.testing.assert_allclose(crop, expected, rtol=0, atol=SECOND_STAGE)


def test_a_crop_is_shrunk_as_pillow_does_and_black_outside_the_image(photograph):
    stage = dataclasses.replace(STAGE, padding=1.0)
    box = jnp.asarray([[[0, 0, 72, 96], [-24, -32, 24, 32]]], jnp.float32)
    shrunk, outside = np.asarray(cut_crops(jnp.asarray(photograph[None]), box, stage))[0]
    pixels = shrunk * np.array(stage.image_std) + stage.image_mean
    expected = Image.fromarray(photograph).resize((48, 64), Image.Resampling.BILINEAR, box=(0, 0, 72, 96))
    # Pillow rounds to whole numbers, twice.
    inner = (slice(1, -1), slice(1, -1))
    np.testing.assert_allclose(255 * pixels[inner], np.asarray(expected)[inner], rtol=0, atol=SHRUNK_CROP)
    black = -np.array(stage.image_mean) / stage.image_std
    np.testing.assert_allclose(outside[:31, :23], np.broadcast_to(black, (31, 23, 3)), rtol=0, atol=BLOCK)
    assert np.abs(outside[33:, 25:] - black).max() > 0.5


@given(first=CORNERS, second=CORNERS)
def test_offsets_move_a_box_to_another(first, second):
    boxes = [jnp.asarray([[x, y, x + w, y + h]], jnp.float32) for x, y, w, h in (first, second)]
    offsets = box_offsets(*boxes)
    assert np.abs(offsets).max() <= 2
    if np.abs(offsets).max() < 2:  # else it is farther than a box may move
        np.testing.assert_allclose(move_boxes(boxes[0], offsets), boxes[1], rtol=0, atol=BOXES)


def test_the_shape_of_a_box_is_relative_to_the_image():
    shapes = box_shapes(jnp.asarray([[10.0, 20, 60, 120]]), jnp.asarray([[200.0, 100]]))
    np.testing.assert_allclose(shapes, np.log([[0.5, 0.5, 0.5]]), rtol=0, atol=BLOCK)


# Detections


def test_a_second_stage_that_does_not_count_changes_nothing(finder, photograph):
    boxes, scores = detections(finder, photograph)
    assert len(boxes) > 6 and np.ptp(scores) > 0.1
    same = with_stage(finder, second_weight=0.0, box_weight=0.0)
    ours, our_scores = detections(same, photograph)
    np.testing.assert_allclose(ours, boxes, rtol=0, atol=BOXES)
    np.testing.assert_allclose(our_scores, scores, rtol=0, atol=SECOND_STAGE)


def test_the_best_boxes_are_judged_and_the_others_keep_their_place_behind_them(finder, photograph):
    boxes, scores = detections(finder, photograph)
    logits = np.log(scores / (1 - scores))
    refused = with_stage(finder, second_weight=0.0, bias=-50.0, rest_weight=0.5, rest_bias=1.0, box_weight=0.0)
    ours, our_scores = detections(refused, photograph)
    rest = 1 / (1 + np.exp(-(0.5 * logits[4:] + 1)))
    np.testing.assert_allclose(our_scores[: len(rest)], rest, rtol=0, atol=SECOND_STAGE)
    np.testing.assert_allclose(ours[: len(rest)], boxes[4:], rtol=0, atol=BOXES)


def test_the_second_stage_judges_each_box_by_its_crop(finder, photograph):
    model = with_stage(finder, first_weight=0.0, second_weight=1.0, box_weight=0.0, rest_bias=-50.0)
    first, _ = detections(finder, photograph)
    boxes, scores = detections(model, photograph)
    assert {tuple(np.round(box, 1)) for box in boxes[:4]} == {tuple(np.round(box, 1)) for box in first[:4]}
    corners = np.concatenate([boxes[:4, :2], boxes[:4, :2] + boxes[:4, 2:]], axis=1)
    square = np.zeros((1, 128, 128, 3), np.uint8)
    square[0, :100] = photograph
    crops = cut_crops(jnp.asarray(square), jnp.asarray(corners[None], jnp.float32), model.config.second_stage)
    logits, _ = model.second_stage(crops[0], box_shapes(jnp.asarray(corners), jnp.asarray([[100.0, 128]])))
    np.testing.assert_allclose(scores[:4], 1 / (1 + np.exp(-np.asarray(logits))), rtol=0, atol=SECOND_STAGE)


# Files


@pytest.mark.parametrize("int8", [False, True])
def test_a_folder_comes_back(finder, photograph, tmp_path, int8):
    model = with_stage(finder)
    write_finder(model, tmp_path / "finder", int8=int8)
    again = load_detector(tmp_path / "finder")
    assert again.config == model.config
    boxes, scores = detections(again, photograph)
    if not int8:
        for ours, expected in zip((boxes, scores), detections(model, photograph), strict=True):
            np.testing.assert_array_equal(ours, expected)
    assert len(boxes) and np.isfinite(boxes).all() and np.isfinite(scores).all()
    for name, tensor in parameters.flatten(model).items():
        rounding = np.abs(tensor).max() / 254 if int8 and name.endswith("kernel") else 0
        assert np.abs(parameters.flatten(again)[name] - tensor).max() <= rounding + BLOCK * bool(rounding), name


def test_a_finder_without_a_second_stage_has_the_file_that_it_had(finder, tmp_path):
    write_finder(finder, tmp_path / "finder")
    assert "second_stage" not in json.loads((tmp_path / "finder" / "config.json").read_text())
    assert load_detector(tmp_path / "finder").config == finder.config


def test_a_finder_without_a_second_stage_keeps_the_hash_of_earlier_results(finder):
    config = dataclasses.asdict(finder.config)
    del config["second_stage"]
    digest = hashlib.sha256(json.dumps(config, sort_keys=True, default=str).encode())
    for name, leaf in sorted(parameters.flatten(finder).items()):
        digest.update(f"{name} {leaf.dtype} {leaf.shape}".encode() + np.asarray(leaf).tobytes())
    assert hash_model(finder) == digest.hexdigest()
    assert hash_model(with_stage(finder)) != hash_model(with_stage(finder, bias=1.0)) != hash_model(finder)


def test_unknown_keys_of_a_later_version_can_be_passed_over(finder, tmp_path):
    write_finder(with_stage(finder), tmp_path / "finder")
    path = tmp_path / "finder" / "config.json"
    values = json.loads(path.read_text())
    values["second_stage"]["more"] = 1
    path.write_text(json.dumps(values))
    with pytest.raises(ValueError, match="more"):
        load_detector(tmp_path / "finder")
    with pytest.warns(UserWarning, match="more"):
        assert load_detector(tmp_path / "finder", strict=False).config.second_stage == STAGE


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"num_boxes": 0}, "num_boxes: expected a positive whole number, got 0"),
        ({"num_boxes": 1000}, "num_boxes: expected at most 256, got 1000"),
        ({"crop_size": [60, 48]}, r"crop_size: expected two multiples of 16, got \(60, 48\)"),
        ({"num_heads": 5}, "hidden_size: expected a multiple of num_heads 5, got 24"),
        ({"box_weight": 2.0}, "box_weight: expected a number from 0 to 1, got 2.0"),
        ({"padding": 0.5}, "padding: expected a number from 1 to 4, got 0.5"),
        ({"image_std": [1.0, 0.0, 1.0]}, "image_std"),
    ],
)
def test_a_damaged_configuration_is_refused(finder, tmp_path, changes, message):
    write_finder(with_stage(finder), tmp_path / "finder")
    path = tmp_path / "finder" / "config.json"
    values = json.loads(path.read_text())
    values["second_stage"].update(changes)
    path.write_text(json.dumps(values))
    with pytest.raises(ValueError, match=message):
        load_detector(tmp_path / "finder")


def test_a_second_stage_is_an_object_and_needs_one_label():
    with pytest.raises(ValueError, match="second_stage: expected an object, got 3"):
        FinderConfig.from_dict({**CONFIG.to_dict(), "second_stage": 3})
    with pytest.raises(ValueError, match="second_stage: expected one label with it, got 2"):
        FinderConfig(**{**FIELDS, "labels": ("person", "dog"), "second_stage": STAGE})


# Training


def examples(count: int = 2000, seed: int = 0) -> Examples:
    """Boxes whose overlap and offset show in one number of one token; the first stage knows little."""
    rng = np.random.default_rng(seed)
    tokens = rng.normal(size=(count, 12, 24)).astype(np.float16)
    overlaps = (rng.random(count) < 0.5).astype(np.float32)
    tokens[:, 3, 5] = 4 * overlaps - 2
    offsets = np.zeros((count, 4), np.float32)
    offsets[:, 1] = tokens[:, 7, 2] = rng.choice([-1, 1], count)
    return Examples(
        tokens=tokens,
        shapes=rng.normal(size=(count, 3)).astype(np.float32),
        logits=(0.3 * overlaps + rng.normal(size=count)).astype(np.float32),
        overlaps=overlaps,
        offsets=offsets,
        held_out=np.arange(count) % 4 == 0,
    )


def settings(output, **changes) -> SecondStageTrainConfig:
    values = {
        "task": "second_stage",
        "output": str(output),
        "data": [{"annotations": "-", "images": "-"}],
        "model": {"crop_size": [64, 48], "num_boxes": 4, "token_features": 4, "hidden_features": 16},
        "batch_size": 20,
        "trained_blocks": 1,
    }
    config = from_dict({**values, **changes})
    assert isinstance(config, SecondStageTrainConfig)
    return config


@pytest.fixture(scope="module", params=[0, 1])
def judge(request) -> Judge:
    """With a random backbone, of which no block, or the last, is trained."""
    backbone = Backbone(backbone_config(STAGE), rngs=nnx.Rngs(0))
    return split(backbone, STAGE, settings("-", trained_blocks=request.param))[1]


@pytest.mark.slow
def test_it_learns_what_a_person_is_and_the_calibration_trusts_it(judge, tmp_path):
    reports: list[str] = []
    changes = {"epochs": 10, "learning_rate": 1e-2, "backbone_learning_rate": 1e-3, "dropout": 0.0}
    before = parameters.flatten(judge)
    trained = fit_judge(judge, examples(), settings(tmp_path, **changes), reports.append)
    assert sum("epoch" in line for line in reports) == 10
    after = parameters.flatten(trained)
    assert all((after[name] != leaf).any() for name, leaf in before.items())
    unseen = examples(seed=1)
    logits, offsets = trained(jnp.asarray(unseen.tokens), jnp.asarray(unseen.shapes))
    assert ((np.asarray(logits) > 0) == (unseen.overlaps > 0.5)).mean() > 0.9
    assert np.abs(np.asarray(offsets)[:, 1] - unseen.offsets[:, 1])[unseen.overlaps > 0.5].mean() < 0.4
    stage = calibrate(STAGE, trained, examples())
    assert stage.second_weight > 0.5 and stage.second_weight > abs(stage.first_weight)
    assert 0 < stage.rest_weight < 1


def test_held_out_boxes_are_not_learnt_and_boxes_near_people_are_not_calibrated(judge, tmp_path):
    known = examples()
    known.tokens[known.held_out] = np.nan
    trained = fit_judge(judge, known, settings(tmp_path, epochs=1), lambda line: None)
    assert all(np.isfinite(leaf).all() for leaf in parameters.flatten(trained).values())
    near, plain = examples(), examples()
    rows = np.flatnonzero(near.held_out)[::3]
    near.logits[rows], near.overlaps[rows] = np.nan, 1 - near.overlaps[rows]
    keep = np.setdiff1d(np.arange(len(near.logits)), rows)
    assert calibrate(STAGE, trained, near) == calibrate(STAGE, trained, Examples(*(array[keep] for array in plain)))


def test_boxes_near_people_count_in_the_loss_as_much_as_they_shall(judge, tmp_path):
    known = examples(80)
    known.held_out[:], known.logits[:] = False, np.nan
    changes = {"epochs": 1, "batch_size": 80, "dropout": 0.0}
    losses = {}
    for weight in (0.0, 0.5, 0.75):
        reports: list[str] = []
        fit_judge(judge, known, settings(tmp_path, near_weight=weight, **changes), reports.append)
        losses[weight] = float(reports[-1].split()[-1])
    assert losses[0.5] - losses[0] == pytest.approx(2 / 3 * (losses[0.75] - losses[0]), abs=PRINTED)


def test_the_first_blocks_and_the_judge_are_the_second_stage(photograph):
    model = SecondStage(STAGE, dtype=jnp.float32, param_dtype=jnp.float32, rngs=nnx.Rngs(3))
    crops = jnp.asarray(np.random.default_rng(0).normal(size=(2, 64, 48, 3)), jnp.float32)
    shapes = jnp.zeros((2, 3))
    for blocks in (0, 1):
        first, judge = split(model.backbone, STAGE, settings("-", trained_blocks=blocks))
        judge = parameters.fill(
            judge,
            {
                **parameters.flatten(judge),
                **{f"head.{name}": leaf for name, leaf in parameters.flatten(model.head).items()},
            },
        )
        hidden = first(crops, output_hidden_states=True).hidden_states[-1]
        for ours, expected in zip(judge(hidden, shapes), model(crops, shapes), strict=True):
            np.testing.assert_allclose(ours, expected, rtol=0, atol=BLOCK)
    with pytest.raises(ValueError, match="trained_blocks: expected fewer than the backbone's 2, got 2"):
        split(model.backbone, STAGE, settings("-", trained_blocks=2))


def test_a_calibration_without_people_is_refused(judge):
    known = examples()
    known.overlaps[known.held_out] = 0
    with pytest.raises(ValueError, match=r"got weights .*; 0 are of people"):
        calibrate(STAGE, judge, known)


def test_a_loss_that_is_not_finite_is_one_message(judge, tmp_path):
    known = examples()
    known.tokens[~known.held_out] = np.nan
    with pytest.raises(ValueError, match="learning_rate: the loss is not finite after epoch 1"):
        fit_judge(judge, known, settings(tmp_path), lambda line: None)


def test_logistic_regression_finds_the_weights_behind_random_labels():
    rng = np.random.default_rng(0)
    features = rng.normal(size=(20_000, 2))
    chances = 1 / (1 + np.exp(-(2 * features[:, 0] - 0.5 * features[:, 1] + 0.7)))
    weights = logistic_regression(features, rng.random(len(features)) < chances)
    np.testing.assert_allclose(weights, [2, -0.5, 0.7], rtol=0, atol=REGRESSION)
    # Labels that a line separates have no largest likelihood.
    assert np.isfinite(logistic_regression(features, features[:, 0] > 0)).all()


@pytest.fixture(scope="module")
def sources(finder, tmp_path_factory) -> dict[str, object]:
    """A finder, a pose model and pictures."""
    folder = tmp_path_factory.mktemp("second-stage")
    write_finder(finder, folder / "finder")
    checkpoint.save(VitPose(VitPoseConfig(**{**TINY, "mlp_ratio": 4}), rngs=nnx.Rngs(0)), folder / "pose")
    boxes = write_boxes(folder / "boxes", [1, 2, 0, 1, 2, 1, 2, 1])
    return {"init": str(folder / "finder"), "backbone": str(folder / "pose"), "data": [boxes]}


@pytest.mark.slow
def test_a_finder_gets_its_second_stage_from_a_file_of_settings(
    sources, finder, photograph, tmp_path, capsys, monkeypatch
):
    # A random finder does not tell people from the rest, which the calibration refuses; it has tests of its own.
    monkeypatch.setattr("vitpose_jax.training.second_stage.fit.calibrate", lambda stage, head, examples: stage)
    lines = [f'output = "{tmp_path / "finder"}"', f'init = "{sources["init"]}"', f'backbone = "{sources["backbone"]}"']
    lines += ['task = "second_stage"', "epochs = 2", "batch_size = 16", "held_out = 3", "int8 = false", "boxes = 8"]
    lines += ["trained_blocks = 1", "least_score = 0"]
    lines += ["[[data]]", *(f'{name} = "{value}"' for name, value in sources["data"][0].items())]
    lines += ["[model]", "crop_size = [64, 48]", "num_boxes = 4", "token_features = 4", "hidden_features = 16"]
    (tmp_path / "settings.toml").write_text("\n".join(lines))
    status, out, err = run(capsys, "train", tmp_path / "settings.toml")
    assert status == 0 and str(tmp_path / "finder") in out and "epoch 2 of 2" in err
    model = load_detector(tmp_path / "finder")
    stage = model.config.second_stage
    assert (stage.num_boxes, stage.hidden_size, stage.num_layers, stage.num_heads) == (4, 24, 2, 3)
    pose = parameters.flatten(checkpoint.load(sources["backbone"]).backbone)
    ours, first = parameters.flatten(model), parameters.flatten(finder)
    for name, leaf in first.items():
        np.testing.assert_array_equal(ours[name], leaf)
    for name, leaf in pose.items():
        last = name.startswith(("blocks.", "norm."))
        frozen = leaf[:1] if name.startswith("blocks.") else leaf[: len(leaf) * (not last)]
        np.testing.assert_array_equal(ours[f"second_stage.backbone.{name}"][: len(frozen)], frozen)
        assert not last or (ours[f"second_stage.backbone.{name}"] != leaf).any(), name
    assert len(detections(model, photograph)[0])
    # It can be trained again, and a folder with a model is not written over.
    again = settings(tmp_path / "again", **{**sources, "init": str(tmp_path / "finder"), "epochs": 1, "held_out": 3})
    fit_second_stage(again, report=lambda line: None)
    with pytest.raises(ValueError, match="output: expected a folder without a model"):
        fit_second_stage(again, report=lambda line: None)


def test_images_are_looked_at_a_second_time_mirrored(sources, tmp_path):
    found = {}
    for mirrored in (False, True):
        reports: list[str] = []
        changes = {**sources, "mirrored": mirrored, "batch_size": 10_000, "held_out": 3}
        with pytest.raises(ValueError, match="data: expected 10000 boxes") as error:
            fit_second_stage(settings(tmp_path / "out", **changes), report=reports.append)
        held_out = int(re.search(r"boxes, (\d+) of them", str(error.value)).group(1))
        found[mirrored] = (int(reports[-1].split()[-2]), held_out)
        assert reports[-1].startswith("8 of 8 images")
    # Random scores: some boxes of the mirrored image are others. The same images are held out.
    for plain, both in zip(found[False], found[True], strict=True):
        assert 1.5 * plain < both < 2.5 * plain


@pytest.mark.slow
def test_a_limit_takes_some_of_all_images(sources, tmp_path):
    reports: list[str] = []
    changes = {**sources, "data": sources["data"] * 2, "most_boxes": 100, "held_out": 2, "epochs": 1}
    with contextlib.suppress(ValueError):  # so few boxes may not be enough for a calibration
        fit_second_stage(settings(tmp_path / "out", **changes), report=reports.append)
    (line,) = [line for line in reports if "images" in line]
    assert int(line.split()[0]) < 16 and line.split()[2] == "16"


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"batch_size": 10_000}, "data: expected 10000 boxes, and some in one image of 3, got "),
        ({"backbone": "person-finder"}, "person-finder"),
        ({"model": {"crop_size": [64, 64]}, "init": "vitpose-small-open"}, "vitpose-small-open"),
    ],
)
def test_what_does_not_fit_is_one_message(sources, tmp_path, changes, message):
    with pytest.raises(ValueError, match=message):
        fit_second_stage(settings(tmp_path / "out", **{**sources, "held_out": 3, **changes}), report=lambda line: None)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"data": []}, "data: expected one dataset or more"),
        ({"epochs": 0}, "epochs: expected at least 1, got 0"),
        ({"held_out": 1}, "held_out: expected at least 2, got 1"),
        ({"dropout": 1.0}, "dropout: expected a number from 0 to less than 1, got 1.0"),
        ({"learning_rate": 0.0}, "learning_rate: expected a number between 0 and 1, got 0.0"),
        ({"near_boxes": -1}, "near_boxes: expected at least 0, got -1"),
        ({"trained_blocks": -1}, "trained_blocks: expected at least 0, got -1"),
        ({"least_score": 1.0}, "least_score: expected a number from 0 to less than 1, got 1.0"),
        ({"steps": 3}, "steps"),
        ({"seed": -1}, "seed: expected 0 or more, got -1"),
        ({"output": ""}, "output: expected a folder"),
        ({"model": {"hidden_size": 768}}, "model.hidden_size: expected none"),
        ({"model": {"bias": 1.0}}, "model.bias: expected none"),
    ],
)
def test_wrong_settings_are_one_message(tmp_path, changes, message):
    with pytest.raises(ValueError, match=message):
        settings(**{"output": tmp_path, **changes})


def test_a_training_of_minutes_is_not_resumed(tmp_path, capsys):
    (tmp_path / "settings.toml").write_text(
        f'task = "second_stage"\noutput = "{tmp_path / "out"}"\n[[data]]\nannotations = "-"\nimages = "-"\n'
    )
    status, _, err = run(capsys, "train", tmp_path / "settings.toml", "--resume")
    assert status == 1 and "--resume" in err and "Traceback" not in err
    config = read_config(tmp_path / "settings.toml")
    with pytest.raises(ValueError, match="fit_second_stage"):
        fit(config)
