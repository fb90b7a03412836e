import contextlib
import functools
import http.server
import itertools
import subprocess
import sys
import threading

import av
import numpy as np
import pytest
from PIL import Image

from tests.support.videos import rectangles, write_video
from tests.tolerances import VIDEO_TIME
from vitpose_jax.video.reader import Frame, VideoLimitError, VideoReader, import_av


def read(source, **options) -> list[Frame]:
    with VideoReader(source, **options) as reader:
        return list(reader)


def test_frames_come_in_order_with_their_numbers_and_times(tmp_path):
    path = write_video(tmp_path / "a.mp4", rectangles(6))
    with VideoReader(path) as reader:
        assert (reader.size, reader.rate, reader.num_frames, reader.live) == ((48, 64), 10.0, 6, False)
        frames = list(reader)
    assert [frame.index for frame in frames] == list(range(6))
    np.testing.assert_allclose([frame.time for frame in frames], np.arange(6) / 10, atol=VIDEO_TIME)
    for frame, image in zip(frames, rectangles(6), strict=True):
        assert frame.image.dtype == np.uint8 and frame.image.shape == (48, 64, 3)
        assert np.abs(frame.image.astype(int) - image).mean() < 6


def test_variable_frame_rate_keeps_the_times(tmp_path):
    times = [0.0, 0.1, 0.15, 0.7, 0.71, 1.5]
    path = write_video(tmp_path / "a.mp4", rectangles(6), times)
    np.testing.assert_allclose([frame.time for frame in read(path)], times, atol=VIDEO_TIME)


def test_a_video_that_starts_late_starts_at_zero(tmp_path):
    path = write_video(tmp_path / "a.ts", rectangles(3), [5.0, 5.1, 5.2])
    np.testing.assert_allclose([frame.time for frame in read(path)], [0, 0.1, 0.2], atol=VIDEO_TIME)


@pytest.mark.parametrize(("rotation", "corner"), [(90, (-4, 4)), (180, (-4, -4)), (-90, (4, -4))])
def test_rotation_is_applied(tmp_path, rotation, corner):
    """The display matrix turns counter-clockwise: the red corner, top left, goes bottom left at 90 degrees."""
    path = write_video(tmp_path / "a.mp4", rectangles(2), rotation=rotation)
    with VideoReader(path) as reader:
        assert reader.size == ((48, 64) if rotation == 180 else (64, 48))
        image = next(iter(reader)).image
    assert image.shape[:2] == reader.size
    red, green, blue = image[corner].astype(int)
    assert red > 180 and max(green, blue) < 80


def test_odd_sizes(tmp_path):
    path = write_video(tmp_path / "a.mp4", rectangles(2, (47, 63)))
    assert read(path)[0].image.shape == (47, 63, 3)


def test_a_broken_frame_is_named_counted_and_passed_over(tmp_path):
    path = write_video(tmp_path / "a.avi", rectangles(5), codec="png")
    content = bytearray(path.read_bytes())
    starts = [at for at in range(len(content)) if content[at : at + 4] == b"\x89PNG"]
    content[starts[2] + 12 : starts[2] + 24] = bytes(12)
    path.write_bytes(content)
    messages = []
    with VideoReader(path, report=messages.append) as reader:
        frames = list(reader)
    assert [frame.index for frame in frames] == [0, 1, 3, 4] and reader.broken == 1
    assert len(messages) == 1 and "frame 2 is broken" in messages[0] and str(path) in messages[0]
    assert all(early.time < late.time for early, late in itertools.pairwise(frames))


def test_a_file_that_is_cut_off_gives_the_frames_that_are_there(tmp_path):
    path = write_video(tmp_path / "a.mkv", rectangles(12))
    path.write_bytes(path.read_bytes()[:-120])
    frames = read(path, report=lambda _: None)
    assert 0 < len(frames) < 12


def test_image_sequences_by_folder_and_by_pattern(tmp_path):
    for number, image in enumerate(rectangles(3)):
        Image.fromarray(image).save(tmp_path / f"frame_{number:03}.png")
    for source in (tmp_path, f"{tmp_path}/frame_*.png"):
        with VideoReader(source, rate=4) as reader:
            frames = list(reader)
        assert (reader.size, reader.num_frames, reader.duration) == ((48, 64), 3, 0.75)
        assert [frame.time for frame in frames] == [0, 0.25, 0.5]
        np.testing.assert_array_equal(frames[2].image, rectangles(3)[2])


def test_a_broken_image_of_a_sequence_is_passed_over(tmp_path):
    for number, image in enumerate(rectangles(3)):
        Image.fromarray(image).save(tmp_path / f"frame_{number:03}.png")
    (tmp_path / "frame_001.png").write_bytes(b"no image")
    messages = []
    assert [frame.index for frame in read(tmp_path, report=messages.append)] == [0, 2]
    assert len(messages) == 1 and "frame_001.png" in messages[0]


