"""Results of `predict`: what is said to be done is on the disk, whatever ends the run."""

import json
import os
import pathlib
import resource
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
from PIL import Image

from tests.support import programs
from tests.support.cli import run
from tests.support.images import random_image
from tests.support.models import TINY, random_model
from vitpose_jax import PoseEstimator, VitPoseConfig, checkpoint
from vitpose_jax.bulk import predict_files, results
from vitpose_jax.storage.atomic import remove_leftovers, write_whole

BOX = "20,10,60,90"
pytestmark = pytest.mark.usefixtures("compiled_once")


@pytest.fixture(scope="module")
def model(tmp_path_factory) -> pathlib.Path:
    folder = tmp_path_factory.mktemp("model") / "tiny"
    checkpoint.save(random_model(VitPoseConfig(**TINY)), folder)
    return folder


@pytest.fixture(scope="module")
def estimator(model) -> PoseEstimator:
    return PoseEstimator.from_pretrained(model, max_batch=4)


@pytest.fixture
def images(tmp_path) -> pathlib.Path:
    folder = tmp_path / "images"
    folder.mkdir()
    for number in (1, 2, 3):
        Image.fromarray(random_image(number)).save(folder / f"{number}.png")
    return folder


def documents(folder: pathlib.Path) -> tuple[list[dict], list[str]]:
    """The COCO results, and the images that are said to be done."""
    entries = json.loads((folder / "keypoints.json").read_text())
    return entries, json.loads((folder / "keypoints.images.json").read_text())


@pytest.mark.parametrize(("ending", "status"), [(signal.SIGTERM, 143), (signal.SIGKILL, -9)])
def test_a_run_that_is_ended_keeps_what_is_done(model, tmp_path, ending, status):
    folder, output = tmp_path / "images", tmp_path / "out"
    folder.mkdir()
    for number in range(400):
        Image.fromarray(np.zeros((40, 30, 3), np.uint8)).save(folder / f"{number}.png")
    options = ("--model", model, "--output", output, "--boxes", "2,2,20,30", "--format", "coco")
    with subprocess.Popen(
        programs.command("predict_slowly", "predict", folder, *options),
        env=programs.environment(),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    ) as process:
        while not (output / "keypoints.images.json").exists():
            if process.poll() is not None:
                pytest.fail(process.stderr.read())
            time.sleep(0.01)
        process.send_signal(ending)
        _, errors = process.communicate(timeout=60)
    assert process.returncode == status
    if ending == signal.SIGTERM:
        assert errors == "vitpose-jax: terminated; what is done is kept\n"
    entries, done = documents(output)
    assert 0 < len(done) < 400
    assert set(done) <= {entry["file_name"] for entry in entries}
    assert not list(output.glob(".*.tmp")) or ending == signal.SIGKILL


def test_the_same_settings_resume_and_others_are_refused(capsys, model, images, tmp_path):
    def predict(*changes):
        options = {"--model": model, "--output": tmp_path / "out", "--boxes": BOX, "--format": "coco"}
        options |= dict(zip(changes[::2], changes[1::2], strict=True))
        words = [word for pair in options.items() for word in pair if word is not True]
        return run(capsys, "predict", images, *words)

    assert predict()[0] == 0
    assert "3 of 3 images are done already" in predict()[2]
    for name, option, value in (
        ("decode", "--decode", "quarter"),
        ("flip_test", "--flip-test", True),
        ("boxes", "--boxes", "20,10,60,91"),
        ("dtype", "--dtype", "bfloat16"),
        ("model", "--model", "other/model"),
        ("format", "--format", "openpose"),
    ):
        status, _, said = predict(option, value)
        assert status == 1 and said.count("\n") == 1
        assert f"{name} was" in said and "overwrite them or choose another folder" in said
    assert predict("--decode", "quarter", "--overwrite", True)[0] == 0
    assert "3 of 3 images are done already" in predict("--decode", "quarter")[2]


def test_a_changed_file_of_boxes_is_noticed(estimator, images, tmp_path):
    boxes = tmp_path / "boxes.json"
    for number, expected in ((0, None), (1, "boxes was")):
        boxes.write_text(json.dumps({"1.png": [[10, 10, 50, 80 + number]]}))
        if expected is None:
            predict_files(estimator, [images], tmp_path / "out", boxes=boxes)
        else:
            with pytest.raises(ValueError, match=expected):
                predict_files(estimator, [images], tmp_path / "out", boxes=boxes)


def test_results_of_unknown_settings_are_not_taken_for_those_of_this_run(estimator, images, tmp_path):
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "1.json").write_text("{}")  # some annotation tool's
    with pytest.raises(ValueError, match=r"holds results without settings\.jsonl"):
        predict_files(estimator, [images], tmp_path / "out", boxes=[[1, 2, 30, 40]])


