"""`vitpose-jax bulk`: the keypoints in any number of images, on many machines."""

import sys
from typing import Annotated

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
    quantize_options,
    say,
)


def bulk(
    source: Annotated[
        list[str],
        typer.Argument(
            help="Folder (with sub-folders), pattern or URI of images, Parquet files or .tar archives; or a .txt file "
            "with the name of an image in each line.",
            metavar="SOURCE...",
        ),
    ],
    output: Annotated[str, typer.Option(help="Folder for the results, or its URI.", metavar="DIR")],
    model: Model = DEFAULT_MODEL,
    detector: BoxDetector = DEFAULT_FINDER,
    whole_image: Annotated[bool, typer.Option("--whole-image", help="Take each image as one box.")] = False,
    label: Labels = None,
    min_score: Annotated[float | None, typer.Option(help="The detector's threshold. Default: its own.")] = None,
    image_column: Annotated[
        str, typer.Option(help="Of Parquet files: bytes or names of images.", metavar="NAME")
    ] = "image",
    id_column: Annotated[
        str | None,
        typer.Option(help="Of Parquet files: names the images in the results. Default: file and row.", metavar="NAME"),
    ] = None,
    boxes_column: Annotated[
        str | None, typer.Option(help="Of Parquet files: lists of boxes x y w h in pixels.", metavar="NAME")
    ] = None,
    dataset: Expert = None,
    flip_test: FlipTest = False,
    decode: DecodeOption = Decode.udp,
    dtype: DTypeOption = DType.float32,
    runtime: RuntimeOption = Runtime.jax,
    quantize: QuantizeOption = None,
    group_size: GroupSize = None,
    revision: Revision = None,
    lenient: Lenient = False,
    max_batch: Annotated[
        int | None, typer.Option(help="Maximum number of boxes in a batch; default: 16 on CPUs, 64 elsewhere.")
    ] = None,
    images_per_partition: Annotated[
        int, typer.Option(help="Images of one file of results, at most. An archive is one partition.", min=1)
    ] = 1000,
    concurrency: Annotated[
        int | None,
        typer.Option(
            help="Workers, each with a model. Default: one for each GPU, or for each machine. 0: this process, "
            "without Ray.",
            min=0,
        ),
    ] = None,
    num_cpus: Annotated[float | None, typer.Option(help="CPUs of each worker.")] = None,
    num_gpus: Annotated[float | None, typer.Option(help="GPUs of each worker.")] = None,
    resource: Annotated[
        list[str] | None,
        typer.Option(help="Another resource of each worker, as TPU=4; repeatable.", metavar="NAME=NUMBER"),
    ] = None,
    address: Annotated[
        str | None,
        typer.Option(help="Address of a Ray cluster; auto: one on this machine. Default: RAY_ADDRESS, or a new one."),
    ] = None,
    attempts: Annotated[int, typer.Option(help="For each partition, before it is given up.", min=1)] = 3,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace existing results.")] = False,
) -> None:
    """Find the keypoints in any number of images, on all machines of a Ray cluster; resumes an earlier run."""
    if boxes_column and detector != DEFAULT_FINDER:
        raise ValueError("expected --boxes-column or --detector, got both")
    rounding = quantize_options(quantize, group_size)

    from vitpose_jax.distributed.predict import predict_dataset

    summary = predict_dataset(
        source,
        output,
        model=model,
        detector=None if detector == DEFAULT_FINDER else detector,
        labels=label,
        min_score=min_score,
        whole_image=whole_image,
        image_column=image_column,
        id_column=id_column,
        boxes_column=boxes_column,
        dataset=dataset_key(dataset),
        flip_test=flip_test,
        decode=decode.value,
        dtype=dtype.value,
        runtime=runtime.value,
        **rounding,
        revision=revision,
        strict=not lenient,
        max_batch=max_batch,
        images_per_partition=images_per_partition,
        concurrency=concurrency,
        num_cpus=num_cpus,
        num_gpus=num_gpus,
        resources=_read_resources(resource or []),
        address=address,
        attempts=attempts,
        overwrite=overwrite,
        progress=sys.stderr.isatty(),
        report=say,
    )
    written = summary.partitions - summary.skipped - len(summary.failed)
    print(
        f"{summary.images} images and {summary.people} people in {written} of {summary.partitions} partitions, "
        f"{summary.images / max(summary.seconds, 1e-9):.1f} images/s: {output}"
    )
    if summary.errors:
        say(f"error: {summary.errors} images failed; their rows have an error")
    if summary.failed:
        say(f"error: {len(summary.failed)} partitions failed; the same command tries them again")
    if summary.errors or summary.failed:
        raise typer.Exit(1)


def _read_resources(options: list[str]) -> dict[str, float]:
    """The values of --resource.

    Raises:
        ValueError: for another form than NAME=NUMBER.
    """
    resources = {}
    for option in options:
        name, _, number = option.partition("=")
        try:
            resources[name] = float(number)
        except ValueError:
            raise ValueError(f"--resource: expected NAME=NUMBER, as TPU=4, got {option!r}") from None
    return resources