@pytest.mark.parametrize(
    ("name", "content", "error", "message"),
    [
        ("missing.mp4", None, FileNotFoundError, "no such file"),
        ("text.mp4", b"this is not a video" * 99, ValueError, "cannot be opened as a video"),
        ("empty.mp4", b"", ValueError, "cannot be opened as a video"),
    ],
)
def test_what_is_no_video(tmp_path, name, content, error, message):
    if content is not None:
        (tmp_path / name).write_bytes(content)
    with pytest.raises(error, match=f"{name}.*{message}"):
        VideoReader(tmp_path / name)


def test_a_file_of_sound_has_no_video_stream(tmp_path):
    av = import_av()
    with av.open(str(tmp_path / "a.wav"), "w") as container:
        stream = container.add_stream("pcm_s16le", rate=8000, layout="mono")
        frame = av.AudioFrame.from_ndarray(np.zeros((1, 800), np.int16), format="s16", layout="mono")
        frame.sample_rate = 8000
        container.mux(stream.encode(frame))
    with pytest.raises(ValueError, match="has no video stream"):
        VideoReader(tmp_path / "a.wav")


def test_a_stream_of_the_network(tmp_path):
    write_video(tmp_path / "a.mp4", rectangles(4))
    handler = functools.partial(_Quiet, directory=str(tmp_path))
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        assert len(read(f"http://127.0.0.1:{server.server_port}/a.mp4")) == 4
        with pytest.raises(ValueError, match=r"none\.mp4: cannot be opened"):
            VideoReader(f"http://127.0.0.1:{server.server_port}/none.mp4")
        server.shutdown()


class _Quiet(http.server.SimpleHTTPRequestHandler):
    def log_message(self, *_) -> None:
        pass

    def copyfile(self, source, outputfile) -> None:
        # FFmpeg ends a connection when it has what it wants.
        with contextlib.suppress(OSError):
            super().copyfile(source, outputfile)


def test_cameras_and_streams_that_are_not_there():
    with pytest.raises(ValueError, match=r"^camera:77 \(\S+77\S*\): cannot be opened as a video: "):
        VideoReader("camera:77")
    with pytest.raises(ValueError, match=r"^rtsp://127\.0\.0\.1:9/live: cannot be opened as a video: "):
        VideoReader("rtsp://127.0.0.1:9/live")


def test_rates_that_are_none(tmp_path):
    with pytest.raises(ValueError, match="rate: expected a positive number"):
        VideoReader(tmp_path, rate=0)


def test_without_pyav_the_extra_is_named():
    code = (
        "import sys; sys.modules['av'] = None\n"
        "from vitpose_jax.video.reader import import_av\n"
        "try: import_av()\nexcept ImportError as error: print(error)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert 'pip install "vitpose-jax[video]"' in done.stdout


def test_limits_of_frames_and_pixels(tmp_path):
    path = write_video(tmp_path / "in.mp4", rectangles(6))
    with VideoReader(path, max_frames=6, max_pixels=48 * 64) as reader:
        assert len(list(reader)) == 6
    with pytest.raises(VideoLimitError, match=r"in\.mp4: expected a video of at most 5 frames, got 6"):
        VideoReader(path, max_frames=5)
    with pytest.raises(VideoLimitError, match=r"in\.mp4: expected frames of at most 3071 pixels, got 48 x 64"):
        VideoReader(path, max_pixels=48 * 64 - 1)
    for name in ("max_frames", "max_pixels"):
        with pytest.raises(ValueError, match=f"{name}: expected 1 or more, got 0"):
            VideoReader(path, **{name: 0})


def test_limits_of_a_folder_of_images(tmp_path):
    for number, size in enumerate([(48, 64), (48, 64), (50, 64)]):
        Image.fromarray(rectangles(1, size)[0]).save(tmp_path / f"{number}.png")
    with pytest.raises(VideoLimitError, match="expected a video of at most 2 frames, got 3"):
        VideoReader(tmp_path, max_frames=2)
    with pytest.raises(VideoLimitError, match="expected frames of at most 3000 pixels, got 48 x 64"):
        VideoReader(tmp_path, max_pixels=3000)
    with VideoReader(tmp_path, max_pixels=48 * 64) as reader:
        frames = iter(reader)
        assert [next(frames).index, next(frames).index] == [0, 1]
        with pytest.raises(VideoLimitError, match="expected frames of at most 3072 pixels, got 50 x 64"):
            next(frames)


def test_a_source_that_does_not_say_how_long_it_is(tmp_path):
    path = tmp_path / "live.webm"
    with av.open(str(path), "w", options={"live": "1"}) as container:
        stream = container.add_stream("libvpx", rate=10)
        stream.height, stream.width = 48, 64
        for image in rectangles(6):
            container.mux(stream.encode(av.VideoFrame.from_ndarray(image, format="rgb24")))
        container.mux(stream.encode(None))
    with VideoReader(path, max_frames=6) as reader:
        assert reader.num_frames is None and len(list(reader)) == 6
    with VideoReader(path, max_frames=4) as reader:
        frames = iter(reader)
        assert [next(frames).index for _ in range(4)] == [0, 1, 2, 3]
        with pytest.raises(VideoLimitError, match="expected a video of at most 4 frames, got more"):
            next(frames)
