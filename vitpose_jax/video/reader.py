"""Reads the frames of videos, image sequences, cameras and network streams, with PyAV.

    file, URL, camera              packets -> decoder (its own threads) -> rotation -> Frame
    folder, pattern of images      load_image -> Frame

One frame is in memory at a time, besides those that the decoder holds.
"""

import itertools
import logging
import os
import pathlib
import re
import sys
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from jaxtyping import UInt8

from vitpose_jax.bulk.inputs import find_images
from vitpose_jax.images import load_image
from vitpose_jax.pixels.urls import scheme_of

if TYPE_CHECKING:
    import av

# Of image sequences, and of videos that do not say theirs.
DEFAULT_RATE = 25.0
# Seconds to wait for a network stream: to open, and for the next packet.
TIMEOUT = 20.0
# FFmpeg's names of cameras on each system.
_CAMERAS = {"linux": ("v4l2", "/dev/video{}"), "darwin": ("avfoundation", "{}:none"), "win32": ("dshow", "video={}")}
# A source is given up after this many errors of the container in a row.
_MAX_ERRORS = 10
_LIVE_SCHEMES = ("rtsp", "rtsps", "rtmp", "rtmps", "srt", "udp", "rtp", "tcp")

_log = logging.getLogger("vitpose_jax")


class VideoLimitError(ValueError):
    """A video is longer, or its frames are larger, than the caller allows."""


class StreamEndedError(ValueError):
    """A live source ended with an error, or sent nothing for too long."""


class Frame(NamedTuple):
    """One frame of a video.

    Attributes:
        index: its number in the source, counted from 0; a broken frame before it counts too.
        time: in seconds from the start of the source. Times increase strictly.
        image: RGB, upright: the rotation of the source is applied.
    """

    index: int
    time: float
    image: UInt8[np.ndarray, "height width 3"]


