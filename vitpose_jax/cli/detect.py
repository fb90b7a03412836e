"""`vitpose-jax detect`: boxes of people, or of other classes, in images."""

import pathlib
from typing import TYPE_CHECKING, Annotated

import typer

from vitpose_jax.bundled import DEFAULT_FINDER
from vitpose_jax.cli.common import (
    DType,
    DTypeOption,
    Labels,
    Lenient,
    Revision,
    exit_with_failures,
    named_source,
    say,
    show_progress,
)

if TYPE_CHECKING:
    from vitpose_jax.detections import Detections


def detect(
    images: Annotated[list[str], typer.Argument(help="Images: files, folders or glob patterns.", metavar="IMAGE...")],
    detector: Annotated[
        str, typer.Option(help="A Hub id or a folder of an RT-DETR, or the bundled person finder.", metavar="SOURCE")
    ] = DEFAULT_FINDER,
    output: Annotated[pathlib.Path, typer.Option(help="Folder for the results.", metavar="DIR")] = pathlib.Path(
        "detections"
    ),
    threshold: Annotated[
        float | None, typer.Option(help="Find objects with a higher score. Default: the detector's.")
    ] = None,
    max_detections: Annotated[
        int | None, typer.Option(help="Maximum number of objects in an image: the highest-scoring.")
    ] = None,
    label: Labels = None,
    draw: Annotated[bool, typer.Option("--draw", help="Also write each image with its boxes drawn on it.")] = False,
    dtype: DTypeOption = DType.float32,
    revision: Revision = None,
    lenient: Lenient = False,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace existing results.")] = False,
) -> None:
    """Find people in images. `predict --boxes` reads the results."""

    from vitpose_jax.bulk.detect import DETECTIONS_FILE, detect_files
    from vitpose_jax.bulk.inputs import find_images
    from vitpose_jax.detector import LABELS, Detector

    paths = find_images(images, say)
    count = 0

    def load() -> Detector:
        return Detector.from_pretrained(
            detector,
            dtype=dtype.value,
            revision=revision,
            strict=not lenient,
            threshold=threshold,
            max_detections=max_detections,
            labels=label or LABELS,
        )

    def on_detections(_: pathlib.Path, detections: "Detections") -> None:
        nonlocal count
        count += len(detections)
        if len(paths) == 1:
            for name, score, box in zip(detections.names, detections.scores, detections.boxes, strict=True):
                print(f"{name:16} {score:.3f}   " + ",".join(f"{number:.1f}" for number in box))

    summary = detect_files(
        load,
        paths,
        output,
        draw=draw,
        overwrite=overwrite,
        progress=show_progress(len(paths)),
        report=say,
        on_detections=on_detections,
        settings={
            "detector": named_source(detector),
            "revision": revision,
            "dtype": dtype.value,
            "labels": list(label or LABELS),
            "min_score": threshold,
            "max_detections": max_detections,
        },
    )
    if summary.written or summary.failed:
        print(f"{count} objects in {len(summary.written)} of {len(paths)} images: {output / DETECTIONS_FILE}")
    exit_with_failures(summary)
