"""`vitpose-jax export`: a model as one file for JAX alone or for ONNX runtimes."""

import enum
import pathlib
from typing import Annotated, Any

import typer

from vitpose_jax.cli.common import Decode, DType, GroupSize, Lenient, QuantizeOption, Revision, quantize_options


class Target(enum.StrEnum):
    """Formats that `export` writes."""

    stablehlo = "stablehlo"
    onnx = "onnx"


class Part(enum.StrEnum):
    """What is exported."""

    network = "network"
    path = "path"


class Border(enum.StrEnum):
    """How pixels outside the image count."""

    scipy = "scipy"
    opencv = "opencv"


PLATFORMS = "cpu,cuda,tpu"


def export(
    model: Annotated[str, typer.Argument(help="A Hub id, a folder or a checkpoint file.")],
    to: Annotated[Target, typer.Option(help="The format to write.")],
    output: Annotated[pathlib.Path, typer.Option(help="The file to write.", metavar="FILE")],
    part: Annotated[
        Part, typer.Option(help="From crops to heatmaps, or (stablehlo) from pixels and boxes to keypoints.")
    ] = Part.network,
    dataset: Annotated[
        str | None, typer.Option(help="Of a model with several heads: the one to export; default: the first.")
    ] = None,
    dtype: Annotated[DType, typer.Option(help="The dtype of the computation; onnx: float32.")] = DType.float32,
    quantize: QuantizeOption = None,
    group_size: GroupSize = None,
    platforms: Annotated[
        str, typer.Option(help="stablehlo: where the file can run, this machine included: cpu, cuda, rocm, tpu.")
    ] = PLATFORMS,
    batch: Annotated[int | None, typer.Option(help="A fixed number of crops; default: any number.", min=1)] = None,
    flip_test: Annotated[bool, typer.Option("--flip-test", help="path: average with the mirrored image.")] = False,
    decode: Annotated[Decode, typer.Option(help="path: how heatmaps become points.")] = Decode.udp,
    border: Annotated[Border, typer.Option(help="path: how pixels outside the image count.")] = Border.scipy,
    skeleton: Annotated[str | None, typer.Option(help="The keypoints of the head: coco, crowdpose, ...")] = None,
    revision: Revision = None,
    lenient: Lenient = False,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace an existing file.")] = False,
) -> None:
    """Export a model as one file, and compare it with the model."""
    if to is Target.onnx and part is Part.path:
        raise ValueError("--part path: not with --to onnx; the NumPy file beside it does what comes before and after")
    if to is Target.onnx and platforms != PLATFORMS:
        raise ValueError("--platforms: not with --to onnx, whose runtimes choose the device")
    path_options = {
        "--flip-test": flip_test,
        "--decode": decode is not Decode.udp,
        "--border": border is not Border.scipy,
    }
    for name, used in path_options.items():
        if used and part is Part.network:
            raise ValueError(f"{name}: expected --part path with it; a network ends with heatmaps")

    rounding = quantize_options(quantize, group_size)

    from vitpose_jax.export.write import describe, to_onnx, to_stablehlo
    from vitpose_jax.pretrained import from_pretrained

    network = from_pretrained(
        model, dtype=dtype.value, revision=revision, strict=not lenient, skeleton=skeleton, **rounding
    )
    common: dict[str, Any] = {"dataset": dataset, "batch": batch, "overwrite": overwrite}
    if to is Target.onnx:
        written = to_onnx(network, output, **common)
    else:
        written = to_stablehlo(
            network,
            output,
            part=part.value,
            platforms=[name.strip() for name in platforms.split(",") if name.strip()],
            flip_test=flip_test,
            decode=decode.value,
            border=border.value,
            **common,
        )
    print(*describe(written), sep="\n")
