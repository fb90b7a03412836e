"""Programs ended at random moments: nothing is half-written, nothing is claimed that is not there, and a program that
is started again finishes with the files of one that was never ended.
"""

import json
import pathlib
import re
import shutil

import numpy as np
import pytest
from PIL import Image

from tests.support import kills
from tests.support.evaluation import SQUARE
from tests.support.models import random_model
from tests.support.reference_rtdetr import save, tiny_detector
from tests.support.training import assert_same_arrays, settings, tensors, write_people
from tests.support.videos import sound_seconds, write_video
from tests.tolerances import RESUMED_VIDEO
from vitpose_jax import VitPoseConfig, checkpoint
from vitpose_jax.bundled import DEMO_IMAGE
from vitpose_jax.video import VideoReader

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("compiled_once")]
KILLS = 20
TEMPORARY = re.compile(r"\..+\.\d+\.tmp")
# Measured anew in each run.
SPEED = "people_per_second"


@pytest.fixture(scope="module")
def work(tmp_path_factory) -> pathlib.Path:
    """Images, a model of them and their annotations."""
    folder = tmp_path_factory.mktemp("work")
    write_people(folder / "people", 12)
    checkpoint.save(random_model(VitPoseConfig(**SQUARE)), folder / "model")
    with Image.open(DEMO_IMAGE) as image:
        frames = [np.asarray(image.crop((2 * n, 0, 2 * n + 448, 448)).resize((224, 224))) for n in range(16)]
    write_video(folder / "clip.mp4", frames, rate=25, sound=0.6)
    (folder / "detector").mkdir()
    save(tiny_detector(2), folder / "detector")
    return folder


def predict(work: pathlib.Path, output: pathlib.Path, format: str) -> list[object]:
    options = ("--model", work / "model", "--output", output, "--boxes", "2,2,20,30", "--format", format, "--draw")
    return ["predict", work / "people" / "images", *options]


def detect(work: pathlib.Path, output: pathlib.Path) -> list[object]:
    options = (
        "--detector",
        work / "detector",
        "--output",
        output,
        "--threshold",
        0.01,
        "--max-detections",
        3,
        "--draw",
    )
    return ["detect", work / "people" / "images", *options]


def evaluate(work: pathlib.Path, output: pathlib.Path) -> list[object]:
    people = work / "people"
    data = ("--dataset", "coco", "--annotations", people / "people.json", "--images", people / "images")
    return [
        "evaluate",
        *data,
        "--model",
        work / "model",
        "--output",
        output,
        "--max-batch",
        1,
        "--ground-truth-boxes",
        "--resume",
    ]


def train(work: pathlib.Path, output: pathlib.Path) -> list[object]:
    people = work / "people"
    data = {"dataset": "coco", "annotations": str(people / "people.json"), "images": str(people / "images")}
    path = work / f"{output.name}.json"
    evaluation = {**data, "every_steps": 2, "limit": 2, "max_batch": 4, "flip_test": False}
    changes = {"evaluation": evaluation, "steps": 4, "checkpoint": {"every_steps": 1}}
    path.write_text(json.dumps(settings(data, output, **changes).to_dict()))
    return ["train", path, "--resume"]


def video(work: pathlib.Path, output: pathlib.Path) -> list[object]:
    """The bundled models: a track begins with a clear pose, which the others have not."""
    names = ("--output", output / "out.mp4", "--json", output / "out.jsonl", "--format", "coco")
    return ["video", work / "clip.mp4", *names, "--every", 3, "--smooth"]


def read(path: pathlib.Path):
    """The content of a file, which is whole."""
    if path.suffix == ".png":
        return np.asarray(Image.open(path)).tobytes()
    if path.suffix == ".json":
        return json.loads(path.read_text())
    return path.read_bytes()


def check_images(output: pathlib.Path, whole: pathlib.Path) -> None:
    """Every result is that of the whole run; settings stand beside results."""
    for path in files(output):
        assert read(path) == read(whole / path.name), path
    if files(output):
        assert (output / "settings.jsonl").is_file()


