"""Writes frames as H.264 in mp4, with their own times and the audio of the source.

The file has a temporary name until it is complete, as all results have. It is completed however the writing ends, by
Ctrl-C too, so a run that is interrupted leaves a video that plays. A fragmented mp4 would also survive a process that
is killed without notice, but editors and browsers seek badly in it.
"""

import fractions
import logging
import os
import pathlib
from collections.abc import Callable
from typing import Any

import numpy as np
from jaxtyping import UInt8

from vitpose_jax.storage.atomic import remove_leftovers
from vitpose_jax.video.reader import import_av

# Times are written in this unit, which holds those of common rates exactly.
TIME_BASE = fractions.Fraction(1, 90_000)
# x264's measure of quality: 18 looks like the source, 23 is its default.
CRF = 20
FORMATS = {".mp4": "mp4", ".m4v": "mp4", ".mov": "mov", ".mkv": "matroska"}

_log = logging.getLogger("vitpose_jax")


class VideoWriter:
    """Writes a video; a context manager. `close` completes the file, with all frames so far.

    Args:
        path: of the file, which ends in .mp4, .m4v, .mov or .mkv. An existing one is replaced at the end.
        size: height and width of the frames in pixels. An odd one is padded by one pixel, as H.264 wants.
        rate: frames per second that the file names; the times of the frames count.
        audio: a file whose first audio stream is copied, as far as the frames last; None for none.
        report: gets one line if the audio cannot be copied; by default the logger "vitpose_jax".

    Raises:
        ImportError: without PyAV.
        ValueError: for another ending, or a size that is not positive.
        OSError: if the file cannot be written.
    """

    def __init__(
        self,
        path: str | os.PathLike[str],
        size: tuple[int, int],
        rate: float | int,
        *,
        audio: str | os.PathLike[str] | None = None,
        report: Callable[[str], None] | None = None,
    ):
        av = import_av()
        self._path = pathlib.Path(path)
        check_video_name(self._path)
        if min(size) < 1:
            raise ValueError(f"size: expected a positive height and width, got {size}")
        self.size, self._report = size, report or _log.warning
        self._path.parent.mkdir(parents=True, exist_ok=True)
        remove_leftovers(self._path.parent)
        self._temporary = self._path.with_name(f".{self._path.name}.{os.getpid()}.tmp")
        self._temporary.unlink(missing_ok=True)
        self._last, self._period, self._closed = -1, 1 / float(rate), False
        self._source: Any = None
        self._audio, self._packets, self._discarded = None, iter(()), False
        format = FORMATS[self._path.suffix.lower()]
        # The index of an mp4 moves to its front, so that browsers can start before they have all of it.
        options = {} if format == "matroska" else {"movflags": "+faststart"}
        try:
            self._container = av.open(str(self._temporary), "w", format=format, options=options)
        except OSError as error:
            raise OSError(error.errno, error.strerror, str(self._path)) from error
        try:
            self._add_streams(av, rate, audio)
        except BaseException:
            self.close()
            raise

    def _add_streams(self, av: Any, rate: float | int, audio: str | os.PathLike[str] | None) -> None:
        has_x264 = "libx264" in av.codecs_available
        codec, settings = ("libx264", {"crf": str(CRF), "preset": "veryfast"}) if has_x264 else ("mpeg4", {"q": "4"})
        height, width = self.size
        nearest = fractions.Fraction(rate).limit_denominator(1001)
        stream = self._container.add_stream(codec, rate=max(nearest, fractions.Fraction(1, 1001)), options=settings)
        stream.width, stream.height, stream.pix_fmt = width + width % 2, height + height % 2, "yuv420p"
        stream.time_base = stream.codec_context.time_base = TIME_BASE
        self._stream = stream
        if audio is not None:
            self._open_audio(av, audio)

    def __enter__(self) -> "VideoWriter":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def add(self, image: UInt8[np.ndarray, "height width 3"], time: float | int) -> None:
        """Add a frame.

        Args:
            image: RGB.
            time: in seconds from the start; later than that of the frame before.

        Raises:
            ValueError: for an image of another size.
            OSError: if the file cannot be written.
        """
        if image.shape != (*self.size, 3):
            height, width = self.size
            raise ValueError(
                f"{self._path}: expected frames of {height} x {width} pixels, got one of "
                f"{' x '.join(map(str, image.shape[:2]))}"
            )
        av = import_av()
        padding = [(0, side % 2) for side in self.size]
        if any(extra for _, extra in padding):
            image = np.pad(image, [*padding, (0, 0)], mode="edge")
        frame = av.VideoFrame.from_ndarray(np.ascontiguousarray(image), format="rgb24")
        frame.time_base = TIME_BASE
        frame.pts = max(round(time / TIME_BASE), self._last + 1)
        self._copy_audio(until=float(time))
        self._mux(self._stream.encode(frame))
        self._last = frame.pts

    def discard(self) -> None:
        """Let `close` leave no file: an existing one of this name stays as it is."""
        self._discarded = True

    def close(self) -> None:
        """Complete the file and give it its name; without any frame, or after `discard`, there is no file."""
        if self._closed:
            return
        self._closed = True
        try:
            if self._last >= 0 and not self._discarded:
                self._mux(self._stream.encode(None))
                self._copy_audio(until=float(self._last * TIME_BASE) + self._period)
                self._container.close()
                os.replace(self._temporary, self._path)
            else:
                self._container.close()
        except OSError as error:
            raise OSError(error.errno, error.strerror, str(self._path)) from error
        finally:
            if self._source is not None:
                self._source.close()
            self._temporary.unlink(missing_ok=True)

    def _mux(self, packets: Any) -> None:
        for packet in packets:
            self._container.mux(packet)

    def _open_audio(self, av: Any, path: str | os.PathLike[str]) -> None:
        self._source = av.open(os.fspath(path))
        if not self._source.streams.audio:
            return
        stream = self._source.streams.audio[0]
        # FFmpeg knows no codec for some streams.
        codec = "of an unknown codec" if stream.codec_context is None else stream.codec_context.name
        supported = {name.split("_")[0] for name in self._container.supported_codecs}
        if stream.codec_context is None or codec.split("_")[0] not in supported:
            self._report(f"{path}: its audio, {codec}, does not fit into {self._path.suffix} and is left out")
            return
        self._audio = self._container.add_stream_from_template(stream)
        self._origin = (self._source.start_time or 0) / av.time_base
        self._packets = self._source.demux(stream)
        self._waiting: Any = None

    def _copy_audio(self, until: float) -> None:
        """Copy the packets that begin before a time: the file holds sound and picture side by side."""
        av = import_av()
        while self._audio is not None:
            try:
                packet = self._waiting if self._waiting is not None else next(self._packets, None)
            except (av.error.FFmpegError, OSError) as error:
                self._end_audio(error)
                return
            self._waiting = None
            if packet is None:
                return
            if packet.dts is None or packet.pts is None:
                continue  # the mark of the end
            if float(packet.pts * packet.time_base) - self._origin >= until:
                self._waiting = packet
                return
            shift = round(self._origin / packet.time_base)
            packet.pts, packet.dts = packet.pts - shift, packet.dts - shift
            packet.stream = self._audio
            try:
                self._container.mux(packet)
            except (av.error.InvalidDataError, av.error.ArgumentError) as error:  # times that go back, for one
                self._end_audio(error)

    def _end_audio(self, error: BaseException) -> None:
        """Go on without the rest of the audio."""
        self._audio = None
        self._report(f"{self._source.name}: its audio is damaged, the rest is left out: {error}")


def check_video_name(path: pathlib.Path) -> None:
    """Check that a file of this name can be written.

    Raises:
        ValueError: naming the endings.
    """
    if path.suffix.lower() not in FORMATS:
        raise ValueError(f"{path}: expected a name that ends in one of {', '.join(FORMATS)}")
