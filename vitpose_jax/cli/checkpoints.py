"""`vitpose-jax convert`, `info` and `init`: checkpoints."""

import enum
import pathlib
from typing import Annotated, Any

import typer

from vitpose_jax.cli.common import Lenient, Revision


class Format(enum.StrEnum):
    """Formats that `convert` writes."""

    native = "native"
    huggingface = "huggingface"


def convert(
    source: Annotated[str, typer.Argument(help="A Hub id, a folder or a checkpoint file.")],
    dest: Annotated[pathlib.Path, typer.Argument(help="The folder to write.")],
    to: Annotated[Format, typer.Option(help="The format to write.")] = Format.native,
    split: Annotated[bool, typer.Option("--split", help="One plain model for each dataset of a ViTPose++.")] = False,
    dataset: Annotated[str | None, typer.Option(help="A plain model for this dataset only.")] = None,
    image_size: Annotated[tuple[int, int] | None, typer.Option(help="Height and width of a crop, in pixels.")] = None,
    skeleton: Annotated[str | None, typer.Option(help="The keypoints of the head: coco, crowdpose, ...")] = None,
    int8: Annotated[bool, typer.Option("--int8", help="Store int8 weights: a quarter of the bytes.")] = False,
    int4: Annotated[bool, typer.Option("--int4", help="Store int4 weights: an eighth of the bytes.")] = False,
    group_size: Annotated[
        int | None, typer.Option(help="With --int4: inputs that share a scale.", show_default="128")
    ] = None,
    revision: Revision = None,
    lenient: Lenient = False,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace an existing checkpoint.")] = False,
    allow_non_finite: Annotated[
        bool, typer.Option("--allow-non-finite", help="Convert tensors with NaN or infinity, too.")
    ] = False,
) -> None:
    """Convert a checkpoint between PyTorch (the Hub's or the original format) and the native format."""
    from vitpose_jax.convert import convert as run

    options: dict[str, Any] = {"split": split, "dataset": dataset, "image_size": image_size, "skeleton": skeleton}
    options |= {"int8": int8, "int4": int4, "group_size": group_size, "check_finite": not allow_non_finite}
    options["strict"] = not lenient
    for folder in run(source, dest, to=to.value, overwrite=overwrite, revision=revision, **options):
        print(folder)


def info(
    source: Annotated[str, typer.Argument(help="A Hub id, a folder or a checkpoint file.")],
    revision: Revision = None,
    lenient: Lenient = False,
) -> None:
    """Print what a checkpoint holds, without loading its weights."""
    from vitpose_jax.pretrained import describe

    description = describe(source, revision=revision, strict=not lenient)
    config = description.config
    rows = {
        "path": description.path,
        "format": description.format,
        "parameters": f"{description.parameters / 1e6:.2f} M, stored as {description.dtype}, "
        f"{description.size / 1e6:.1f} MB",
        "crops": f"{config.image_size[0]} x {config.image_size[1]} (height x width)",
        "backbone": f"{config.num_layers} blocks, {config.hidden_size} wide, {config.num_heads} heads",
        "experts": ", ".join(config.experts) or "none",
        "decoder": config.decoder,
        "heads": ", ".join(f"{skeleton.name} ({skeleton.num_keypoints})" for skeleton in config.skeletons),
    }
    for name, value in rows.items():
        print(f"{name:12} {value}")
    for reason, count in description.ignored.items():
        print(f"{'ignored':12} {count} tensors: {reason}")


def init(
    preset: Annotated[str, typer.Argument(help="small, base, large, huge, base-simple, plus-base, ...")],
    dest: Annotated[pathlib.Path, typer.Argument(help="The folder to write.")],
    seed: Annotated[int, typer.Option(help="Seed of the random weights.")] = 0,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace an existing checkpoint.")] = False,
) -> None:
    """Write a model with random weights, for a first try or to start training from."""
    from flax import nnx

    from vitpose_jax import checkpoint
    from vitpose_jax.vitpose.config import VitPoseConfig
    from vitpose_jax.vitpose.modeling import VitPose

    config = VitPoseConfig.preset(preset)
    checkpoint.save(VitPose(config, rngs=nnx.Rngs(seed)), dest, overwrite=overwrite)
    print(dest)
