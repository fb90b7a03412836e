"""`vitpose-jax video`: the people of a video, with the same number from frame to frame."""

import enum
import pathlib
import sys
from typing import TYPE_CHECKING, Annotated

import typer

from vitpose_jax.bundled import DEFAULT_FINDER, DEFAULT_MODEL
from vitpose_jax.cli.common import (
    BoxDetector,
    Decode,
    DecodeOption,
    DType,
    DTypeOption,
    Expert,
    FlipTest,
    GroupSize,
    Labels,
    Lenient,
    Model,
    QuantizeOption,
    Revision,
    Runtime,
    RuntimeOption,
    dataset_key,
    named_source,
    quantize_options,
    runtime_setting,
    say,
)
from vitpose_jax.cli.drawing import ColourBy, Fade, LineWidth, Radius, Threshold, drawing_options

if TYPE_CHECKING:
    from vitpose_jax.estimator import PoseEstimator


class Format(enum.StrEnum):
    """A format besides the JSON lines."""

    coco = "coco"
    openpose = "openpose"
    deeplabcut = "deeplabcut"
    sleap = "sleap"


def video(
    source: Annotated[
        str,
        typer.Argument(
            help="A video file, a folder or a pattern of images, camera:0, or a URL (rtsp, http).", metavar="IN"
        ),
    ],
    output: Annotated[
        pathlib.Path | None, typer.Option(help="Write the video with its poses drawn on it: .mp4, .mov or .mkv.")
    ] = None,
    json: Annotated[
        pathlib.Path | None,
        typer.Option(help="Write JSON lines, one for each frame: .jsonl. A run that was ended resumes."),
    ] = None,
    format: Annotated[
        list[Format] | None, typer.Option(help="Also make these of the JSON lines, beside them; repeatable.")
    ] = None,
    model: Model = DEFAULT_MODEL,
    detector: BoxDetector = DEFAULT_FINDER,
    label: Labels = None,
    min_score: Annotated[
        float | None, typer.Option(help="Use only boxes with at least this score. Default: the detector's threshold.")
    ] = None,
    every: Annotated[int, typer.Option(help="Run the detector once in so many frames.")] = 5,
    smooth: Annotated[bool, typer.Option("--smooth", help="Smooth the keypoints over time.")] = False,
    rate: Annotated[
        float | None, typer.Option(help="Frames per second of a sequence of images, or to ask a camera for.")
    ] = None,
    threshold: Threshold = 0.3,
    line_width: LineWidth = None,
    radius: Radius = None,
    colour_by: Annotated[
        ColourBy | None, typer.Option(help="What has a colour of its own. Default: each person, in all frames.")
    ] = None,
    fade: Fade = False,
    numbers: Annotated[bool, typer.Option(help="Write each person's number beside it.")] = True,
    dataset: Expert = None,
    flip_test: FlipTest = False,
    decode: DecodeOption = Decode.udp,
    dtype: DTypeOption = DType.float32,
    runtime: RuntimeOption = Runtime.jax,
    quantize: QuantizeOption = None,
    group_size: GroupSize = None,
    revision: Revision = None,
    lenient: Lenient = False,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace existing results.")] = False,
) -> None:
    """Track the people in a video. Ctrl-C leaves a video that plays and complete JSON lines."""
    if output is None and json is None:
        raise ValueError("expected --output, --json or both, got neither")
    if format and json is None:
        raise ValueError("--format is made of the JSON lines: expected --json too")

    rounding = quantize_options(quantize, group_size)

    from vitpose_jax.detector import LABELS, Detector
    from vitpose_jax.estimator import PoseEstimator
    from vitpose_jax.video.run import track_file

    def load() -> "PoseEstimator":
        finder = None
        if detector != DEFAULT_FINDER or label or min_score is not None:
            wanted = {"threshold": min_score, "labels": label or LABELS}
            finder = Detector.from_pretrained(detector, dtype=dtype.value, strict=not lenient, **wanted)
        return PoseEstimator.from_pretrained(
            model,
            runtime=runtime.value,
            dtype=dtype.value,
            revision=revision,
            strict=not lenient,
            detector=finder,
            **rounding,
        )

    summary = track_file(
        load,
        source,
        output=output,
        json=json,
        formats=[choice.value for choice in format or ()],
        every=every,
        smooth=smooth,
        drawing=drawing_options(
            threshold=threshold, line_width=line_width, radius=radius, colour_by=colour_by, fade=fade, numbers=numbers
        ),
        rate=rate,
        dataset=dataset_key(dataset),
        flip_test=flip_test,
        decode=decode.value,
        overwrite=overwrite,
        progress=sys.stderr.isatty(),
        report=say,
        settings={
            "model": named_source(model),
            "revision": revision,
            "dtype": dtype.value,
            **rounding,
            **runtime_setting(runtime),
            "detector": named_source(detector),
            "labels": list(label or LABELS),
            "min_score": min_score,
        },
    )
    if summary.resumed:
        say(f"{summary.resumed} frames were done already; --overwrite replaces them")
    speed = summary.frames / summary.seconds if summary.seconds else 0.0
    broken = f", {summary.broken} broken" if summary.broken else ""
    print(f"{summary.frames} frames{broken}, {summary.ids} people, {speed:.1f} frames per second")
    for path in summary.written:
        print(path)
    if summary.broke_off:
        raise typer.Exit(1)
