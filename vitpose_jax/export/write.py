"""`to_stablehlo` and `to_onnx`: write a file, read it again, run it, compare it with the model; then it is there."""

import dataclasses
import importlib.util
import os
import pathlib
import time
from collections.abc import Sequence
from typing import Any

import numpy as np

from vitpose_jax.export import reference
from vitpose_jax.export.metadata import PARTS, Metadata
from vitpose_jax.export.program import load, runs_here, this_platform
from vitpose_jax.export.runtimes import RUNTIMES, load_onnx
from vitpose_jax.export.stablehlo import build_program, check_platforms, write_program
from vitpose_jax.export.verify import COUNTS, Check, check_network, check_path
from vitpose_jax.pipeline.postprocess import Decode, get_decoding
from vitpose_jax.pipeline.regions import BOX_PADDING
from vitpose_jax.pipeline.warp import Border, check_border
from vitpose_jax.serving.requests import check_flip_pairs
from vitpose_jax.storage.atomic import whole_file, write_whole
from vitpose_jax.vitpose.adapters import check_no_adapters
from vitpose_jax.vitpose.modeling import VitPose


@dataclasses.dataclass(frozen=True, kw_only=True)
class Export:
    """A file that was written, and how near it is to the model.

    Attributes:
        path: of the file.
        reference: of the NumPy file beside an ONNX file; None for StableHLO.
        metadata: what the file says about itself.
        weights: what the kernels of the blocks are in the file: a dtype, "int8", or "int4" and the size of its groups.
        size: of the file, in bytes.
        seconds: to write it, to read it.
        checks: one for each runtime.
    """

    path: pathlib.Path
    reference: pathlib.Path | None
    metadata: Metadata
    weights: str
    size: int
    seconds: tuple[float, float]
    checks: tuple[Check, ...]


def to_stablehlo(
    model: VitPose,
    path: str | os.PathLike[str],
    *,
    part: str = "network",
    dataset: str | int | None = None,
    platforms: Sequence[str] = ("cpu", "cuda", "tpu"),
    batch: int | None = None,
    flip_test: bool = False,
    decode: Decode = "udp",
    border: Border = "scipy",
    padding: float = BOX_PADDING,
    stretch: bool = False,
    overwrite: bool = False,
) -> Export:
    """Write a model as a StableHLO file, which `load` reads with JAX alone.

    Args:
        model: any `VitPose`. Quantized kernels stay integers in the file.
        path: of the file.
        part: "network", from normalised crops to heatmaps; or "path", from pixels and boxes to keypoints.
        dataset: of a model with several heads: the one to export, with its expert. None for the first.
        platforms: for which it is compiled when it is loaded: cpu, cuda, rocm, tpu.
        batch: the number of crops; None for any.
        flip_test, decode, border, padding, stretch: of the path; see `PoseEstimator`.
        overwrite: replace an existing file.

    Returns:
        What was written and compared. The file is compared on this machine, so `platforms` includes its own.

    Raises:
        ValueError: for an existing file, bad options, or a file that does not compute what the model does: it is not
            kept.
    """
    path = _check_target(path, overwrite)
    if path.suffix == ".onnx":
        raise ValueError(f"{path}: expected another name than one of an ONNX file")
    if part not in PARTS:
        raise ValueError(f"part: expected {' or '.join(PARTS)}, got {part!r}")
    check_platforms(platforms)
    if not runs_here(platforms):
        raise ValueError(
            f"platforms: expected this machine's {this_platform()} among them, because the file is run before it "
            f"is kept; got {', '.join(platforms)}"
        )
    get_decoding(decode)
    check_border(border)
    counts = _check_batch(batch)
    model = one_head(model, dataset)
    options = {"flip_test": flip_test, "decode": decode, "border": border, "padding": padding, "stretch": stretch}
    if part == "network" and tuple(options.values()) != (False, "udp", "scipy", BOX_PADDING, False):
        raise ValueError(f"{', '.join(options)}: expected them with the part 'path'; a network has none")
    if flip_test:
        check_flip_pairs(model.config.skeletons[0])
    start = time.perf_counter()
    program = build_program(model, part, platforms=platforms, batch=batch, options=options)
    with whole_file(path) as temporary:
        metadata = write_program(program, temporary)
        written = time.perf_counter()
        loaded = load(temporary)
        read = time.perf_counter()
        check = (
            check_network(loaded, model, counts) if part == "network" else check_path(loaded, model, options, counts)
        )
    return Export(
        path=path,
        reference=None,
        metadata=metadata,
        weights=_describe_weights(model),
        size=path.stat().st_size,
        seconds=(written - start, read - written),
        checks=(check,),
    )