class VideoReader:
    """The frames of a source, in order: an iterable to use once, and a context manager.

    A frame that cannot be decoded is reported, counted in `broken` and passed over.

    Args:
        source: a video file; a folder of images or a glob pattern; "camera:0", the first camera; or a URL of rtsp,
            http and others that FFmpeg opens.
        rate: frames per second of an image sequence; of a camera, the rate to ask for. None for 25, and for the
            camera's own.
        max_frames: refuse a longer source: before the first frame if it says so, else when more frames come.
        max_pixels: refuse larger frames, before they are decoded where their size is known then.
        report: gets one line for each broken frame; by default the logger "vitpose_jax".

    Attributes:
        name: of the source, for messages.
        size: height and width in pixels, upright.
        rate: mean frames per second; what a source without one counts as.
        num_frames: as the source says; None if it does not.
        duration: in seconds; None if unknown.
        live: the source makes frames in real time: a camera, or a stream of a network.
        broken: the number of broken frames so far.

    Raises:
        ImportError: without PyAV.
        FileNotFoundError: if there is no such file.
        ValueError: for a file that is no video or has no video stream, for a source that cannot be opened, and for a
            rate or a limit that is not positive.
        VideoLimitError: a ValueError, for a source beyond `max_frames` or `max_pixels`.
    """

    def __init__(
        self,
        source: str | os.PathLike[str],
        *,
        rate: float | int | None = None,
        max_frames: int | None = None,
        max_pixels: int | None = None,
        report: Callable[[str], None] | None = None,
    ):
        if rate is not None and not 0 < rate < float("inf"):
            raise ValueError(f"rate: expected a positive number of frames per second, got {rate}")
        for name, limit in (("max_frames", max_frames), ("max_pixels", max_pixels)):
            if limit is not None and limit < 1:
                raise ValueError(f"{name}: expected 1 or more, got {limit}")
        self.name, self.broken, self.live = os.fspath(source), 0, False
        self._max_frames, self._max_pixels = max_frames, max_pixels
        self._report = report or _log.warning
        self._container: Any = None
        self._images: list[pathlib.Path] = []
        self._origin = 0.0
        path = pathlib.Path(self.name)
        if path.is_dir() or (not path.exists() and re.search(r"[*?\[]", self.name) and scheme_of(self.name) is None):
            self._open_images(rate)
        else:
            try:
                self._open_stream(rate)
            except BaseException:
                self.close()
                raise

    def __enter__(self) -> "VideoReader":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Close the source."""
        if self._container is not None:
            self._container.close()

    def __iter__(self) -> Iterator[Frame]:
        """The frames.

        Raises:
            StreamEndedError: a ValueError, if a live source ends with an error, or sends nothing for 20 seconds.
            VideoLimitError: at a frame beyond `max_frames`, or of more than `max_pixels`.
        """
        return self._read_images() if self._container is None else self._read_stream()

    def _open_images(self, rate: float | int | None) -> None:
        self._images = find_images([self.name])
        self._check_count(len(self._images))
        self.size: tuple[int, int] = load_image(self._images[0]).shape[:2]
        self._check_size(*self.size)
        self.rate = float(rate or DEFAULT_RATE)
        self.num_frames: int | None = len(self._images)
        self.duration: float | None = len(self._images) / self.rate

    def _open_stream(self, rate: float | int | None) -> None:
        av = import_av()
        target, options, format = self.name, {}, None
        scheme = scheme_of(self.name)
        camera = re.fullmatch(r"camera:(.+)", self.name)
        if camera:
            format, pattern = _CAMERAS.get(sys.platform, _CAMERAS["linux"])
            target, self.live = pattern.format(camera[1]), True
            options = {} if rate is None else {"framerate": str(rate)}
        elif scheme is not None:
            self.live = scheme in _LIVE_SCHEMES
            options = {"rtsp_transport": "tcp"} if scheme.startswith("rtsp") else {}
        elif not pathlib.Path(self.name).is_file():
            raise FileNotFoundError(f"{self.name}: no such file; expected a video, a folder of images, or camera:0")
        timeout = TIMEOUT if scheme is not None and not camera else None
        try:
            self._container = av.open(target, format=format, options=options, timeout=timeout)
        except (av.error.FFmpegError, OSError, ValueError) as error:
            device = f" ({target})" if camera else ""
            raise ValueError(f"{self.name}{device}: cannot be opened as a video: {_reason(error)}") from error
        videos = self._container.streams.video
        # A cover picture of a sound file counts as a stream of video.
        moving = [stream for stream in videos if not stream.disposition & av.stream.Disposition.attached_pic]
        if not moving:
            raise ValueError(f"{self.name}: has no video stream")
        self._stream = moving[0]
        # Threads for whole frames would report a broken frame late, and lose others with it.
        self._stream.thread_type = "SLICE"
        self.rate = float(self._stream.average_rate or self._stream.guessed_rate or DEFAULT_RATE)
        self.num_frames = self._stream.frames or None
        duration = self._container.duration
        self.duration = None if duration is None or self.live else duration / av.time_base
        if self.num_frames is None and self.duration is not None:
            self.num_frames = round(self.duration * self.rate) or None
        self._check_count(self.num_frames or 0)
        self._check_size(self._stream.codec_context.height, self._stream.codec_context.width)
        self._origin = (self._container.start_time or 0) / av.time_base
        self._frames = self._decode(av)
        # The first frame says which way up the video is.
        try:
            first = next(self._frames)
        except StopIteration:
            raise ValueError(f"{self.name}: has no frame that can be decoded") from None
        self._frames = itertools.chain([first], self._frames)
        self.size = first.image.shape[:2]

    def _read_images(self) -> Iterator[Frame]:
        for index, path in enumerate(self._images):
            try:
                image = load_image(path)
            except (ValueError, OSError) as error:
                self._count_broken(index, str(error))
                continue
            self._check_size(*image.shape[:2])
            yield Frame(index, index / self.rate, image)

    def _read_stream(self) -> Iterator[Frame]:
        yield from self._frames

    def _decode(self, av: Any) -> Iterator[Frame]:
        index, last = 0, -1.0
        for packet in self._packets(av):
            try:
                frames = packet.decode()
            except av.error.FFmpegError as error:
                self._count_broken(index, _reason(error))
                index += 1
                continue
            for frame in frames:
                # A header may say anything: all frames count, and each has its own size.
                self._check_count(index + 1, more=True)
                self._check_size(frame.height, frame.width)
                if frame.is_corrupt:
                    self._count_broken(index, "decoded with errors")
                    index += 1
                    continue
                # Without a time, or with one that goes back, the frame comes one period after the last.
                time = last + 1 / self.rate if frame.time is None else frame.time - self._origin
                if time <= last:
                    time = last + 1 / self.rate
                time = max(time, 0.0)
                yield Frame(index, time, _upright(frame))
                index, last = index + 1, time

    def _packets(self, av: Any) -> Iterator[Any]:
        """Packets of the video stream; errors of the container are counted and passed over."""
        packets, errors = self._container.demux(self._stream), 0
        while True:
            try:
                packet = next(packets)
            except StopIteration:
                return
            except av.error.FFmpegError as error:
                errors += 1
                if self.live:
                    raise StreamEndedError(f"{self.name}: the stream ended: {_reason(error)}") from error
                self.broken += 1
                self._report(f"{self.name}: damaged: {_reason(error)}")
                if errors >= _MAX_ERRORS:
                    return
                packets = self._container.demux(self._stream)
                continue
            errors = 0
            yield packet

    def _check_count(self, count: int, *, more: bool = False) -> None:
        if self._max_frames is not None and count > self._max_frames:
            raise VideoLimitError(
                f"{self.name}: expected a video of at most {self._max_frames} frames, got {'more' if more else count}"
            )

    def _check_size(self, height: int, width: int) -> None:
        if self._max_pixels is not None and height * width > self._max_pixels:
            raise VideoLimitError(
                f"{self.name}: expected frames of at most {self._max_pixels} pixels, got {height} x {width}"
            )

    def _count_broken(self, index: int, reason: str) -> None:
        self.broken += 1
        self._report(f"{self.name}: frame {index} is broken and passed over: {reason}")


def import_av() -> Any:
    """PyAV, with FFmpeg's own messages off.

    Raises:
        ImportError: saying what to install.
    """
    try:
        import av
        import av.error
        import av.logging
        import av.stream
    except ImportError:
        raise ImportError('video needs the package av: pip install "vitpose-jax[video]"') from None
    av.logging.set_level(av.logging.PANIC)
    return av


def _upright(frame: "av.VideoFrame") -> UInt8[np.ndarray, "height width 3"]:
    """The pixels, turned as the display matrix says: by a multiple of 90 degrees, counter-clockwise."""
    image = frame.to_ndarray(format="rgb24")
    quarters = round(frame.rotation / 90) % 4
    return np.ascontiguousarray(np.rot90(image, quarters)) if quarters else image


def _reason(error: BaseException) -> str:
    return getattr(error, "strerror", None) or str(error)
