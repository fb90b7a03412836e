"""`vitpose-jax evaluate`: measure a model on a dataset."""

import pathlib
import sys
from typing import Annotated

import typer

from vitpose_jax.cli.common import Decode, DType, say


def evaluate(
    dataset: Annotated[str, typer.Option(help="coco, wholebody, ochuman, crowdpose, aic, mpii, ap10k or apt36k.")],
    images: Annotated[
        pathlib.Path,
        typer.Option(help="Folder of the images; file names in the annotations start here.", metavar="DIR"),
    ],
    annotations: Annotated[pathlib.Path, typer.Option(help="The dataset's annotations.", metavar="FILE.json")],
    model: Annotated[str, typer.Option(help="A Hub id, a folder or a checkpoint file.", metavar="SOURCE")],
    output: Annotated[pathlib.Path, typer.Option(help="Folder for the results.", metavar="DIR")],
    detections: Annotated[
        pathlib.Path | None, typer.Option(help="A detector's boxes, as COCO results.", metavar="FILE.json")
    ] = None,
    ground_truth_boxes: Annotated[bool, typer.Option("--ground-truth-boxes", help="Use the annotated boxes.")] = False,
    head_boxes: Annotated[
        pathlib.Path | None, typer.Option(help="MPII's official ground truth, mpii_gt_val.mat.", metavar="FILE.mat")
    ] = None,
    min_score: Annotated[float, typer.Option(help="Use only detections with at least this score.")] = 0.0,
    limit: Annotated[
        int | None, typer.Option(help="Use only the first N images that have boxes; default: all.", min=1)
    ] = None,
    resume: Annotated[bool, typer.Option("--resume", help="Resume an interrupted run.")] = False,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace existing results.")] = False,
    flip_test: Annotated[bool, typer.Option(help="Average with the mirrored image.")] = True,
    decode: Annotated[
        Decode | None, typer.Option(help="How heatmaps become points; default: as the dataset's protocol.")
    ] = None,
    dtype: Annotated[DType, typer.Option(help="The dtype of the computation.")] = DType.float32,
    max_batch: Annotated[
        int | None, typer.Option(help="Maximum number of boxes in a batch; default: 16 on CPUs, 64 elsewhere.")
    ] = None,
    soft_nms: Annotated[bool, typer.Option("--soft-nms", help="Use the soft OKS-NMS, which lowers scores.")] = False,
    devices: Annotated[int, typer.Option(help="Divide batches among this many devices.", min=1)] = 1,
    distributed: Annotated[
        bool, typer.Option("--distributed", help="This is one of several processes: call jax.distributed.initialize().")
    ] = False,
    revision: Annotated[str | None, typer.Option(help="Branch, tag or commit on the Hub.")] = None,
) -> None:
    """Measure a model on a dataset by the protocol of the paper."""
    if (detections is None) == (not ground_truth_boxes):
        raise ValueError("expected either --detections FILE.json or --ground-truth-boxes")
    if resume and overwrite:
        raise ValueError("expected --resume or --overwrite, got both")

    from vitpose_jax.datasets.dataset import read_dataset
    from vitpose_jax.datasets.protocols import get_protocol
    from vitpose_jax.evaluation.scoring import check_nms

    # Quick checks come before anything is read.
    protocol = get_protocol(dataset)
    nms = "soft" if soft_nms else "hard"
    check_nms(protocol, nms)
    if protocol.metric == "pckh" and head_boxes is None:
        raise ValueError(f"{protocol.name}: PCKh needs the sizes of heads: --head-boxes mpii_gt_val.mat")
    samples = read_dataset(
        protocol, annotations, images, detections=detections, min_score=min_score, head_boxes=head_boxes
    )

    if detections is None and protocol.boxes == "detections":
        say(f"the published figures for {protocol.name} use a detector's boxes")

    import jax
    import jax.numpy as jnp

    from vitpose_jax.estimator import PoseEstimator
    from vitpose_jax.evaluation.runner import evaluate as run

    if distributed:
        jax.distributed.initialize()
    available = jax.local_devices()
    if devices > len(available):
        raise ValueError(f"--devices: expected at most {len(available)}, the number of devices, got {devices}")
    estimator = PoseEstimator.from_pretrained(
        model,
        dtype=jnp.dtype(dtype.value),
        revision=revision,
        max_batch=max_batch,
        border="opencv",
        stretch=protocol.stretch,
        devices=available[:devices] if devices > 1 else None,
    )
    evaluation = run(
        estimator,
        samples,
        flip_test=flip_test,
        decode=None if decode is None else decode.value,
        oks_nms=nms,
        limit=limit,
        output=output,
        resume=resume,
        overwrite=overwrite,
        model_name=model,
        progress=sys.stderr.isatty(),
    )
    if jax.process_index() != 0:
        return
    for name, value in evaluation.metrics.items():
        print(f"{name:20} {value:8.4f}")
    counts = evaluation.counts
    for image, reason in evaluation.failures[:10]:
        say(f"error: {reason if reason.startswith(image) else f'{image}: {reason}'}")
    if len(evaluation.failures) > 10:
        say(f"error: ... and {len(evaluation.failures) - 10} more; {output / 'metrics.json'} lists all")
    if counts["boxes_without_area"]:
        say(f"{counts['boxes_without_area']} boxes without area in {detections} are left out")
    for line in evaluation.deviations:
        print(f"not as published: {line}")
    print(f"{counts['boxes']} boxes in {counts['images_with_boxes']} images, {counts['results']} results: {output}")
    if evaluation.failures:
        say(f"error: {counts['failed_images']} images with {counts['failed_boxes']} boxes failed and count as missed")
        raise typer.Exit(1)
