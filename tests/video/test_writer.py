import itertools

import av
import av.error
import numpy as np
import pytest

from tests.support.videos import rectangles, sound_seconds, write_video
from tests.tolerances import VIDEO_TIME
from vitpose_jax.video.reader import VideoReader
from vitpose_jax.video.writer import VideoWriter


def write(path, frames, times=None, **options) -> None:
    with VideoWriter(path, frames[0].shape[:2], 10, **options) as writer:
        for number, image in enumerate(frames):
            writer.add(image, number / 10 if times is None else times[number])


@pytest.mark.parametrize("ending", [".mp4", ".mov", ".mkv"])
def test_what_is_written_is_read_with_the_same_times(tmp_path, ending):
    times = [0.0, 0.1, 0.15, 0.7, 0.71, 1.5]
    path = tmp_path / f"out{ending}"
    write(path, rectangles(6), times)
    with VideoReader(path) as reader:
        frames = list(reader)
    np.testing.assert_allclose([frame.time for frame in frames], times, atol=VIDEO_TIME)
    for frame, image in zip(frames, rectangles(6), strict=True):
        assert np.abs(frame.image.astype(int) - image).mean() < 8
    assert [entry.name for entry in tmp_path.iterdir()] == [path.name]


def test_odd_sizes_are_padded_to_even_ones(tmp_path):
    write(tmp_path / "out.mp4", rectangles(2, (47, 63)))
    with VideoReader(tmp_path / "out.mp4") as reader:
        assert reader.size == (48, 64)


def test_audio_is_copied_as_far_as_the_frames_last(tmp_path):
    source = write_video(tmp_path / "in.mp4", rectangles(10), sound=1.0)
    write(tmp_path / "all.mp4", rectangles(10), audio=source)
    write(tmp_path / "half.mp4", rectangles(5), audio=source)
    assert abs(sound_seconds(tmp_path / "all.mp4") - sound_seconds(source)) < 0.1
    assert 0.4 < sound_seconds(tmp_path / "half.mp4") < 0.7


def test_a_source_without_audio_is_fine(tmp_path):
    source = write_video(tmp_path / "in.mp4", rectangles(2))
    write(tmp_path / "out.mp4", rectangles(2), audio=source)
    assert sound_seconds(tmp_path / "out.mp4") == 0


@pytest.mark.parametrize("interruption", [KeyboardInterrupt, SystemExit, ValueError])
def test_an_interruption_leaves_a_video_that_plays(tmp_path, interruption):
    def images():
        yield from rectangles(4)
        raise interruption

    def write_all() -> None:
        with VideoWriter(tmp_path / "out.mp4", (48, 64), 10) as writer:
            for number, image in enumerate(images()):
                writer.add(image, number / 10)

    with pytest.raises(interruption):
        write_all()
    with VideoReader(tmp_path / "out.mp4") as reader:
        assert len(list(reader)) == 4
    assert [entry.name for entry in tmp_path.iterdir()] == ["out.mp4"]


def test_no_frame_no_file(tmp_path):
    VideoWriter(tmp_path / "out.mp4", (48, 64), 10).close()
    assert list(tmp_path.iterdir()) == []


def test_an_earlier_file_stays_until_the_new_one_is_complete(tmp_path):
    path = tmp_path / "out.mp4"
    path.write_bytes(b"earlier")
    with VideoWriter(path, (48, 64), 10) as writer:
        writer.add(rectangles(1)[0], 0)
        assert path.read_bytes() == b"earlier"
    assert path.read_bytes() != b"earlier"


def test_bad_names_and_sizes(tmp_path):
    with pytest.raises(ValueError, match=r"out\.gif: expected a name that ends in one of \.mp4"):
        VideoWriter(tmp_path / "out.gif", (48, 64), 10)
    with pytest.raises(ValueError, match="size: expected a positive height and width"):
        VideoWriter(tmp_path / "out.mp4", (0, 64), 10)
    with (
        pytest.raises(ValueError, match="expected frames of 48 x 64 pixels, got one of 40 x 64"),
        VideoWriter(tmp_path / "out.mp4", (48, 64), 10) as writer,
    ):
        writer.add(np.zeros((40, 64, 3), np.uint8), 0)


def test_a_discarded_video_leaves_an_earlier_one_as_it_is(tmp_path):
    path = tmp_path / "out.mp4"
    path.write_bytes(b"earlier")
    with VideoWriter(path, (48, 64), 10) as writer:
        writer.add(rectangles(1)[0], 0)
        writer.discard()
        writer.add(rectangles(1)[0], 0.1)
    assert path.read_bytes() == b"earlier" and [entry.name for entry in tmp_path.iterdir()] == ["out.mp4"]


def test_audio_of_an_unknown_codec_is_left_out(tmp_path):
    source, said = write_video(tmp_path / "in.mkv", rectangles(4), sound=0.4), []
    content = source.read_bytes()
    assert content.count(b"A_AAC") == 1
    source.write_bytes(content.replace(b"A_AAC", b"A_XYZ"))
    write(tmp_path / "out.mp4", rectangles(4), audio=source, report=said.append)
    assert said == [f"{source}: its audio, of an unknown codec, does not fit into .mp4 and is left out"]
    with VideoReader(tmp_path / "out.mp4") as reader:
        assert len(list(reader)) == 4


def test_damaged_audio_does_not_end_the_run(tmp_path):
    source, said = write_video(tmp_path / "in.mp4", rectangles(10), sound=1.0), []
    with VideoWriter(tmp_path / "out.mp4", (48, 64), 10, audio=source, report=said.append) as writer:
        packets = writer._packets

        def damaged():
            yield from itertools.islice(packets, 4)
            raise av.error.InvalidDataError(1, "Invalid data")

        writer._packets = damaged()
        for number, image in enumerate(rectangles(10)):
            writer.add(image, number / 10)
    assert len(said) == 1 and "in.mp4: its audio is damaged, the rest is left out" in said[0]
    with VideoReader(tmp_path / "out.mp4") as reader:
        assert len(list(reader)) == 10
    assert 0.1 < sound_seconds(tmp_path / "out.mp4") < 0.5


def test_audio_whose_times_go_back_does_not_end_the_run(tmp_path):
    source, said = write_video(tmp_path / "in.mp4", rectangles(10), sound=1.0), []
    with VideoWriter(tmp_path / "out.mp4", (48, 64), 10, audio=source, report=said.append) as writer:
        packets = list(writer._packets)
        packets[4].pts = packets[4].dts = packets[1].dts
        writer._packets = iter(packets)
        for number, image in enumerate(rectangles(10)):
            writer.add(image, number / 10)
    assert len(said) == 1 and "in.mp4: its audio is damaged, the rest is left out" in said[0]
    with VideoReader(tmp_path / "out.mp4") as reader:
        assert len(list(reader)) == 10


def test_audio_that_cannot_be_opened_leaves_nothing_open(tmp_path, monkeypatch):
    closed = []
    monkeypatch.setattr(VideoWriter, "close", lambda self, close=VideoWriter.close: closed.append(close(self)))
    with pytest.raises(FileNotFoundError):
        VideoWriter(tmp_path / "out.mp4", (48, 64), 10, audio=tmp_path / "missing.mp4")
    assert closed == [None] and list(tmp_path.iterdir()) == []
