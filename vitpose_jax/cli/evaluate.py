"""`vitpose-jax evaluate`: measure a model or a detector on a dataset."""

import enum
import pathlib
import sys
from typing import TYPE_CHECKING, Annotated

import typer

from vitpose_jax.bundled import DEFAULT_FINDER
from vitpose_jax.cli.common import (
    Decode,
    Devices,
    Distributed,
    DType,
    GroupSize,
    Lenient,
    QuantizeOption,
    Runtime,
    RuntimeOption,
    choose_devices,
    quantize_options,
    say,
)

if TYPE_CHECKING:
    from vitpose_jax.datasets.protocols import Protocol
    from vitpose_jax.evaluation.runner import Evaluation


class Task(enum.StrEnum):
    """What is measured."""

    keypoints = "keypoints"
    detection = "detection"


def evaluate(
    images: Annotated[
        pathlib.Path,
        typer.Option(help="Folder of the images; file names in the annotations start here.", metavar="DIR"),
    ],
    annotations: Annotated[pathlib.Path, typer.Option(help="The dataset's annotations.", metavar="FILE.json")],
    output: Annotated[pathlib.Path, typer.Option(help="Folder for the results.", metavar="DIR")],
    task: Annotated[Task, typer.Option(help="Measure keypoints, or a detector's boxes of people.")] = Task.keypoints,
    dataset: Annotated[
        str | None,
        typer.Option(
            help="coco, wholebody, ochuman, crowdpose, aic, mpii, ap10k or apt36k; or a skeleton of the model's own."
        ),
    ] = None,
    model: Annotated[
        str | None, typer.Option(help="A Hub id, a folder or a checkpoint file.", metavar="SOURCE")
    ] = None,
    detections: Annotated[
        pathlib.Path | None, typer.Option(help="A detector's boxes, as COCO results.", metavar="FILE.json")
    ] = None,
    detector: Annotated[
        str | None,
        typer.Option(
            help="Find the boxes with this detector: a Hub id, a folder, or person-finder, the bundled one and the "
            "default of the task detection.",
            metavar="SOURCE",
        ),
    ] = None,
    ground_truth_boxes: Annotated[
        bool, typer.Option("--ground-truth-boxes", help="Use the annotated boxes; with --detector: measure both.")
    ] = False,
    head_boxes: Annotated[
        pathlib.Path | None, typer.Option(help="MPII's official ground truth, mpii_gt_val.mat.", metavar="FILE.mat")
    ] = None,
    min_score: Annotated[
        float | None,
        typer.Option(help="Use only detections with at least this score; default: 0, with --detector 0.1."),
    ] = None,
    limit: Annotated[
        int | None,
        typer.Option(help="Use only the first N images (keypoints: that have boxes); default: all.", min=1),
    ] = None,
    resume: Annotated[bool, typer.Option("--resume", help="Resume an interrupted run.")] = False,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace existing results.")] = False,
    flip_test: Annotated[bool, typer.Option(help="Average with the mirrored image.")] = True,
    decode: Annotated[
        Decode | None, typer.Option(help="How heatmaps become points; default: as the dataset's protocol.")
    ] = None,
    dtype: Annotated[DType, typer.Option(help="The dtype of the computation.")] = DType.float32,
    runtime: RuntimeOption = Runtime.jax,
    quantize: QuantizeOption = None,
    group_size: GroupSize = None,
    max_batch: Annotated[
        int | None,
        typer.Option(
            help="Maximum number of boxes in a batch; default: 16 on CPUs, 64 elsewhere. Detection: of images; 1, 8."
        ),
    ] = None,
    soft_nms: Annotated[bool, typer.Option("--soft-nms", help="Use the soft OKS-NMS, which lowers scores.")] = False,
    devices: Devices = 1,
    distributed: Distributed = False,
    revision: Annotated[
        str | None, typer.Option(help="Branch, tag or commit on the Hub of the model; detection: of the detector.")
    ] = None,
    lenient: Lenient = False,
) -> None:
    """Measure a model on a dataset by the protocol of the paper, or a detector's boxes of people as COCO does."""
    if task is Task.detection:
        _check_detection_options(
            {
                "--dataset": dataset,
                "--model": model,
                "--detections": detections,
                "--ground-truth-boxes": ground_truth_boxes,
                "--head-boxes": head_boxes,
                "--min-score": min_score is not None,
                "--resume": resume,
                "--no-flip-test": not flip_test,
                "--decode": decode,
                "--runtime": runtime is not Runtime.jax,
                "--quantize": quantize,
                "--group-size": group_size,
                "--soft-nms": soft_nms,
                "--devices": devices > 1,
                "--distributed": distributed,
            }
        )
        _evaluate_detection(
            detector or DEFAULT_FINDER,
            annotations,
            images,
            output,
            dtype=dtype,
            revision=revision,
            strict=not lenient,
            max_batch=max_batch,
            limit=limit,
            overwrite=overwrite,
        )
        return
    if dataset is None or model is None:
        raise ValueError(f"expected --{'dataset NAME' if dataset is None else 'model SOURCE'}: keypoints need it")
    if (detections is None) == (detector is None and not ground_truth_boxes):
        raise ValueError(
            "expected either --detections FILE.json or --ground-truth-boxes or --detector SOURCE, or the last two"
        )
    rounding = quantize_options(quantize, group_size)
    if resume and overwrite:
        raise ValueError("expected --resume or --overwrite, got both")
    if detector is not None and distributed:
        raise ValueError("--distributed: not with --detector; --task detection finds the boxes for --detections")
    both = detector is not None and ground_truth_boxes
    if both and limit is not None:
        raise ValueError("--limit: not with --detector and --ground-truth-boxes, whose first images differ")

    from vitpose_jax.datasets.dataset import read_dataset
    from vitpose_jax.evaluation.scoring import check_nms

    # Quick checks come before anything is read.
    if runtime is not Runtime.jax:
        from vitpose_jax.export.runtimes import check_installed

        check_installed(runtime.value)
    protocol = _find_protocol(dataset, model, revision, strict=not lenient)
    nms = "soft" if soft_nms else "hard"
    check_nms(protocol, nms)
    if protocol.metric == "pckh" and head_boxes is None:
        raise ValueError(f"{protocol.name}: PCKh needs the sizes of heads: --head-boxes mpii_gt_val.mat")
    samples = read_dataset(
        protocol,
        annotations,
        images,
        detections=detections,
        min_score=0.0 if min_score is None or detector is not None else min_score,
        head_boxes=head_boxes,
    )

    if detections is None and detector is None and protocol.boxes == "detections":
        say(f"the published figures for {protocol.name} use a detector's boxes")

    import jax

    from vitpose_jax.detector import Detector
    from vitpose_jax.estimator import PoseEstimator
    from vitpose_jax.evaluation.detected import MIN_SCORE, check_detectable, compare_boxes, detect_dataset
    from vitpose_jax.evaluation.runner import check_estimator
    from vitpose_jax.evaluation.runner import evaluate as run

    if detector is not None:
        check_detectable(protocol)
    chosen = choose_devices(devices, distributed=distributed)
    estimator = PoseEstimator.from_pretrained(
        model,
        runtime=runtime.value,
        dtype=dtype.value,
        revision=revision,
        strict=not lenient,
        max_batch=max_batch,
        border="opencv",
        stretch=protocol.stretch,
        devices=chosen,
        **rounding,
    )
    flow = {"resume": resume, "overwrite": overwrite, "progress": sys.stderr.isatty()}
    options = {
        "flip_test": flip_test,
        "decode": None if decode is None else decode.value,
        "oks_nms": nms,
        "model_name": model,
    }
    if detector is None:
        evaluations = {"": run(estimator, samples, output=output, limit=limit, **flow, **options)}
    else:
        finder = Detector.from_pretrained(detector, dtype=dtype.value, strict=not lenient)
        found = {
            "min_score": MIN_SCORE if min_score is None else min_score,
            "detector_name": detector,
            **flow,
        }
        if both:
            evaluations = compare_boxes(estimator, finder, samples, images, output, **found, **options)
        else:
            check_estimator(estimator, protocol)
            detected = detect_dataset(finder, samples, images, output, **found)
            evaluations = {"": run(estimator, detected, output=output, limit=limit, **flow, **options)}
    if jax.process_index() == 0:
        _print_evaluations(evaluations, output, detections)