def to_onnx(
    model: VitPose,
    path: str | os.PathLike[str],
    *,
    dataset: str | int | None = None,
    batch: int | None = None,
    overwrite: bool = False,
) -> Export:
    """Write the network of a model as an ONNX file, and beside it a NumPy file for what comes before and after it.

    The file takes normalised crops, float32 (n, height, width, 3), and returns heatmaps (n, rows, columns, K); it
    computes in float32. It is compared in each of ONNX Runtime and OpenVINO that is installed. The NumPy file,
    `<name>_numpy.py`, is a copy of export/reference.py.

    Args:
        model: any `VitPose` that computes in float32. Quantized kernels stay integers in the file, with
            DequantizeLinear before each product; int4 needs opset 21.
        path: of the file; its name ends with .onnx.
        dataset, batch, overwrite: as in `to_stablehlo`.

    Raises:
        ValueError: for an existing file of either name, a model in another dtype or above 2 GiB, or a
            file that does not compute what the model does: it is not kept.
        ImportError: if onnx is not installed, or no runtime to compare the file in.
    """
    from vitpose_jax.export.onnx import build_graph

    path = _check_target(path, overwrite)
    if path.suffix != ".onnx":
        raise ValueError(f"{path}: expected a name that ends with .onnx")
    companion = _check_target(path.with_name(f"{path.stem}_numpy.py"), overwrite)
    dtype = np.dtype(model.backbone.dtype)
    if dtype != np.float32:
        raise ValueError(
            f"ONNX: expected a model that computes in float32, got {dtype}; runtimes choose it when they load"
        )
    runtimes = [name for name in RUNTIMES if importlib.util.find_spec(name)]
    if not runtimes:
        raise ImportError('an ONNX file is run before it is kept: pip install "vitpose-jax[onnxruntime]"')
    counts = _check_batch(batch)
    model = one_head(model, dataset)
    start = time.perf_counter()
    content = build_graph(model, batch)
    checks, read = [], 0.0
    with whole_file(path) as temporary:
        with temporary.open("xb") as file:
            file.writelines(content)
        del content
        written = time.perf_counter()
        for name in runtimes:
            begin = time.perf_counter()
            network = load_onnx(temporary, name)
            read = max(read, time.perf_counter() - begin)
            checks.append(check_network(network, model, counts, runtime=name))
        metadata = network.metadata
        # Before the ONNX file has its name: without the one, the other is not there either.
        write_whole(companion, pathlib.Path(reference.__file__).read_bytes())
    return Export(
        path=path,
        reference=companion,
        metadata=metadata,
        weights=_describe_weights(model),
        size=path.stat().st_size,
        seconds=(written - start, read),
        checks=tuple(checks),
    )


def _check_target(path: str | os.PathLike[str], overwrite: bool) -> pathlib.Path:
    path = pathlib.Path(path)
    if path.is_dir():
        raise ValueError(f"{path}: expected a file to write, got a folder")
    if path.exists() and not overwrite:
        raise ValueError(f"{path}: exists already; choose another name, or ask to overwrite")
    return path


def _check_batch(batch: int | None) -> tuple[int, ...]:
    """The numbers of crops to compare."""
    if batch is not None and batch < 1:
        raise ValueError(f"batch: expected at least 1, got {batch}")
    return COUNTS if batch is None else (batch,)


def one_head(model: VitPose, dataset: str | int | None) -> VitPose:
    """The network of a dataset with its head, or of the first one; a plain network is itself."""
    check_no_adapters(model, "export")
    config = model.config
    if dataset is None and not config.experts and len(config.skeletons) == 1:
        return model
    return model.specialize(dataset)


def _describe_weights(model: VitPose) -> str:
    quantization = model.quantization
    if quantization is None:
        return np.dtype(model.backbone.dtype).name
    return "int8" if quantization.kind == "int8" else f"int4 (groups of {quantization.group_size})"


def describe(export: Export) -> list[str]:
    """Lines for a person: the file, then each comparison."""
    metadata = export.metadata
    (count, *_) = metadata.outputs[0]["shape"]
    rows: dict[str, Any] = {
        "file": f"{export.path}, {export.size / 1e6:.1f} MB, written in {export.seconds[0]:.1f} s, "
        f"read in {export.seconds[1]:.1f} s",
        "holds": f"{metadata.part}, {metadata.skeleton.name}, {metadata.dtype}, "
        + (f"weights of the blocks in {export.weights}, " if export.weights != metadata.dtype else "")
        + f"{'any number of crops' if isinstance(count, str) else f'{count} crops'}"
        + (f", for {', '.join(metadata.platforms)}" if metadata.platforms else ""),
    }
    for check in export.checks:
        differences = ", ".join(f"{name} by {value:.1e}" for name, value in check.differences.items())
        rows[check.runtime] = (
            f"differs from the model at most: {differences} (largest value {check.largest:.2g}); "
            f"{check.counts[-1]} crops in {check.seconds[0] * 1000:.1f} ms, model {check.seconds[1] * 1000:.1f} ms"
        )
    if export.reference is not None:
        rows["beside it"] = f"{export.reference}: crops and keypoints in NumPy"
    return [f"{name:12} {value}" for name, value in rows.items()]