def test_settings_are_read_under_their_old_name(estimator, images, tmp_path):
    output, options = tmp_path / "out", {"boxes": [[1, 2, 30, 40]], "report": lambda _: None}
    predict_files(estimator, [images], output, **options)
    (output / "settings.jsonl").rename(output / "settings.json")
    assert len(predict_files(estimator, [images], output, **options).skipped) == 3
    with pytest.raises(ValueError, match='decode was "udp", now "quarter"'):
        predict_files(estimator, [images], output, decode="quarter", **options)
    (images / "3.png").rename(images / "settings.png")
    with pytest.raises(ValueError, match=r"settings\.png: its results would replace .*settings\.json"):
        predict_files(estimator, [images], output, **options)
    (images / "settings.png").rename(images / "4.png")
    predict_files(estimator, [images], output, **options)
    assert (output / "settings.jsonl").is_file() and not (output / "settings.json").exists()
    (images / "4.png").rename(images / "settings.png")
    assert [path.name for path in predict_files(estimator, [images], output, **options).written] == ["settings.png"]
    assert json.loads((output / "settings.json").read_text())["image"] == "settings.png"


def test_results_of_other_settings_do_not_stay_beside_new_settings(estimator, images, tmp_path):
    """A run that overwrites and is ended leaves no old result for one of its own."""
    output, options = tmp_path / "out", {"boxes": [[1, 2, 30, 40]], "report": lambda _: None}
    predict_files(estimator, [images], output, **options)
    (output / "notes.json").write_text('{"of": "another program"}')

    def end(*_):
        raise KeyboardInterrupt

    changes = {"decode": "quarter", "overwrite": True, **options}
    with pytest.raises(ValueError, match=r"3\.json: is of an image that is not in this run, and has other settings"):
        predict_files(estimator, [images / "1.png", images / "2.png"], output, **changes)
    with pytest.raises(KeyboardInterrupt):
        predict_files(estimator, [images], output, on_poses=end, **changes)
    assert sorted(path.name for path in output.iterdir()) == ["1.json", "notes.json", "settings.jsonl"]
    summary = predict_files(estimator, [images], output, decode="quarter", **options)
    assert [path.name for path in summary.written] == ["2.png", "3.png"]


def test_results_without_a_claim_are_computed_again(estimator, images, tmp_path):
    options = {"boxes": [[10, 10, 50, 80]], "format": "coco", "report": lambda _: None}
    predict_files(estimator, [images], tmp_path / "out", **options)
    before = documents(tmp_path / "out")
    (tmp_path / "out" / "keypoints.images.json").write_text('["1.png"]')
    summary = predict_files(estimator, [images], tmp_path / "out", **options)
    assert [path.name for path in summary.written] == ["2.png", "3.png"]
    assert documents(tmp_path / "out") == before


def test_a_full_disk_leaves_no_claim_without_results(estimator, images, tmp_path, monkeypatch):
    monkeypatch.setattr(results, "WRITE_SECONDS", 0.0)
    options = {"boxes": [[10, 10, 50, 80]], "format": "coco"}
    predict_files(estimator, [images / "1.png"], tmp_path / "out", **options)
    before = documents(tmp_path / "out")
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    size = (tmp_path / "out" / "keypoints.json").stat().st_size
    resource.setrlimit(resource.RLIMIT_FSIZE, (size + 10, limits[1]))
    try:
        with pytest.raises(OSError, match=r"File too large: '.*keypoints\.json'"):
            predict_files(estimator, [images], tmp_path / "out", report=lambda _: None, **options)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert documents(tmp_path / "out") == before
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == [
        "keypoints.images.json",
        "keypoints.json",
        "settings.jsonl",
    ]


def test_temporary_files_of_killed_processes_are_swept(tmp_path):
    with subprocess.Popen([sys.executable, "-c", ""]) as gone:
        gone.wait()
    names = [f".a.json.{gone.pid}.tmp", f".b.json.{os.getppid()}.tmp", ".c.json.tmp", "d.1.tmp", ".e.99999999999.tmp"]
    for name in names:
        (tmp_path / name).write_text("")
    assert remove_leftovers(tmp_path) == sorted([names[0], names[4]])
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted([names[1], names[2], names[3]])
    assert remove_leftovers(tmp_path / "missing") == []


def test_a_planted_link_is_not_followed(tmp_path):
    victim = tmp_path / "victim"
    victim.write_text("precious")
    (tmp_path / f".a.json.{os.getpid()}.tmp").symlink_to(victim)
    write_whole(tmp_path / "a.json", b"new")
    assert victim.read_text() == "precious"
    assert (tmp_path / "a.json").read_bytes() == b"new" and not (tmp_path / "a.json").is_symlink()


def test_a_name_as_long_as_the_file_system_allows_is_written(tmp_path):
    path = tmp_path / ("ä" * 125 + ".json")
    write_whole(path, b"1")
    assert path.read_bytes() == b"1"