def _find_protocol(dataset: str, model: str, revision: str | None, *, strict: bool) -> "Protocol":
    """The protocol of a known dataset; for another name, that of the model's skeleton of this name.

    Raises:
        ValueError: for an unknown name, listing the known ones.
    """
    from vitpose_jax.datasets.protocols import PROTOCOLS, own_protocol
    from vitpose_jax.pretrained import describe
    from vitpose_jax.skeletons import canonical_name

    key = canonical_name(dataset)
    if key in PROTOCOLS:
        return PROTOCOLS[key]
    own = {skeleton.name: skeleton for skeleton in describe(model, revision=revision, strict=strict).config.skeletons}
    if dataset not in own:
        names = ", ".join(dict.fromkeys([*PROTOCOLS, *own]))
        raise ValueError(f"no dataset named {dataset!r} to evaluate; expected one of {names}")
    return own_protocol(own[dataset])


def _check_detection_options(keypoint_options: dict[str, object]) -> None:
    """Check that none of the options of keypoints is set."""
    for name, value in keypoint_options.items():
        if value:
            raise ValueError(f"{name}: not with --task detection, which measures the boxes of a detector")


def _evaluate_detection(
    detector: str,
    annotations: pathlib.Path,
    images: pathlib.Path,
    output: pathlib.Path,
    *,
    dtype: DType,
    revision: str | None,
    strict: bool,
    max_batch: int | None,
    limit: int | None,
    overwrite: bool,
) -> None:
    """Measure a detector and print its numbers."""

    from vitpose_jax.detector import Detector
    from vitpose_jax.evaluation.detector_runner import evaluate_detector

    evaluation = evaluate_detector(
        Detector.from_pretrained(detector, dtype=dtype.value, revision=revision, strict=strict, max_batch=max_batch),
        annotations,
        images,
        output,
        limit=limit,
        overwrite=overwrite,
        detector_name=detector,
        progress=sys.stderr.isatty(),
    )
    for name, value in evaluation.metrics.items():
        print(f"{name:20} {value:8.4f}")
    for point in evaluation.operating_points:
        if point.threshold is None:
            print(f"precision {point.min_precision:g}: at no threshold")
        else:
            print(
                f"precision {point.min_precision:g}: recall {point.recall:.4f}, "
                f"of tall people {point.recall_tall:.4f}, at scores of at least {point.threshold:.3f}"
            )
    counts = evaluation.counts
    print(
        f"{counts['detections']} detections, {counts['people']} people and {counts['crowds']} crowds in "
        f"{counts['images']} images: {output}"
    )
    if evaluation.failures:
        _print_failures(evaluation.failures, output)
        say(f"error: {counts['failed_images']} images failed and their people count as missed")
        raise typer.Exit(1)


