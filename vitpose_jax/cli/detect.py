"""`vitpose-jax detect`: boxes of people, or of anything else, in images."""

import json
import pathlib
from typing import Annotated

import typer

from vitpose_jax.cli.common import DType, progress_bar, say

# COCO results, which `predict --boxes` reads.
RESULTS_FILE = "detections.json"


def detect(
    images: Annotated[list[str], typer.Argument(help="Images: files, folders or glob patterns.", metavar="IMAGE...")],
    detector: Annotated[str, typer.Option(help="An RT-DETR: a Hub id or a folder.", metavar="SOURCE")],
    output: Annotated[pathlib.Path, typer.Option(help="Folder for the results.", metavar="DIR")] = pathlib.Path(
        "detections"
    ),
    threshold: Annotated[float, typer.Option(help="Find objects with a higher score.")] = 0.3,
    max_detections: Annotated[int | None, typer.Option(help="Most objects of an image, the surest.")] = None,
    label: Annotated[
        list[str] | None, typer.Option(help="Look for this: a class, animals or all; repeatable. Else for people.")
    ] = None,
    draw: Annotated[bool, typer.Option("--draw", help="Also write each image with its boxes drawn on it.")] = False,
    dtype: Annotated[DType, typer.Option(help="In which the network computes.")] = DType.float32,
    revision: Annotated[str | None, typer.Option(help="Branch, tag or commit on the Hub.")] = None,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace results that are there.")] = False,
) -> None:
    """Find people in images; `predict --boxes` reads the results."""
    from vitpose_jax.bulk.inputs import check_not_overwriting, find_images
    from vitpose_jax.datasets.box_files import image_id_of
    from vitpose_jax.storage.atomic import write_png, write_whole

    paths = find_images(images)
    results, drawings = output / RESULTS_FILE, {path: output / f"{path.stem}_detections.png" for path in paths}
    if results.exists() and not overwrite:
        raise ValueError(f"{results}: is there already; choose another folder, or ask to overwrite")
    if draw:
        check_not_overwriting(paths, [(drawing, path) for path, drawing in drawings.items()])

    import jax.numpy as jnp

    from vitpose_jax.detector import LABELS, Detector
    from vitpose_jax.draw import draw_boxes

    found = Detector.from_pretrained(
        detector,
        dtype=jnp.dtype(dtype.value),
        revision=revision,
        threshold=threshold,
        max_detections=max_detections,
        labels=label or LABELS,
    )
    entries, failed = [], 0
    for path in progress_bar(paths, len(paths)):
        try:
            objects = found(path)
        except (ValueError, OSError) as error:
            say(f"error: {error}")
            failed += 1
            continue
        entries += objects.to_coco(image_id_of(path))
        if draw:
            write_png(drawings[path], draw_boxes(path, objects.boxes, objects.names, objects.scores))
        if len(paths) == 1:
            for name, score, box in zip(objects.names, objects.scores, objects.boxes, strict=True):
                print(f"{name:16} {score:.3f}   " + ",".join(f"{number:.1f}" for number in box))
    write_whole(results, (json.dumps(entries, indent=1) + "\n").encode())
    print(f"{len(entries)} objects in {len(paths) - failed} of {len(paths)} images: {results}")
    if failed:
        say(f"error: {failed} images failed")
        raise typer.Exit(1)
