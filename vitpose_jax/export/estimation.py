"""An exported file in the place of a model: what `PoseEstimator.from_exported` runs.

network   make_crops -> the file's network, in JAX or another runtime -> read_heatmaps
path      the file's program does all of it
"""

import functools
import os
import pathlib
from typing import Any, TypeGuard

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from vitpose_jax.export.program import ExportedProgram, load
from vitpose_jax.export.runtimes import OnnxNetwork, load_onnx
from vitpose_jax.pipeline.packing import PackedImages
from vitpose_jax.pipeline.postprocess import Decode
from vitpose_jax.pipeline.predict import make_crops, read_heatmaps
from vitpose_jax.pipeline.warp import Border
from vitpose_jax.vitpose.config import VitPoseConfig

JAX = "jax"


class ExportedModel:
    """The network or path of a file, as a `PoseEstimator` needs it.

    Attributes:
        exported: what the file holds.
        config: of its network.
        dtype: in which it computes.
        runtime: "jax", "onnxruntime" or "openvino".

    Raises:
        ValueError: if the file's configuration is damaged.
    """

    def __init__(self, exported: ExportedProgram | OnnxNetwork):
        self.exported = exported
        self.config = VitPoseConfig.from_dict(exported.metadata.config)
        self.dtype = jnp.dtype(exported.dtype if isinstance(exported, OnnxNetwork) else exported.metadata.dtype)
        self.runtime = exported.runtime if isinstance(exported, OnnxNetwork) else JAX

    @classmethod
    def load(
        cls, path: str | os.PathLike[str], runtime: str | None = None, *, dtype: str | None = None
    ) -> "ExportedModel":
        """Load a file.

        Args:
            path: of a StableHLO or an ONNX file; the latter's name ends with .onnx.
            runtime: "jax" for StableHLO, "onnxruntime" or "openvino" for ONNX. None for the first that fits.
            dtype: in which OpenVINO computes, see `load_onnx`; None for the file's.

        Raises:
            ValueError: as `load` and `load_onnx`; for a runtime that does not fit the file, and for a dtype of a
                StableHLO file, which has its own.
            ImportError: if the runtime is not installed.
        """
        path = pathlib.Path(path)
        if path.suffix == ".onnx":
            if runtime == JAX:
                raise ValueError(f"{path}: expected the runtime onnxruntime or openvino for an ONNX file, got 'jax'")
            return cls(load_onnx(path, runtime or "onnxruntime", dtype=dtype or "float32"))
        if runtime not in (None, JAX):
            raise ValueError(f"{path}: expected the runtime 'jax' for a file that is not .onnx, got {runtime!r}")
        program = load(path)
        if dtype not in (None, program.metadata.dtype):
            raise ValueError(f"{path}: computes in {program.metadata.dtype}, expected no other dtype, got {dtype}")
        return cls(program)

    def fixed_batch(self, *, flip_test: bool = False) -> int | None:
        """The only number of boxes that the file takes at once; None if it takes any.

        Args:
            flip_test: whether a network computes two crops of each box.

        Raises:
            ValueError: for a flip test by a network for an odd number of crops.
        """
        count = self.exported.metadata.inputs[-1]["shape"][0]
        if not isinstance(count, int):
            return None
        if not flip_test or self.exported.metadata.part == "path":
            return count
        if count % 2:
            raise ValueError(f"flip_test: expected a file for an even number of crops, got one for {count}")
        return count // 2

    def program(self, *, border: Border, padding: float, stretch: bool) -> "ExportedPath":
        """The whole path.

        Args:
            border, padding, stretch: see `PoseEstimator`.

        Raises:
            ValueError: if the file holds the whole path with other options.
        """
        return ExportedPath(self.exported, self.config, border=border, padding=padding, stretch=stretch)


class ExportedPath:
    """From images and boxes to keypoints, as serving/program.py runs it for a model."""

    def __init__(
        self,
        exported: ExportedProgram | OnnxNetwork,
        config: VitPoseConfig,
        *,
        border: Border,
        padding: float,
        stretch: bool,
    ):
        self._exported = exported
        self._crop: Any = jax.jit(
            functools.partial(make_crops, config, border=border, padding=padding, stretch=stretch),
            static_argnames=("flip_test", "decode"),
        )
        self._read: Any = jax.jit(
            functools.partial(read_heatmaps, config, padding=padding, stretch=stretch),
            static_argnames=("flip_test", "decode"),
        )
        self._check({"border": border, "padding": padding, "stretch": stretch})

    def __call__(
        self,
        images: PackedImages,
        boxes: Float[Array, "n 4"],
        *,
        dataset_index: int = 0,
        flip_test: bool = False,
        decode: Decode = "udp",
    ) -> tuple[Float[Array, "n K 2"], Float[Array, "n K"], Float[Array, "n K 2 2"]]:
        """As `predict`. There is one head, so `dataset_index` is 0.

        Raises:
            ValueError: if the file holds the whole path with another `flip_test` or `decode`, or takes another number
                of crops.
        """
        self._check({"flip_test": flip_test, "decode": decode})
        if self._is_path(self._exported):
            return self._exported(images.pixels, np.asarray(images.shapes, np.int32), boxes)
        crops = self._crop(images, boxes, flip_test=flip_test, decode=decode)
        return self._read(self._exported(crops), boxes, flip_test=flip_test, decode=decode)

    @staticmethod
    def _is_path(exported: ExportedProgram | OnnxNetwork) -> TypeGuard[ExportedProgram]:
        return isinstance(exported, ExportedProgram) and exported.metadata.part == "path"

    def _check(self, options: dict[str, Any]) -> None:
        stored = self._exported.metadata.options
        for name, value in options.items():
            if stored.get(name, value) != value:
                raise ValueError(f"{name}: this file was exported with {stored[name]!r}, got {value!r}")

    @property
    def device_kind(self) -> str:
        """The kind of the device."""
        return self._exported.device_kind

    @property
    def num_compiled(self) -> int:
        """The number of programs that JAX compiled so far."""
        if self._is_path(self._exported):
            return self._exported.num_compiled
        network = self._exported.num_compiled if isinstance(self._exported, ExportedProgram) else 0
        return network + self._crop._cache_size() + self._read._cache_size()
