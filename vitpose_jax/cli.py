"""The command line: parses, calls, prints. Everything that imports jax is imported inside the commands."""

import enum
import pathlib
import sys
from collections.abc import Iterable
from typing import TYPE_CHECKING, Annotated, Any

import typer

from vitpose_jax import __version__

if TYPE_CHECKING:
    from vitpose_jax.poses import Poses

app = typer.Typer(
    help="ViTPose and ViTPose++ in JAX: keypoints of people and animals in images.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)


class Format(enum.StrEnum):
    """What `predict` writes."""

    json = "json"
    coco = "coco"
    openpose = "openpose"


class Decode(enum.StrEnum):
    """How heatmaps become points."""

    udp = "udp"
    transformers = "transformers"
    quarter = "quarter"
    argmax = "argmax"


class DType(enum.StrEnum):
    """In which the network computes."""

    float32 = "float32"
    bfloat16 = "bfloat16"
    float16 = "float16"


class Layout(enum.StrEnum):
    """What `convert` writes."""

    native = "native"
    huggingface = "huggingface"


@app.callback(invoke_without_command=True)
def _root(version: Annotated[bool, typer.Option("--version", help="Print the version.")] = False) -> None:
    if version:
        print(__version__)


@app.command()
def predict(
    images: Annotated[list[str], typer.Argument(help="Images: files, folders or glob patterns.", metavar="IMAGE...")],
    model: Annotated[str, typer.Option(help="A Hub id, a folder or a checkpoint file.", metavar="SOURCE")],
    output: Annotated[pathlib.Path, typer.Option(help="Folder for the results.", metavar="DIR")] = pathlib.Path(
        "poses"
    ),
    boxes: Annotated[
        list[str] | None,
        typer.Option(
            help="A JSON file (COCO results or annotations, or a table of boxes), or one box x,y,w,h; repeatable. "
            "Without it the whole image is one box.",
            metavar="FILE|x,y,w,h",
        ),
    ] = None,
    format: Annotated[Format, typer.Option(help="One JSON or OpenPose file an image, or one COCO file.")] = Format.json,
    draw: Annotated[bool, typer.Option("--draw", help="Also write each image with its poses drawn on it.")] = False,
    threshold: Annotated[float, typer.Option(help="Draw keypoints with at least this score.")] = 0.3,
    dataset: Annotated[str | None, typer.Option(help="Expert and head of a ViTPose++: coco, ap10k, ...")] = None,
    category: Annotated[int | None, typer.Option(help="Use only boxes of this category_id of the file.")] = None,
    min_score: Annotated[float | None, typer.Option(help="Use only boxes of at least this score.")] = None,
    flip_test: Annotated[bool, typer.Option("--flip-test", help="Average with the mirrored image.")] = False,
    decode: Annotated[Decode, typer.Option(help="How heatmaps become points.")] = Decode.udp,
    dtype: Annotated[DType, typer.Option(help="In which the network computes.")] = DType.float32,
    revision: Annotated[str | None, typer.Option(help="Branch, tag or commit on the Hub.")] = None,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Also do images whose results are there.")] = False,
) -> None:
    """Find the keypoints of the people or animals in boxes."""
    from vitpose_jax.detections import DetectionFile, Detections, image_id_of, parse_box
    from vitpose_jax.files import find_images
    from vitpose_jax.outputs import Results
    from vitpose_jax.preprocess import check_boxes

    paths = find_images(images)
    if boxes and len(boxes) == 1 and pathlib.Path(boxes[0]).is_file():
        file = DetectionFile(pathlib.Path(boxes[0]), category=category, min_score=min_score)
        detections = {path: file[path] for path in paths}
        unnamed = sum(path not in file for path in paths)
        if unnamed:
            _say(f"{unnamed} of {len(paths)} images have no boxes in {boxes[0]}")
    else:
        given = check_boxes([parse_box(box) for box in boxes], name="--boxes").tolist() if boxes else None
        detections = {path: Detections(image_id_of(path), given) for path in paths}
        if not boxes:
            _say("no --boxes: the whole image is taken as one box")
    results = Results(output, format.value, draw=draw, threshold=threshold, overwrite=overwrite)
    results.spare(paths)
    todo = [path for path in paths if not results.done(path)]
    if len(todo) < len(paths):
        _say(f"{len(paths) - len(todo)} of {len(paths)} images are done already; --overwrite does them again")
    if not todo:
        return

    import jax.numpy as jnp

    from vitpose_jax.estimator import ItemError, PoseEstimator

    estimator = PoseEstimator.from_pretrained(model, dtype=jnp.dtype(dtype.value), revision=revision)
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
        for path, poses in zip(todo, _progress(stream, len(todo)), strict=True):
            if isinstance(poses, ItemError):
                _say(f"error: {path}: {poses.__cause__}")
                failed += 1
                continue
            results.add(path, detections[path], poses)
            if len(paths) == 1:
                _print_poses(poses)
    finally:
        results.finish()
    print(f"{len(todo) - failed} of {len(paths)} images done: {output}")
    if failed:
        _say(f"error: {failed} images failed")
        raise typer.Exit(1)


@app.command()
def convert(
    source: Annotated[str, typer.Argument(help="A Hub id, a folder or a checkpoint file.")],
    dest: Annotated[pathlib.Path, typer.Argument(help="The folder to write.")],
    to: Annotated[Layout, typer.Option(help="The layout to write.")] = Layout.native,
    split: Annotated[bool, typer.Option("--split", help="One plain model for each data set of a ViTPose++.")] = False,
    dataset: Annotated[str | None, typer.Option(help="A plain model for this data set alone.")] = None,
    image_size: Annotated[tuple[int, int] | None, typer.Option(help="Height and width of a crop, in pixels.")] = None,
    skeleton: Annotated[str | None, typer.Option(help="What the head's channels are: coco, crowdpose, ...")] = None,
    revision: Annotated[str | None, typer.Option(help="Branch, tag or commit on the Hub.")] = None,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace a checkpoint that is there.")] = False,
) -> None:
    """Convert a checkpoint between PyTorch (the Hub's or the original layout) and the native format."""
    from vitpose_jax.convert import convert as run

    options: dict[str, Any] = {"split": split, "dataset": dataset, "image_size": image_size, "skeleton": skeleton}
    for folder in run(source, dest, to=to.value, overwrite=overwrite, revision=revision, **options):
        print(folder)


@app.command()
def info(
    source: Annotated[str, typer.Argument(help="A Hub id, a folder or a checkpoint file.")],
    revision: Annotated[str | None, typer.Option(help="Branch, tag or commit on the Hub.")] = None,
) -> None:
    """Say what a checkpoint holds, without loading its weights."""
    from vitpose_jax.pretrained import describe

    found = describe(source, revision=revision)
    config = found.config
    rows = {
        "path": found.path,
        "layout": found.layout,
        "parameters": f"{found.parameters / 1e6:.2f} M, stored as {found.dtype}, {found.size / 1e6:.1f} MB",
        "crops": f"{config.image_size[0]} x {config.image_size[1]} (height x width)",
        "backbone": f"{config.num_layers} blocks, {config.hidden_size} wide, {config.num_heads} heads",
        "experts": ", ".join(config.experts) or "none",
        "decoder": config.decoder,
        "heads": ", ".join(f"{skeleton.name} ({skeleton.num_keypoints})" for skeleton in config.skeletons),
    }
    for name, value in rows.items():
        print(f"{name:12} {value}")
    for reason, count in found.ignored.items():
        print(f"{'ignored':12} {count} tensors: {reason}")


@app.command()
def init(
    preset: Annotated[str, typer.Argument(help="small, base, large, huge, base-simple, plus-base, ...")],
    dest: Annotated[pathlib.Path, typer.Argument(help="The folder to write.")],
    seed: Annotated[int, typer.Option(help="Of the random weights.")] = 0,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace a checkpoint that is there.")] = False,
) -> None:
    """Write a model with random weights, to try things out or to start training from."""
    from flax import nnx

    from vitpose_jax import checkpoint
    from vitpose_jax.config import VitPoseConfig
    from vitpose_jax.modeling import VitPose

    config = VitPoseConfig.preset(preset)
    checkpoint.save(VitPose(config, rngs=nnx.Rngs(seed)), dest, overwrite=overwrite)
    print(dest)


def main(arguments: list[str] | None = None) -> None:
    """Run the command line: one line on standard error and a non-zero exit for a user's mistake."""
    try:
        app(arguments, prog_name="vitpose-jax")
    except (ValueError, OSError) as error:
        _say(f"error: {error}")
        raise SystemExit(1) from None


def _say(message: str) -> None:
    print(f"vitpose-jax: {message}", file=sys.stderr)


def _progress(results: Iterable, total: int) -> Iterable:
    from tqdm import tqdm

    return tqdm(results, total=total, unit="image", disable=total == 1 or not sys.stderr.isatty())


def _print_poses(poses: "Poses") -> None:
    for number, person in enumerate(poses):
        x, y, width, height = person.boxes[0]
        print(f"person {number}, box {x:g},{y:g},{width:g},{height:g}")
        for name, (column, row), score in zip(
            person.skeleton.keypoints, person.keypoints[0], person.scores[0], strict=True
        ):
            print(f"  {name:20} {column:9.2f} {row:9.2f}   score {score:.3f}")


if __name__ == "__main__":
    main()
