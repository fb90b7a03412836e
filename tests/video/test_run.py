import json

import numpy as np
import pytest
import tables

from tests.support.videos import sound_seconds, write_video
from tests.support.walks import WalkerEstimator, crossing
from vitpose_jax.interop.deeplabcut import read_deeplabcut
from vitpose_jax.skeletons import COCO
from vitpose_jax.video import VideoReader, run, track_file
from vitpose_jax.video.results import read_tracks, to_individuals

SETTINGS = {"model": "walkers"}


@pytest.fixture
def clip(tmp_path):
    return write_video(tmp_path / "in.mp4", [frame.image for frame in crossing(12)], rate=25, sound=0.48)


def lines(path) -> list[dict]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def load() -> WalkerEstimator:
    return WalkerEstimator()


def fail() -> WalkerEstimator:
    raise RuntimeError("loaded")


def forge_headers(monkeypatch) -> None:
    """Videos do not say how long they are."""
    check = VideoReader._check_count

    def check_frames(self, count: int, *, more: bool = False) -> None:
        if more:
            check(self, count, more=True)

    monkeypatch.setattr(VideoReader, "_check_count", check_frames)


def test_a_drawn_video_and_json_lines(tmp_path, clip):
    summary = track_file(load, clip, output=tmp_path / "out.mp4", json=tmp_path / "out.jsonl", settings=SETTINGS)
    assert (summary.frames, summary.resumed, summary.broken, summary.ids) == (12, 0, 0, 2)
    assert summary.written == [tmp_path / "out.mp4", tmp_path / "out.jsonl"]
    entries = lines(tmp_path / "out.jsonl")
    assert [entry["frame"] for entry in entries] == list(range(12))
    assert [[pose["track_id"] for pose in entry["poses"]] for entry in entries] == [[1, 2]] * 12
    with VideoReader(tmp_path / "out.mp4") as drawn, VideoReader(clip) as source:
        pairs = list(zip(drawn, source, strict=True))
    assert sound_seconds(tmp_path / "out.mp4") > 0.4
    for one, other in pairs:
        assert one.time == pytest.approx(other.time)
        changed = np.abs(one.image.astype(int) - other.image).max(axis=-1) > 60
        assert changed[70:].mean() > 0.005  # lines are there


def test_the_lines_are_read_as_poses(tmp_path, clip):
    track_file(load, clip, json=tmp_path / "out.jsonl", settings=SETTINGS)
    for record, frame in zip(read_tracks(tmp_path / "out.jsonl"), crossing(12), strict=True):
        assert (record.index, record.track_ids.tolist()) == (frame.index, [1, 2])
        assert record.poses.skeleton.name == "coco"
        assert abs(record.poses["nose"][0, 0] - (60 + 8 * frame.index)) <= 4


@pytest.mark.parametrize("end", [5, 7])
def test_an_ended_run_resumes_with_the_same_ids_and_ends_alike(tmp_path, clip, end):
    whole, path = tmp_path / "whole.jsonl", tmp_path / "out.jsonl"
    track_file(load, clip, json=whole, settings=SETTINGS)
    track_file(load, clip, json=path, settings=SETTINGS)
    kept = path.read_bytes().splitlines(keepends=True)
    path.write_bytes(b"".join(kept[:end]) + kept[end][:40])  # killed in the middle of a line
    summary = track_file(load, clip, json=path, settings=SETTINGS, output=tmp_path / "out.mp4")
    assert (summary.frames, summary.resumed) == (12 - end, end)
    assert [{k: v for k, v in entry.items() if k != "detected"} for entry in lines(path)] == [
        {k: v for k, v in entry.items() if k != "detected"} for entry in lines(whole)
    ]
    with VideoReader(tmp_path / "out.mp4") as reader:
        assert len(list(reader)) == 12


def test_a_complete_run_loads_nothing(tmp_path, clip):
    path = tmp_path / "out.jsonl"
    track_file(load, clip, json=path, settings=SETTINGS)
    summary = track_file(fail, clip, json=path, settings=SETTINGS, output=tmp_path / "later.mp4", formats=["coco"])
    assert (summary.frames, summary.resumed) == (0, 12)
    assert (tmp_path / "later.mp4").exists() and (tmp_path / "out.coco.json").exists()


def test_other_settings_are_refused_unless_overwritten(tmp_path, clip):
    path = tmp_path / "out.jsonl"
    track_file(load, clip, json=path, settings=SETTINGS)
    with pytest.raises(ValueError, match="other settings: every was 5, now 2"):
        track_file(load, clip, json=path, settings=SETTINGS, every=2)
    other = write_video(tmp_path / "other.mp4", [frame.image for frame in crossing(6)], rate=25)
    with pytest.raises(ValueError, match="other settings: source was"):
        track_file(load, other, json=path, settings=SETTINGS)
    assert track_file(load, clip, json=path, settings=SETTINGS, every=2, overwrite=True).frames == 12


