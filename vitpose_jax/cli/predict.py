"""`vitpose-jax predict`: the keypoints of people or animals in images."""

import enum
import pathlib
from typing import TYPE_CHECKING, Annotated

import typer

from vitpose_jax.bundled import DEFAULT_FINDER, DEFAULT_MODEL
from vitpose_jax.cli.common import (
    BoxDetector,
    Decode,
    DecodeOption,
    Devices,
    Distributed,
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
    choose_devices,
    dataset_key,
    exit_with_failures,
    named_source,
    quantize_options,
    runtime_setting,
    say,
    show_progress,
)
from vitpose_jax.cli.drawing import ColourBy, Fade, LineWidth, Radius, Threshold, drawing_options

if TYPE_CHECKING:
    import numpy as np

    from vitpose_jax.datasets.box_files import BoxFile
    from vitpose_jax.poses import Poses


class Format(enum.StrEnum):
    """The format of the results."""

    json = "json"
    coco = "coco"
    openpose = "openpose"
    yolo = "yolo"


def predict(
    images: Annotated[list[str], typer.Argument(help="Images: files, folders or glob patterns.", metavar="IMAGE...")],
    model: Model = DEFAULT_MODEL,
    output: Annotated[pathlib.Path, typer.Option(help="Folder for the results.", metavar="DIR")] = pathlib.Path(
        "poses"
    ),
    boxes: Annotated[
        list[str] | None,
        typer.Option(
            help="A file (COCO results or annotations, a table by file name, rows x y w h, results of predict or "
            "detect, YOLO's .txt or a folder of them), or one box x,y,w,h; repeatable. "
            "Without --boxes a detector finds them.",
            metavar="FILE|x,y,w,h",
        ),
    ] = None,
    detector: BoxDetector = DEFAULT_FINDER,
    whole_image: Annotated[bool, typer.Option("--whole-image", help="Take each image as one box.")] = False,
    label: Labels = None,
    format: Annotated[
        Format, typer.Option(help="json, openpose, yolo: one file for each image. coco: one for all.")
    ] = Format.json,
    draw: Annotated[bool, typer.Option("--draw", help="Also write each image with its poses drawn on it.")] = False,
    threshold: Threshold = 0.3,
    line_width: LineWidth = None,
    radius: Radius = None,
    colour_by: Annotated[
        ColourBy | None, typer.Option(help="What has a colour of its own. Default: sides; from four people on, people.")
    ] = None,
    fade: Fade = False,
    numbers: Annotated[bool, typer.Option("--numbers", help="Write each person's number beside it.")] = False,
    dataset: Expert = None,
    category: Annotated[int | None, typer.Option(help="Use only boxes of this category_id of the file.")] = None,
    min_score: Annotated[
        float | None,
        typer.Option(help="Use only boxes with at least this score. Default: all of a file, the detector's threshold."),
    ] = None,
    flip_test: FlipTest = False,
    decode: DecodeOption = Decode.udp,
    dtype: DTypeOption = DType.float32,
    runtime: RuntimeOption = Runtime.jax,
    quantize: QuantizeOption = None,
    group_size: GroupSize = None,
    revision: Revision = None,
    lenient: Lenient = False,
    devices: Devices = 1,
    distributed: Distributed = False,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace existing results.")] = False,
) -> None:
    """Find the keypoints of the people or animals in images."""
    if boxes and whole_image:
        raise ValueError("expected --boxes or --whole-image, got both")
    if boxes and detector != DEFAULT_FINDER:
        raise ValueError("expected --boxes or --detector, got both")
    if label and (boxes or whole_image):
        raise ValueError("--label names the classes that a detector looks for, and boxes are given")

    rounding = quantize_options(quantize, group_size)

    from vitpose_jax.bulk.inputs import find_images
    from vitpose_jax.bulk.predict import predict_files
    from vitpose_jax.detector import LABELS, Detector
    from vitpose_jax.estimator import PoseEstimator

    paths = find_images(images, say)
    find_boxes = not boxes and not whole_image
    if find_boxes and detector == DEFAULT_FINDER:
        say("people are found by the bundled finder; --boxes, --detector and --whole-image choose otherwise")

    chosen = choose_devices(devices, distributed=distributed) if devices > 1 or distributed else None

    def load() -> PoseEstimator:
        compute = dtype.value
        finder = None
        # The estimator loads the bundled finder by itself, and says for which skeletons it cannot.
        if find_boxes and (detector != DEFAULT_FINDER or label or min_score is not None):
            wanted = {"threshold": min_score, "labels": label or LABELS}
            finder = Detector.from_pretrained(detector, dtype=compute, strict=not lenient, **wanted)
        return PoseEstimator.from_pretrained(
            model,
            runtime=runtime.value,
            dtype=compute,
            revision=revision,
            strict=not lenient,
            detector=finder,
            devices=chosen,
            **rounding,
        )

    summary = predict_files(
        load,
        paths,
        output,
        boxes=read_boxes(boxes, category=category, min_score=min_score),
        whole_image=whole_image,
        format=format.value,
        draw=draw,
        drawing=drawing_options(
            threshold=threshold, line_width=line_width, radius=radius, colour_by=colour_by, fade=fade, numbers=numbers
        ),
        dataset=dataset_key(dataset),
        flip_test=flip_test,
        decode=decode.value,
        overwrite=overwrite,
        progress=show_progress(len(paths)),
        report=say,
        on_poses=(lambda _, poses: print_poses(poses)) if len(paths) == 1 else None,
        settings={
            "model": named_source(model),
            "revision": revision,
            "dtype": dtype.value,
            **rounding,
            **runtime_setting(runtime),
            "detector": named_source(detector) if find_boxes else None,
            "labels": list(label or LABELS) if find_boxes else None,
            "min_score": min_score,
        },
    )
    if summary.written or summary.failed:
        print(f"{len(summary.written)} of {len(paths)} images done: {output}")
    exit_with_failures(summary)


def read_boxes(
    boxes: list[str] | None, *, category: int | None, min_score: float | None
) -> "BoxFile | np.ndarray | None":
    """The values of --boxes: one file, or boxes for all images.

    Raises:
        ValueError: for a file that cannot be read, or numbers that are not a box.
    """
    from vitpose_jax.datasets.box_files import BoxFile, parse_box
    from vitpose_jax.pipeline.regions import check_boxes

    if not boxes:
        return None
    if len(boxes) > 1 or not pathlib.Path(boxes[0]).exists():
        return check_boxes([parse_box(box) for box in boxes], name="--boxes")
    return BoxFile(pathlib.Path(boxes[0]), category=category, min_score=min_score)


def print_poses(poses: "Poses") -> None:
    """Print the keypoints of each person, one line each."""
    for number, person in enumerate(poses):
        x, y, width, height = person.boxes[0]
        box_score = "" if person.box_scores is None else f", score {person.box_scores[0]:.3f}"
        print(f"person {number}, box {x:g},{y:g},{width:g},{height:g}{box_score}")
        for name, (column, row), score in zip(
            person.skeleton.keypoints, person.keypoints[0], person.scores[0], strict=True
        ):
            print(f"  {name:20} {column:9.2f} {row:9.2f}   score {score:.3f}")
