"""Live streams over the loopback: the newest frame is taken, and a stream that breaks off leaves whole results."""

import itertools
import json
import socket
import time

import pytest

from tests.support.cli import run
from tests.support.streams import Sender, breaking, free_port, sending
from tests.support.videos import write_video
from tests.support.walks import WalkerEstimator, crossing
from vitpose_jax import PoseEstimator
from vitpose_jax.video import VideoReader, reader, track, track_file
from vitpose_jax.video.reader import StreamEndedError

FRAMES = [frame.image for frame in crossing(30)]


class SlowWalkers(WalkerEstimator):
    """Needs the time of four frames for each."""

    def __call__(self, *arguments, **options):
        time.sleep(4 / 25)
        return super().__call__(*arguments, **options)


def test_the_newest_frame_of_a_stream_is_taken_and_its_end_is_an_end():
    lags, indices = [], []
    with sending(FRAMES) as (sender, port), VideoReader(f"tcp://127.0.0.1:{port}") as source:
        assert source.live and source.num_frames is None and source.size == (240, 480)
        for frame in track(SlowWalkers(), source):
            lags.append(sender.sent - frame.index)
            indices.append(frame.index)
            if len(indices) == 12:
                sender.stop()
    assert all(early < late for early, late in itertools.pairwise(indices))
    # The first frame waited while the source was opened; from then on results keep up with the sender.
    assert len(indices) >= 12 and indices[-1] > 2 * len(indices)
    # A second: a reader that took every frame would be 9 frames later with each of its results.
    assert max(lags[1:]) < 25 < 9 * len(lags), lags


def test_a_stream_that_is_reset_leaves_whole_results(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(PoseEstimator, "from_pretrained", lambda *_, **__: WalkerEstimator())
    clip = write_video(tmp_path / "in.ts", FRAMES, rate=25)
    video, lines = tmp_path / "out.mp4", tmp_path / "out.jsonl"
    with breaking(clip) as port:
        url = f"tcp://127.0.0.1:{port}"
        status, out, err = run(capsys, "video", url, "--output", video, "--json", lines, "--format", "coco")
    assert (status, err) == (1, f"vitpose-jax: {url}: the stream ended: Connection reset by peer\n")
    assert out.splitlines()[1:] == [str(video), str(lines), str(tmp_path / "out.coco.json")]
    entries = [json.loads(line) for line in lines.read_text().splitlines()]
    with VideoReader(video) as drawn:
        assert len(list(drawn)) == len(entries) >= 2
    results = json.loads((tmp_path / "out.coco.json").read_text())
    assert len(results) == sum(len(entry["poses"]) for entry in entries)
    status, _, err = run(capsys, "video", url, "--json", lines)
    assert status == 1 and "Connection refused" in err


def test_a_stream_that_falls_silent_is_given_up(tmp_path, monkeypatch):
    monkeypatch.setattr(reader, "TIMEOUT", 3.0)
    port = free_port(socket.SOCK_DGRAM)
    messages = []
    with Sender(f"udp://127.0.0.1:{port}?pkt_size=1316", FRAMES) as sender:

        class Walkers(WalkerEstimator):
            def __call__(self, *arguments, **options):
                if len(self.calls) == 3:
                    sender.stop()
                return super().__call__(*arguments, **options)

        summary = track_file(
            Walkers,
            f"udp://127.0.0.1:{port}",
            output=tmp_path / "out.mp4",
            json=tmp_path / "out.jsonl",
            report=messages.append,
        )
    assert summary.broke_off.startswith(f"udp://127.0.0.1:{port}: the stream ended: ")
    assert messages[-1] == summary.broke_off
    with VideoReader(tmp_path / "out.mp4") as drawn:
        assert len(list(drawn)) == summary.frames == len((tmp_path / "out.jsonl").read_text().splitlines()) >= 4


def test_in_python_a_broken_stream_is_an_error_after_its_frames(tmp_path):
    clip = write_video(tmp_path / "in.ts", FRAMES, rate=25)
    with breaking(clip) as port:
        frames = track(WalkerEstimator(), f"tcp://127.0.0.1:{port}")
        assert next(frames).track_ids.tolist() == [1, 2]
        with pytest.raises(StreamEndedError, match="the stream ended: Connection reset by peer"):
            list(frames)