@pytest.mark.parametrize("interruption", [KeyboardInterrupt, SystemExit])
def test_an_interruption_leaves_a_video_that_plays_and_complete_lines(tmp_path, clip, monkeypatch, interruption):
    class Interrupted(WalkerEstimator):
        def __call__(self, *arguments, **options):
            if len(self.calls) == 7:
                raise interruption
            return super().__call__(*arguments, **options)

    with pytest.raises(interruption):
        track_file(Interrupted, clip, output=tmp_path / "out.mp4", json=tmp_path / "out.jsonl", settings=SETTINGS)
    with VideoReader(tmp_path / "out.mp4") as reader:
        assert len(list(reader)) == 7
    assert len(lines(tmp_path / "out.jsonl")) == 7
    assert not [path for path in tmp_path.iterdir() if path.name.endswith(".tmp")]
    track_file(load, clip, output=tmp_path / "out.mp4", json=tmp_path / "out.jsonl", settings=SETTINGS)
    with VideoReader(tmp_path / "out.mp4") as reader:
        assert len(list(reader)) == 12


def test_an_error_of_the_drawing_is_raised(tmp_path, clip, monkeypatch):
    def broken(*_, **__):
        raise ValueError("no pen")

    monkeypatch.setattr(run, "draw_tracks", broken)
    with pytest.raises(ValueError, match="no pen"):
        track_file(load, clip, output=tmp_path / "out.mp4")


def test_other_formats(tmp_path, clip):
    path = tmp_path / "out.jsonl"
    summary = track_file(load, clip, json=path, settings=SETTINGS, formats=["coco", "openpose", "deeplabcut", "sleap"])
    names = ["out.coco.json", "out_openpose", "out.csv", "out.analysis.h5"]
    assert summary.written[1:] == [tmp_path / name for name in names]
    coco = json.loads((tmp_path / "out.coco.json").read_text())
    assert [(entry["image_id"], entry["track_id"]) for entry in coco] == [(n, i) for n in range(12) for i in (1, 2)]
    files = sorted((tmp_path / "out_openpose").iterdir())
    assert len(files) == 12 and files[3].name == "out_000000000003_keypoints.json"
    document = json.loads(files[3].read_text())
    assert [person["person_id"] for person in document["people"]] == [[1], [2]]
    assert (document["canvas_height"], document["canvas_width"]) == (240, 480)
    tracks = read_deeplabcut(tmp_path / "out.csv")
    assert tracks.individuals == ("person1", "person2") and tracks.frames == tuple(range(12))
    individuals = to_individuals(path)
    assert individuals.keypoints.shape == (12, 2, 17, 2)
    with tables.open_file(str(tmp_path / "out.analysis.h5")) as file:
        np.testing.assert_array_equal(file.root.tracks.read().transpose(3, 0, 2, 1), individuals.keypoints)
        assert file.root.edge_inds.read().tolist() == [list(edge) for edge in COCO.edges]


def test_a_file_that_holds_something_else(tmp_path, clip):
    path = tmp_path / "out.jsonl"
    path.write_text('{"a": 1}\n')
    with pytest.raises(ValueError, match=r"out\.jsonl|settings"):
        track_file(load, clip, json=path, settings=SETTINGS)
    with pytest.raises(ValueError, match=r"out\.jsonl:1: expected a frame with its poses"):
        list(read_tracks(path))
    path.write_text("no json\n")
    with pytest.raises(ValueError, match=r"out\.jsonl:1: expected a line of JSON"):
        list(read_tracks(path))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({}, "expected a drawn video to write, JSON lines, or both"),
        ({"output": "out.mp4", "formats": ["coco"]}, "formats: coco are made of the JSON lines"),
        ({"output": "out.gif"}, "out.gif: expected a name that ends in one of .mp4"),
        ({"json": "out.json"}, "out.json: expected a name that ends in .jsonl"),
        ({"output": "in.mp4", "overwrite": True}, "in.mp4: would replace the source"),
        ({"output": "taken.mp4"}, "taken.mp4: exists already"),
    ],
)
def test_names_that_cannot_be_written(tmp_path, clip, options, message):
    (tmp_path / "taken.mp4").write_bytes(b"")
    paths = {key: tmp_path / value if isinstance(value, str) else value for key, value in options.items()}
    with pytest.raises(ValueError, match=message):
        track_file(load, clip, **paths)
    assert {path.name for path in tmp_path.iterdir()} == {"in.mp4", "taken.mp4"}


@pytest.mark.parametrize("every", [1, 5])
def test_a_video_of_more_frames_than_allowed(tmp_path, clip, monkeypatch, every):
    paths = {"output": tmp_path / "out.mp4", "json": tmp_path / "out.jsonl"}
    with pytest.raises(ValueError, match=r"in\.mp4: expected a video of at most 11 frames, got 12"):
        track_file(fail, clip, **paths, settings=SETTINGS, max_frames=11)
    with pytest.raises(ValueError, match=r"in\.mp4: expected frames of at most 99 pixels, got 240 x 480"):
        track_file(fail, clip, **paths, settings=SETTINGS, max_pixels=99)
    assert [path.name for path in tmp_path.iterdir()] == ["in.mp4"]
    # A header that says less than there is.
    forge_headers(monkeypatch)
    with pytest.raises(ValueError, match=r"in\.mp4: expected a video of at most 11 frames, got more"):
        track_file(load, clip, **paths, settings=SETTINGS, max_frames=11, every=every)
    assert [path.name for path in tmp_path.iterdir()] == ["in.mp4"]
    assert track_file(load, clip, **paths, settings=SETTINGS, max_frames=12, max_pixels=240 * 480).frames == 12


