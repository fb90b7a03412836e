"""Exported StableHLO programs: `load(file)` needs JAX and NumPy, and neither Flax nor the network.

    FILE            one safetensors file
      header        metadata (metadata.py)
      "program"     what `jax.export` serialised: StableHLO, for a batch of any size
      other tensors the weights, by their flat names; the program's first argument

The weights are not inside the program. So programs for several batch sizes share them on the device, XLA does not
compile them as constants, and the file may be larger than the two gigabytes that a serialised program may have.
"""

import hashlib
import os
import pathlib
from collections.abc import Sequence
from typing import Any

import jax
import jax.export
import jax.extend.backend
import jax.numpy as jnp
import numpy as np
from safetensors import SafetensorError, safe_open

from vitpose_jax.export.metadata import KEY, Metadata
from vitpose_jax.storage.forks import check_not_forked
from vitpose_jax.storage.tensors import open_safetensors
from vitpose_jax.storage.text import printable

PROGRAM = "program"


class ExportedProgram:
    """A program of a file, to be called with its inputs; `load` makes it.

    A network takes normalised crops, Float32[n height width 3], and returns heatmaps, Float[n rows columns K].

    A path takes a flat buffer of RGB pixels, UInt8[p 3], shapes, Int32[n 3], which are the first pixel, the height and
    the width of each box's image, and boxes, Float32[n 4], x y w h in pixels of the image. It returns keypoints
    Float32[n K 2], (x, y) in pixels of the image, scores Float32[n K] and covariances Float32[n K 2 2].

    Programs are compiled once for each size of the batch (and of the pixel buffer) that occurs.

    Attributes:
        metadata: inputs, outputs, skeleton, mean, standard deviation and more.
    """

    def __init__(self, exported: jax.export.Exported, weights: list[jax.Array], metadata: Metadata):
        self.metadata = metadata
        self._weights = weights
        self._run: Any = jax.jit(exported.call)

    def __repr__(self) -> str:
        inputs = ", ".join(f"{spec['name']} {spec['dtype']}{spec['shape']}" for spec in self.metadata.inputs)
        return f"ExportedProgram({self.metadata.part}, {self.metadata.skeleton.name}, {inputs})"

    def __call__(self, *inputs: Any) -> Any:
        """Start the program; its results are arrays that JAX may still be computing.

        Args:
            inputs: arrays in the order of `metadata.inputs`.

        Raises:
            ValueError: for another number of arrays, other shapes or dtypes.
        """
        check_not_forked()
        arrays = [array if isinstance(array, jax.Array) else np.asarray(array) for array in inputs]
        self._check(arrays)
        return self._run(self._weights, *arrays)

    def _check(self, arrays: list[Any]) -> None:
        specs = self.metadata.inputs
        if len(arrays) != len(specs):
            names = ", ".join(spec["name"] for spec in specs)
            raise ValueError(f"expected {len(specs)} arrays ({names}), got {len(arrays)}")
        sizes: dict[str, int] = {}
        for array, spec in zip(arrays, specs, strict=True):
            same = len(array.shape) == len(spec["shape"]) and all(
                size == (sizes.setdefault(side, size) if isinstance(side, str) else side)
                for size, side in zip(array.shape, spec["shape"], strict=True)
            )
            if not same or 0 in array.shape or array.dtype.name != spec["dtype"]:
                shape = ", ".join(str(sizes.get(side, side)) for side in spec["shape"])
                raise ValueError(
                    f"{spec['name']}: expected {spec['dtype']} of shape ({shape}), got {array.dtype} of {array.shape}"
                )

    @property
    def device_kind(self) -> str:
        """The kind of the device: "cpu", "NVIDIA H100 80GB HBM3", "TPU v5 lite", ..."""
        return self._weights[0].devices().pop().device_kind

    @property
    def num_compiled(self) -> int:
        """The number of programs compiled so far."""
        return self._run._cache_size()


def load(path: str | os.PathLike[str]) -> ExportedProgram:
    """Load a StableHLO file that `vitpose-jax export` or `to_stablehlo` wrote.

    A program can do all that JAX can: load files from sources that you trust.

    Args:
        path: of the file.

    Returns:
        The program, with its weights on JAX's default device.

    Raises:
        ValueError: if the file is missing, damaged or something else, is of a newer version, or has no program for the
            platform of the default device.
        RuntimeError: in a process that was forked after JAX was used.
    """
    check_not_forked()
    path = pathlib.Path(path)
    if path.is_dir():
        raise ValueError(f"{path}: expected a file that `vitpose-jax export` wrote, got a folder")
    if path.suffix == ".onnx":
        raise ValueError(f"{path}: expected a StableHLO file; load_onnx reads ONNX files")
    metadata = read_metadata(path)
    tensors = open_safetensors(path)
    if set(tensors) != {PROGRAM, *metadata.weights}:
        raise ValueError(f"{path}: damaged: its tensors are not those that its metadata names")
    if not runs_here(metadata.platforms):
        raise ValueError(
            f"{path}: was exported for {', '.join(metadata.platforms)}, and this is {this_platform()}; "
            "export it with --platforms"
        )
    serialized = np.asarray(tensors[PROGRAM]).tobytes()
    arrays = [np.ascontiguousarray(tensors[name]) for name in metadata.weights]
    digest = hashlib.sha256(serialized)
    for array in arrays:
        digest.update(array.reshape(-1).view(np.uint8).data)
    if digest.hexdigest() != metadata.sha256:
        raise ValueError(f"{path}: damaged: its checksum is not the one in its metadata")
    try:
        exported = jax.export.deserialize(bytearray(serialized))
    except (ValueError, RuntimeError) as error:
        raise ValueError(
            f"{path}: JAX {jax.__version__} cannot read this program, which JAX {metadata.versions.get('jax')} wrote "
            f"({printable(error)})"
        ) from error
    # The file may hold narrower numbers than the program takes.
    weights = [jnp.asarray(array, aval.dtype) for array, aval in zip(arrays, exported.in_avals, strict=False)]
    return ExportedProgram(exported, weights, metadata)


def read_metadata(path: pathlib.Path) -> Metadata:
    """The metadata of a StableHLO file, without reading its weights.

    Raises:
        ValueError: if it is not such a file.
    """
    try:
        with safe_open(path, framework="numpy") as file:
            header = file.metadata() or {}
    except OSError as error:
        raise ValueError(f"{path}: cannot be read ({error.strerror or error})") from error
    except SafetensorError as error:
        raise ValueError(f"{path}: not an exported file, or truncated ({printable(error)})") from error
    if KEY not in header:
        raise ValueError(f"{path}: expected a file that `vitpose-jax export` wrote, got other safetensors")
    return Metadata.from_json(header[KEY], source=str(path))


def runs_here(platforms: Sequence[str]) -> bool:
    """Whether a program for these platforms runs on JAX's default device."""
    return this_platform() in platforms


def this_platform() -> str:
    """The platform of JAX's default device, in the names of exported files: cpu, cuda, rocm, tpu."""
    name = jax.default_backend()
    if name != "gpu":
        return name
    # For JAX both are "gpu"; the version begins with the name of one.
    version = jax.extend.backend.get_backend().platform_version
    return "rocm" if "rocm" in version.lower() else "cuda"
