"""What the commands share: values of options, messages on standard error, exit status."""

import enum
import pathlib
import sys
from typing import TYPE_CHECKING, Annotated, Literal, TypedDict

import typer

if TYPE_CHECKING:
    import jax

    from vitpose_jax.bulk.report import Summary


class Decode(enum.StrEnum):
    """How heatmaps are decoded to points."""

    udp = "udp"
    transformers = "transformers"
    quarter = "quarter"
    argmax = "argmax"


class DType(enum.StrEnum):
    """The dtype of the computation; "auto" is bfloat16 where the machine is faster with it."""

    float32 = "float32"
    bfloat16 = "bfloat16"
    float16 = "float16"
    auto = "auto"


class Runtime(enum.StrEnum):
    """What the network runs in."""

    jax = "jax"
    onnxruntime = "onnxruntime"
    openvino = "openvino"


class Quantize(enum.StrEnum):
    """How the kernels of the blocks are kept in memory."""

    int8 = "int8"
    int4 = "int4"


class QuantizeOptions(TypedDict, total=False):
    """Arguments of `from_pretrained`."""

    quantize: Literal["int8", "int4"]
    group_size: int


# Options that several commands have.
Model = Annotated[
    str, typer.Option(help="A Hub id, a folder, a checkpoint file, or the bundled model.", metavar="SOURCE")
]
BoxDetector = Annotated[
    str,
    typer.Option(help="Find the boxes with this detector: a Hub id, a folder, or the bundled one.", metavar="SOURCE"),
]
Labels = Annotated[
    list[str] | None, typer.Option(help="Class to detect: a name, animals or all; repeatable. Default: person.")
]
Expert = Annotated[str | None, typer.Option(help="Expert and head of a ViTPose++: coco, ap10k, ...")]
FlipTest = Annotated[bool, typer.Option("--flip-test", help="Average with the mirrored crops.")]
DecodeOption = Annotated[Decode, typer.Option(help="How heatmaps are decoded to points.")]
DTypeOption = Annotated[DType, typer.Option(help="The dtype of the computation.")]
RuntimeOption = Annotated[Runtime, typer.Option(help="What the network runs in; openvino is often faster on a CPU.")]
QuantizeOption = Annotated[
    Quantize | None,
    typer.Option("--quantize", help="Keep the weights of the blocks as int8 or int4.", show_default="float"),
]
GroupSize = Annotated[
    int | None,
    typer.Option("--group-size", help="With --quantize int4: inputs that share a scale.", show_default="128"),
]
Revision = Annotated[str | None, typer.Option(help="Branch, tag or commit on the Hub.")]
Lenient = Annotated[
    bool, typer.Option("--lenient", help="Pass over unknown keys of a config.json, which may matter, with a warning.")
]
Devices = Annotated[int, typer.Option(help="Divide batches among this many devices.", min=1)]
Distributed = Annotated[
    bool, typer.Option("--distributed", help="This is one of several processes: call jax.distributed.initialize().")
]


def choose_devices(count: int, *, distributed: bool) -> "list[jax.Device] | None":
    """The devices of this process that --devices and --distributed name; None for JAX's default.

    Raises:
        ValueError: if there are not so many.
    """
    import jax

    if distributed:
        jax.distributed.initialize()
    available = jax.local_devices()
    if count > len(available):
        raise ValueError(f"--devices: expected at most {len(available)}, the number of devices, got {count}")
    return available[:count] if count > 1 else None


def say(message: str) -> None:
    """Print a line on standard error, after the program's name."""
    print(f"vitpose-jax: {message}", file=sys.stderr)


def dataset_key(dataset: str | None) -> str | int | None:
    """What --dataset names: a dataset by name, or by index if it is a whole number."""
    return int(dataset) if dataset and dataset.isdecimal() else dataset


def quantize_options(quantize: Quantize | None, group_size: int | None) -> "QuantizeOptions":
    """The arguments of `from_pretrained` that --quantize and --group-size stand for; empty without them.

    Raises:
        ValueError: for a group size without int4, before anything is loaded.
    """
    if group_size is not None and quantize is not Quantize.int4:
        raise ValueError(f"--group-size: expected it with --quantize int4, got --quantize {quantize or 'nothing'}")
    options: QuantizeOptions = {}
    if quantize is not None:
        options["quantize"] = quantize.value
    if group_size is not None:
        options["group_size"] = group_size
    return options


def runtime_setting(runtime: Runtime) -> dict[str, str]:
    """The setting that --runtime stands for; none for JAX, so that older results can be resumed."""
    return {} if runtime is Runtime.jax else {"runtime": runtime.value}


def show_progress(total: int) -> bool:
    """Whether to show a progress bar for so many images: on a terminal, for more than one."""
    return total > 1 and sys.stderr.isatty()


def exit_with_failures(summary: "Summary") -> None:
    """Exit with status 1 if images failed.

    Raises:
        typer.Exit: if they did.
    """
    if summary.failed:
        say(f"error: {len(summary.failed)} images failed")
        raise typer.Exit(1)


def named_source(source: str) -> str:
    """A model's source as settings name it: a file or folder by its whole path, from wherever the command runs."""
    return str(pathlib.Path(source).resolve()) if pathlib.Path(source).exists() else source