def test_beyond_the_limit_earlier_lines_stay(tmp_path, clip, monkeypatch):
    path = tmp_path / "out.jsonl"
    track_file(load, clip, json=path, settings=SETTINGS)
    path.write_bytes(b"".join(path.read_bytes().splitlines(keepends=True)[:5]))
    forge_headers(monkeypatch)
    with pytest.raises(ValueError, match="at most 8 frames, got more"):
        track_file(load, clip, json=path, settings=SETTINGS, max_frames=8)
    assert len(lines(path)) == 8


def test_a_file_of_somebody_else_is_not_replaced(tmp_path, clip):
    path, video, table = tmp_path / "out.jsonl", tmp_path / "holiday.mp4", tmp_path / "out.csv"
    track_file(load, clip, json=path, settings=SETTINGS)
    (tmp_path / "out_openpose").mkdir()
    for foreign in (video, table, tmp_path / "out_openpose" / "mine.json"):
        foreign.write_bytes(b"mine")
    for options in ({"output": video}, {"formats": ["deeplabcut"]}, {"formats": ["openpose"]}):
        with pytest.raises(ValueError, match=r"(holiday\.mp4|out\.csv|out_openpose): exists already; overwrite it"):
            track_file(fail, clip, json=path, settings=SETTINGS, **options)
    assert video.read_bytes() == table.read_bytes() == b"mine"
    track_file(load, clip, json=path, settings=SETTINGS, output=video, formats=["deeplabcut"], overwrite=True)
    # Now they are this run's own.
    before = video.read_bytes(), table.read_bytes()
    assert b"mine" not in before
    summary = track_file(fail, clip, json=path, settings=SETTINGS, output=video, formats=["deeplabcut"])
    assert summary.written == [video, path, table] and table.read_bytes() == before[1]


def test_a_folder_that_moves_keeps_its_record(tmp_path, clip):
    (tmp_path / "a").mkdir()
    track_file(load, clip, json=tmp_path / "a/out.jsonl", output=tmp_path / "a/out.mp4", settings=SETTINGS)
    (tmp_path / "a").rename(tmp_path / "b")
    summary = track_file(fail, clip, json=tmp_path / "b/out.jsonl", output=tmp_path / "b/out.mp4", settings=SETTINGS)
    assert summary.resumed == 12


def test_a_model_that_cannot_be_loaded_loses_nothing(tmp_path, clip):
    path = tmp_path / "out.jsonl"
    with pytest.raises(RuntimeError, match="loaded"):
        track_file(fail, clip, json=path, output=tmp_path / "out.mp4", settings=SETTINGS)
    assert [path.name for path in tmp_path.iterdir()] == ["in.mp4"]
    track_file(load, clip, json=path, settings=SETTINGS)
    before = {path: path.read_bytes() for path in tmp_path.iterdir()}
    with pytest.raises(RuntimeError, match="loaded"):
        track_file(fail, clip, json=path, settings={"model": "typo"}, overwrite=True)
    assert {path: path.read_bytes() for path in tmp_path.iterdir()} == before


def test_a_refused_output_leaves_no_lines(tmp_path, clip):
    (tmp_path / "taken.mp4").write_bytes(b"mine")
    with pytest.raises(ValueError, match=r"taken\.mp4: exists already"):
        track_file(fail, clip, output=tmp_path / "taken.mp4", json=tmp_path / "out.jsonl", settings=SETTINGS)
    assert {path.name for path in tmp_path.iterdir()} == {"in.mp4", "taken.mp4"}


def test_a_complete_run_knows_its_people(tmp_path, clip):
    path = tmp_path / "out.jsonl"
    track_file(load, clip, json=path, settings=SETTINGS)
    assert track_file(fail, clip, json=path, settings=SETTINGS).ids == 2


@pytest.mark.parametrize("every", [1, 5])
def test_a_smoothed_run_that_resumes_equals_a_whole_one(tmp_path, clip, every):
    whole, path = tmp_path / "whole.jsonl", tmp_path / "out.jsonl"
    options = {"settings": SETTINGS, "smooth": True, "every": every}
    track_file(load, clip, json=whole, **options)
    track_file(load, clip, json=path, **options)
    entries = lines(whole)
    pose = entries[8]["poses"][0]
    assert [[point["x"], point["y"]] for point in pose["keypoints"]] != pose["unsmoothed"]
    for end in (3, 7):
        path.write_bytes(b"".join(path.read_bytes().splitlines(keepends=True)[:end]))
        summary = track_file(load, clip, json=path, **options, output=tmp_path / "out.mp4")
        assert (summary.frames, summary.resumed) == (12 - end, end)
        assert lines(path) == entries