def _print_evaluations(
    evaluations: dict[str, "Evaluation"], output: pathlib.Path, detections: pathlib.Path | None
) -> None:
    """Print numbers, side by side if there are two evaluations, then what failed or differs from the protocol.

    Raises:
        typer.Exit: if images failed.
    """
    if len(evaluations) > 1:
        print(" " * 20 + "".join(f" {name:>10}" for name in evaluations))
    width = 10 if len(evaluations) > 1 else 8
    for name in next(iter(evaluations.values())).metrics:
        values = (evaluation.metrics[name] for evaluation in evaluations.values())
        print(f"{name:20}" + "".join(f" {value:{width}.4f}" for value in values))
    for name, evaluation in evaluations.items():
        folder, label = (output / name, f"{name}: ") if name else (output, "")
        counts = evaluation.counts
        _print_failures(evaluation.failures, folder)
        if counts["boxes_without_area"]:
            say(f"{counts['boxes_without_area']} boxes without area in {detections or folder} are left out")
        for line in evaluation.deviations:
            print(f"{label}not as published: {line}")
        print(
            f"{label}{counts['boxes']} boxes in {counts['images_with_boxes']} images, {counts['results']} results: "
            f"{folder}"
        )
        if evaluation.failures:
            say(
                f"error: {counts['failed_images']} images with {counts['failed_boxes']} boxes failed and count as "
                "missed"
            )
    if any(evaluation.failures for evaluation in evaluations.values()):
        raise typer.Exit(1)


def _print_failures(failures: list[tuple[str, str]], output: pathlib.Path, most: int = 10) -> None:
    for image, reason in failures[:most]:
        say(f"error: {reason if reason.startswith(image) else f'{image}: {reason}'}")
    if len(failures) > most:
        say(f"error: ... and {len(failures) - most} more; {output / 'metrics.json'} lists all")
