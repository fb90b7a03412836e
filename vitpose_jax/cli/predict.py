"""`vitpose-jax predict`: keypoints in boxes of images."""

import enum
import pathlib
from typing import TYPE_CHECKING, Annotated

import typer

from vitpose_jax.bundled import DEFAULT_MODEL
from vitpose_jax.cli.common import Decode, DType, progress_bar, say

if TYPE_CHECKING:
    from vitpose_jax.poses import Poses


class Format(enum.StrEnum):
    """What `predict` writes."""

    json = "json"
    coco = "coco"
    openpose = "openpose"


def predict(
    images: Annotated[list[str], typer.Argument(help="Images: files, folders or glob patterns.", metavar="IMAGE...")],
    model: Annotated[
        str, typer.Option(help="A Hub id, a folder, a checkpoint file, or the bundled model.", metavar="SOURCE")
    ] = DEFAULT_MODEL,
    output: Annotated[pathlib.Path, typer.Option(help="Folder for the results.", metavar="DIR")] = pathlib.Path(
        "poses"
    ),
    boxes: Annotated[
        list[str] | None,
        typer.Option(
            help="A JSON file (COCO results or annotations, or a table of boxes), or one box x,y,w,h; repeatable. "
            "Without it, and without a detector, the whole image is one box.",
            metavar="FILE|x,y,w,h",
        ),
    ] = None,
    detector: Annotated[
        str | None, typer.Option(help="Find the boxes with this RT-DETR: a Hub id or a folder.", metavar="SOURCE")
    ] = None,
    label: Annotated[
        list[str] | None, typer.Option(help="What the detector looks for: a class, animals, all; else people.")
    ] = None,
    format: Annotated[Format, typer.Option(help="One JSON or OpenPose file an image, or one COCO file.")] = Format.json,
    draw: Annotated[bool, typer.Option("--draw", help="Also write each image with its poses drawn on it.")] = False,
    threshold: Annotated[float, typer.Option(help="Draw keypoints with at least this score.")] = 0.3,
    dataset: Annotated[str | None, typer.Option(help="Expert and head of a ViTPose++: coco, ap10k, ...")] = None,
    category: Annotated[int | None, typer.Option(help="Use only boxes of this category_id of the file.")] = None,
    min_score: Annotated[
        float | None,
        typer.Option(help="Use only boxes of at least this score; 0.3 where a detector finds them."),
    ] = None,
    flip_test: Annotated[bool, typer.Option("--flip-test", help="Average with the mirrored image.")] = False,
    decode: Annotated[Decode, typer.Option(help="How heatmaps become points.")] = Decode.udp,
    dtype: Annotated[DType, typer.Option(help="In which the network computes.")] = DType.float32,
    revision: Annotated[str | None, typer.Option(help="Branch, tag or commit on the Hub.")] = None,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Also do images whose results are there.")] = False,
) -> None:
    """Find the keypoints of the people or animals in boxes."""
    from vitpose_jax.bulk.inputs import find_images
    from vitpose_jax.bulk.results import Results
    from vitpose_jax.datasets.box_files import BoxFile, ImageBoxes, image_id_of, parse_box
    from vitpose_jax.pipeline.preprocess import check_boxes

    if boxes and detector:
        raise ValueError("expected --boxes or --detector, got both")
    if label and not detector:
        raise ValueError("--label says what a detector looks for: expected --detector SOURCE")
    paths = find_images(images)
    if boxes and len(boxes) == 1 and pathlib.Path(boxes[0]).is_file():
        file = BoxFile(pathlib.Path(boxes[0]), category=category, min_score=min_score)
        detections = {path: file[path] for path in paths}
        unnamed = sum(path not in file for path in paths)
        if unnamed:
            say(f"{unnamed} of {len(paths)} images have no boxes in {boxes[0]}")
    else:
        given = check_boxes([parse_box(box) for box in boxes], name="--boxes").tolist() if boxes else None
        detections = {path: ImageBoxes(image_id_of(path), given) for path in paths}
        if not boxes and not detector:
            say("no --boxes and no --detector: the whole image is taken as one box")
    results = Results(output, format.value, draw=draw, threshold=threshold, overwrite=overwrite)
    results.check_not_overwriting(paths)
    todo = [path for path in paths if not results.done(path)]
    if len(todo) < len(paths):
        say(f"{len(paths) - len(todo)} of {len(paths)} images are done already; --overwrite does them again")
    if not todo:
        return

    import jax.numpy as jnp

    from vitpose_jax.detector import LABELS, THRESHOLD, Detector
    from vitpose_jax.estimator import ItemError, PoseEstimator

    kwargs = {"dtype": jnp.dtype(dtype.value)}
    finder = None
    if detector:
        low = THRESHOLD if min_score is None else min_score
        finder = Detector.from_pretrained(detector, **kwargs, threshold=low, labels=label or LABELS)
    estimator = PoseEstimator.from_pretrained(model, **kwargs, revision=revision, detector=finder)
    # What would fail for every image fails once.
    chosen = int(dataset) if dataset and dataset.isdecimal() else dataset
    results.check(estimator.config.skeleton(chosen))
    stream = estimator.stream(
        ((path, detections[path].boxes) for path in todo),
        dataset=chosen,
        flip_test=flip_test,
        decode=decode.value,
        errors="return",
    )
    failed = 0
    try:
        for path, poses in zip(todo, progress_bar(stream, len(todo)), strict=True):
            if isinstance(poses, ItemError):
                say(f"error: {path}: {poses.__cause__}")
                failed += 1
                continue
            results.add(path, detections[path], poses)
            if len(paths) == 1:
                print_poses(poses)
    finally:
        results.finish()
    print(f"{len(todo) - failed} of {len(paths)} images done: {output}")
    if failed:
        say(f"error: {failed} images failed")
        raise typer.Exit(1)


def print_poses(poses: "Poses") -> None:
    """The keypoints of each person, a line each."""
    for number, person in enumerate(poses):
        x, y, width, height = person.boxes[0]
        sure = "" if person.box_scores is None else f", score {person.box_scores[0]:.3f}"
        print(f"person {number}, box {x:g},{y:g},{width:g},{height:g}{sure}")
        for name, (column, row), score in zip(
            person.skeleton.keypoints, person.keypoints[0], person.scores[0], strict=True
        ):
            print(f"  {name:20} {column:9.2f} {row:9.2f}   score {score:.3f}")