def check_coco(output: pathlib.Path, whole: pathlib.Path, name: str = "keypoints", drawing: str = "poses") -> None:
    """The images that are said to be done have their results."""
    if not output.is_dir():
        return
    entries = [entry for path in output.glob(f"{name}.json") for entry in read(path)]
    expected = read(whole / f"{name}.json")
    assert all(entry in expected for entry in entries)
    done = [image for path in output.glob(f"{name}.images.json") for image in read(path)]
    assert [entry for entry in expected if entry["file_name"] in done] == [
        entry for entry in entries if entry["file_name"] in done
    ]
    for image in done:
        assert (output / f"{pathlib.Path(image).stem}_{drawing}.png").is_file()
    for path in output.glob("*.png"):
        assert read(path) == read(whole / path.name)
    if files(output):
        assert list(output.glob("*settings.jsonl"))


def check_detections(output: pathlib.Path, whole: pathlib.Path) -> None:
    check_coco(output, whole, "detections", "detections")


def check_evaluation(output: pathlib.Path, whole: pathlib.Path) -> None:
    """The journal holds whole lines of the whole run; metrics stand for complete results."""
    for path in files(output):
        content = path.read_bytes()
        if path.name == "poses.jsonl":
            assert (whole / path.name).read_bytes().startswith(content)
        else:
            assert content == (whole / path.name).read_bytes(), path
    if (output / "metrics.json").exists():
        assert len(files(output)) == 4


def check_training(output: pathlib.Path, whole: pathlib.Path) -> None:
    """Whole lines of metrics; a model that has a configuration can be loaded."""
    if (output / "metrics.jsonl").exists():
        for line in (output / "metrics.jsonl").read_text().splitlines():
            json.loads(line)
    if (output / "config.json").exists():
        json.loads((output / "config.json").read_text())
    if (output / "best" / "config.json").exists():
        tensors(output / "best")


def frames_of(path: pathlib.Path) -> list[dict]:
    """The complete lines of a file of JSON lines, whole but for the last one."""
    return [json.loads(line) for line in path.read_bytes().splitlines(keepends=True) if line.endswith(b"\n")]


def times_of(path: pathlib.Path) -> list[float]:
    """The times of all frames of a video, which plays without a broken one."""
    with VideoReader(path) as reader:
        times = [frame.time for frame in reader]
        assert reader.broken == 0
    return times


def numbers_of(frame: dict) -> np.ndarray:
    points = [[[point[key] for key in "xy"] for point in pose["keypoints"]] for pose in frame["poses"]]
    return np.asarray(points, float)


def assert_same_frames(frames: list[dict], expected: list[dict]) -> None:
    """The same people with the same numbers; a resumed run continues from rounded keypoints."""
    assert len(frames) == len(expected)
    for one, other in zip(frames, expected, strict=True):
        assert (one["frame"], one["time"], one["detected"]) == (other["frame"], other["time"], other["detected"])
        assert [pose["track_id"] for pose in one["poses"]] == [pose["track_id"] for pose in other["poses"]]
        np.testing.assert_allclose(numbers_of(one), numbers_of(other), rtol=0, atol=RESUMED_VIDEO)


def check_video(output: pathlib.Path, whole: pathlib.Path) -> None:
    """Lines are those of the whole run; a video that has its name plays; settings stand beside lines."""
    expected = frames_of(whole / "out.jsonl")
    if (output / "out.jsonl").exists():
        frames = frames_of(output / "out.jsonl")
        assert_same_frames(frames, expected[: len(frames)])
        if frames:
            assert (output / "out.settings.jsonl").is_file()
    if (output / "out.mp4").exists():
        times, expected_times = times_of(output / "out.mp4"), times_of(whole / "out.mp4")
        assert times and times == expected_times[: len(times)]
    if (output / "out.coco.json").exists():
        assert len(read(output / "out.coco.json")) == len(read(whole / "out.coco.json"))


