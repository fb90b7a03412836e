import json

import pytest
from PIL import Image

from tests.support.cli import run
from tests.support.videos import write_video
from tests.support.walks import WalkerEstimator, crossing
from vitpose_jax import PoseEstimator, load_image
from vitpose_jax.bundled import GROUP_IMAGE
from vitpose_jax.video import VideoReader


@pytest.fixture
def walkers(monkeypatch):
    """The command line loads an estimator that reads people out of the pixels."""
    monkeypatch.setattr(PoseEstimator, "from_pretrained", lambda *_, **__: WalkerEstimator())


@pytest.fixture
def clip(tmp_path):
    return write_video(tmp_path / "in.mp4", [frame.image for frame in crossing(6)], rate=25)


def test_video_and_lines(tmp_path, capsys, clip, walkers):
    output, lines = tmp_path / "out.mp4", tmp_path / "out.jsonl"
    options = ["--threshold", 0.5, "--line-width", 3, "--radius", 2, "--colour-by", "side", "--fade", "--no-numbers"]
    status, out, err = run(capsys, "video", clip, "--output", output, "--json", lines, "--format", "coco", *options)
    assert (status, err) == (0, "")
    first, *paths = out.splitlines()
    assert first.startswith("6 frames, 2 people, ") and first.endswith(" frames per second")
    assert paths == [str(output), str(lines), str(tmp_path / "out.coco.json")]
    entries = [json.loads(line) for line in lines.read_text().splitlines()]
    assert [[pose["track_id"] for pose in entry["poses"]] for entry in entries] == [[1, 2]] * 6
    with VideoReader(output) as reader:
        assert len(list(reader)) == 6


def test_a_second_run_skips_what_is_done(tmp_path, capsys, clip, walkers):
    lines = tmp_path / "out.jsonl"
    run(capsys, "video", clip, "--json", lines)
    before = lines.read_bytes()
    status, out, err = run(capsys, "video", clip, "--json", lines, "--smooth")
    assert status == 1 and "other settings: smooth was false, now true" in err and "Traceback" not in err
    status, out, err = run(capsys, "video", clip, "--json", lines)
    assert (status, lines.read_bytes()) == (0, before)
    assert out.startswith("0 frames, 2 people") and "6 frames were done already" in err
    assert run(capsys, "video", clip, "--json", lines, "--smooth", "--overwrite")[0] == 0


def test_a_mistake_with_overwrite_loses_nothing(tmp_path, capsys, clip, walkers, monkeypatch):
    lines, output = tmp_path / "out.jsonl", tmp_path / "holiday.mp4"
    run(capsys, "video", clip, "--json", lines)
    output.write_bytes(b"mine")
    before = lines.read_bytes()
    status, _, err = run(capsys, "video", clip, "--json", lines, "--output", output)
    assert status == 1 and "holiday.mp4: exists already; overwrite it or choose another name" in err
    monkeypatch.undo()
    status, _, err = run(capsys, "video", clip, "--json", lines, "--model", tmp_path / "typo", "--overwrite")
    assert status == 1 and "typo" in err and "Traceback" not in err
    assert (lines.read_bytes(), output.read_bytes()) == (before, b"mine")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["in.mp4"], "expected --output, --json or both"),
        (["in.mp4", "--output", "out.mp4", "--format", "coco"], "expected --json too"),
        (["in.mp4", "--output", "out.mp4", "--group-size", 8], "--group-size: expected it with --quantize int4"),
        (["missing.mp4", "--output", "out.mp4"], "missing.mp4: no such file"),
        (["text.mp4", "--output", "out.mp4"], "text.mp4: cannot be opened as a video"),
        (["in.mp4", "--output", "out.txt"], "out.txt: expected a name that ends in one of .mp4"),
        (["in.mp4", "--json", "out.jsonl", "--every", 0], "every: expected a number of frames, 1 or more, got 0"),
    ],
)
def test_mistakes_are_one_line(tmp_path, capsys, clip, walkers, monkeypatch, arguments, message):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "text.mp4").write_text("no video")
    status, _, err = run(capsys, "video", *arguments)
    assert status == 1 and message in err and err.count("\n") == 1


@pytest.mark.slow
def test_the_bundled_models_follow_the_tennis_players(tmp_path, capsys):
    """Six frames of a camera that moves over a photograph, as a folder of images."""
    photograph = load_image(GROUP_IMAGE)
    width = photograph.shape[1]
    (tmp_path / "frames").mkdir()
    for number in range(6):
        crop = photograph[:, 2 * number : width - 12 + 2 * number]
        Image.fromarray(crop).save(tmp_path / "frames" / f"{number}.png")
    lines = tmp_path / "out.jsonl"
    status, _, err = run(capsys, "video", tmp_path / "frames", "--json", lines, "--every", 3)
    assert status == 0, err
    ids = [[pose["track_id"] for pose in json.loads(line)["poses"]] for line in lines.read_text().splitlines()]
    assert len(ids) == 6 and len(ids[0]) >= 2
    # Those who are found first are followed through all frames.
    assert all(set(ids[0][:2]) <= set(row) for row in ids)
