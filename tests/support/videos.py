"""Small videos, written with PyAV."""

import fractions
import pathlib

import av
import numpy as np


def rectangles(count: int, size: tuple[int, int] = (48, 64)) -> list[np.ndarray]:
    """Frames of a bright square that moves right and of a red corner, top left."""
    frames = []
    for number in range(count):
        image = np.full((*size, 3), 40, np.uint8)
        image[:8, :8] = (250, 0, 0)
        column = 10 + 3 * number
        image[20:36, column : column + 16] = 230
        frames.append(image)
    return frames


def write_video(
    path: pathlib.Path,
    frames: list[np.ndarray],
    times: list[float] | None = None,
    *,
    rate: int = 10,
    rotation: int = 0,
    sound: float = 0.0,
    codec: str = "libx264",
) -> pathlib.Path:
    """A video with these times in seconds, a rotation in its display matrix, and seconds of sound."""
    unit = fractions.Fraction(1, 10_000)
    with av.open(str(path), "w") as container:
        options = {"g": "4", "bf": "0", "crf": "10"} if codec == "libx264" else {}
        stream = container.add_stream(codec, rate=rate, options=options)
        stream.height, stream.width, stream.pix_fmt = *frames[0].shape[:2], "yuv444p" if codec == "libx264" else "rgb24"
        if codec == "png":
            stream.pix_fmt = "rgb24"
        stream.time_base = stream.codec_context.time_base = unit
        if rotation:
            stream.set_display_rotation(rotation)
        audio = None
        if sound:
            audio = container.add_stream("aac", rate=16_000, layout="mono")
        for number, image in enumerate(frames):
            frame = av.VideoFrame.from_ndarray(image, format="rgb24")
            frame.time_base = unit
            frame.pts = round((number / rate if times is None else times[number]) / unit)
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
        if audio is not None:
            tone = np.sin(np.arange(round(sound * 16_000)) / 5).astype(np.float32)[None]
            frame = av.AudioFrame.from_ndarray(tone, format="fltp", layout="mono")
            frame.sample_rate, frame.pts, frame.time_base = 16_000, 0, fractions.Fraction(1, 16_000)
            container.mux(audio.encode(frame))
            container.mux(audio.encode(None))
    return path


def sound_seconds(path: pathlib.Path) -> float:
    """The seconds of sound in a file; 0 without any."""
    with av.open(str(path)) as container:
        if not container.streams.audio:
            return 0.0
        samples = sum(frame.samples for frame in container.decode(audio=0))
        return samples / container.streams.audio[0].rate
