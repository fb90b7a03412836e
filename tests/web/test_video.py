"""Videos on the page: what comes back, and what a stranger's file must not do."""

import json

import gradio as gr
import pytest
from PIL import Image

from tests.support.videos import rectangles, write_video
from tests.support.walks import WalkerEstimator
from vitpose_jax.bundled import DEMO_IMAGE
from vitpose_jax.video import VideoReader
from vitpose_jax.web import files, video
from vitpose_jax.web.models import Models
from vitpose_jax.web.page import _handle_video
from vitpose_jax.web.video import create_video_tracker


@pytest.fixture
def clip(tmp_path):
    path = tmp_path / "clip.mp4"
    write_video(path, rectangles(7, (96, 128)))
    return str(path)


def tracker(**options):
    return create_video_tracker(Models({"walkers": WalkerEstimator()}), **options)


def track(track_video, path, **changes):
    options = {
        "model": "walkers",
        "dataset": "coco",
        "flip_test": False,
        "threshold": 0.3,
        "smooth": False,
        "every": 2.0,
    }
    return _handle_video(track_video, path, *{**options, **changes}.values())


def test_a_video_gives_a_drawn_one_and_json_lines(clip):
    track_video = tracker()
    drawn, lines = track(track_video, clip, smooth=True)
    with VideoReader(drawn) as reader:
        assert reader.size == (96, 128) and len(list(reader)) == 7
    with open(lines) as file:
        frames = [json.loads(line) for line in file]
    assert [frame["frame"] for frame in frames] == list(range(7))
    again, _ = track(track_video, clip)
    assert again != drawn, "the results of two visitors share a file"


def test_files_that_are_no_video_or_name_other_files_are_refused(tmp_path, clip):
    track_video = tracker()
    Image.open(DEMO_IMAGE).save(tmp_path / "image.png")
    lists = {
        "list.m3u8": f"#EXTM3U\n#EXT-X-TARGETDURATION:1\n#EXTINF:1,\n{clip}\n#EXT-X-ENDLIST\n",
        "list.mp4": f"#EXTM3U\n#EXT-X-TARGETDURATION:1\n#EXTINF:1,\n{clip}\n#EXT-X-ENDLIST\n",
        "concat.txt": f"ffconcat version 1.0\nfile {clip}\n",
        "concat.mp4": f"ffconcat version 1.0\nfile {clip}\n",
        "text.mp4": "not a video",
    }
    for name, content in lists.items():
        (tmp_path / name).write_text(content)
    for name in (*lists, "image.png"):
        with pytest.raises(gr.Error, match="expected a video file, as MP4, WebM or AVI") as raised:
            track(track_video, str(tmp_path / name))
        assert str(tmp_path) not in str(raised.value)
    with pytest.raises(gr.Error, match="Choose a video first"):
        track(track_video, None)


def test_a_video_that_is_too_long_is_refused(clip):
    track(tracker(max_frames=7), clip)
    with pytest.raises(gr.Error, match="at most 6 frames, got 7"):
        track(tracker(max_frames=6), clip)


def test_a_video_ends_with_the_server_and_leaves_nothing(clip, monkeypatch):
    models = Models({"walkers": WalkerEstimator()})
    folders = []

    def result_folder():
        folders.append(files.result_folder())
        return folders[-1]

    monkeypatch.setattr(video, "result_folder", result_folder)
    estimator, estimate = models.choose().batcher.estimator, WalkerEstimator.__call__

    def stop_at_the_third(self, *arguments, **options):
        if len(self.calls) == 2:
            models.stopping.set()
        return estimate(self, *arguments, **options)

    monkeypatch.setattr(WalkerEstimator, "__call__", stop_at_the_third)
    with pytest.raises(gr.Error, match="the server is shutting down"):
        track(create_video_tracker(models), clip)
    assert len(estimator.calls) == 3
    assert len(folders) == 1 and not folders[0].exists()
    with pytest.raises(gr.Error, match="the server is shutting down"):
        track(create_video_tracker(models), clip)
    assert len(folders) == 1
    models.close()