def assert_same_video(output: pathlib.Path, whole: pathlib.Path) -> None:
    assert sorted(path.name for path in files(output)) == sorted(path.name for path in files(whole))
    assert_same_frames(frames_of(output / "out.jsonl"), frames_of(whole / "out.jsonl"))
    assert (output / "out.jsonl").read_bytes().endswith(b"\n")
    assert times_of(output / "out.mp4") == times_of(whole / "out.mp4")
    assert sound_seconds(output / "out.mp4") == sound_seconds(whole / "out.mp4")
    assert len(read(output / "out.coco.json")) == len(read(whole / "out.coco.json"))
    assert read(output / "out.settings.jsonl") == read(whole / "out.settings.jsonl")


def files(folder: pathlib.Path) -> list[pathlib.Path]:
    """The files of a folder, temporary ones left out."""
    paths = sorted(folder.iterdir()) if folder.is_dir() else []
    return [path for path in paths if not TEMPORARY.fullmatch(path.name)]


def leftovers(folder: pathlib.Path) -> list[pathlib.Path]:
    return [path for path in folder.rglob(".*") if TEMPORARY.fullmatch(path.name)]


def assert_same_files(output: pathlib.Path, whole: pathlib.Path) -> None:
    """All files of two finished runs are equal, and none is temporary."""
    assert sorted(path.name for path in output.iterdir()) == sorted(path.name for path in whole.iterdir())
    for path in files(whole):
        assert read(output / path.name) == read(path), path


def assert_same_training(output: pathlib.Path, whole: pathlib.Path) -> None:
    """The same losses and models; checkpoints of the same steps."""
    names = {path.name for path in whole.iterdir()}
    assert {path.name for path in output.iterdir()} == names
    for folder in ("best", "checkpoints"):
        assert {path.name for path in (output / folder).iterdir()} == {path.name for path in (whole / folder).iterdir()}
    assert_same_arrays(tensors(output / "best"), tensors(whole / "best"))
    entries = [
        [{**json.loads(line), SPEED: None} for line in (folder / "metrics.jsonl").read_text().splitlines()]
        for folder in (output, whole)
    ]
    assert entries[0] == entries[1]


# Networks that take long to start.
FEW_KILLS = {detect: 8, video: 12}


@pytest.mark.parametrize(
    ("command", "check", "assert_same", "seed"),
    [
        pytest.param(lambda *a: predict(*a, "json"), check_images, assert_same_files, 1, id="predict json"),
        pytest.param(lambda *a: predict(*a, "coco"), check_coco, assert_same_files, 2, id="predict coco"),
        pytest.param(detect, check_detections, assert_same_files, 5, id="detect"),
        pytest.param(evaluate, check_evaluation, assert_same_files, 3, id="evaluate"),
        pytest.param(train, check_training, assert_same_training, 4, id="train"),
        pytest.param(video, check_video, assert_same_video, 6, id="video"),
    ],
)
def test_killed_programs_finish_as_others(work, tmp_path, command, check, assert_same, seed):
    whole = tmp_path / "whole"
    # The first one compiles.
    for _ in range(2):
        shutil.rmtree(whole, ignore_errors=True)
        ended = kills.run(command(work, whole), whole)
        assert ended.status == 0, ended.errors
    output = tmp_path / "output"
    for moment in kills.moments(FEW_KILLS.get(command, KILLS), seed, ended):
        before = leftovers(output)  # of a program that was killed
        result = kills.run(command(work, output), output, moment)
        # A training ends by itself after a step.
        expected = (0, 130, 143) if command is train and result.status != -9 else (0, kills.STATUS[moment.ending])
        assert result.status in expected, (moment, result.errors)
        assert "Traceback" not in result.errors, (moment, result.errors)
        assert "Exception ignored" not in result.errors, (moment, result.errors)
        check(output, whole)
        if result.status not in (0, -9):
            assert set(leftovers(output)) <= set(before), moment
        if result.status == 0:
            assert_same(output, whole)
            shutil.rmtree(output)
    result = kills.run(command(work, output), output)
    assert result.status == 0, result.errors
    assert_same(output, whole)
