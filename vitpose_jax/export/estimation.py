"""What a `PoseEstimator` runs in the place of a model: an exported file, or the model's networks in another runtime.

ExportedModel   a file
    network     make_crops -> the file's network, in JAX or another runtime -> read_heatmaps
    path        the file's program does all of it
RuntimeModel    an ExportedModel for each head, through memory
"""

import functools
import os
import pathlib
import threading
from collections.abc import Sequence
from typing import Any, Literal, TypeGuard

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import DTypeLike
from jaxtyping import Array, Float

from vitpose_jax.export.program import ExportedProgram, load
from vitpose_jax.export.runtimes import RUNTIMES, OnnxNetwork, check_installed, check_runtime, load_graph, load_onnx
from vitpose_jax.pipeline.packing import PackedImages
from vitpose_jax.pipeline.postprocess import Decode
from vitpose_jax.pipeline.predict import make_crops, read_heatmaps
from vitpose_jax.pipeline.warp import Border
from vitpose_jax.pretrained import from_pretrained
from vitpose_jax.vitpose.config import VitPoseConfig
from vitpose_jax.vitpose.modeling import VitPose
from vitpose_jax.vitpose.ops import check_dtype, choose_dtype, has_bfloat16_products

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


class RuntimeModel:
    """A model whose networks run in ONNX Runtime or OpenVINO, as a `PoseEstimator` needs it.

    These run one head with its expert. The network of a model with one head is made at once. Those of a model with
    several are made when a dataset is first used, each with weights of its own, and the model in JAX stays for the next
    one; `VitPose.specialize` gives a model with one head.

    Args:
        model: any `VitPose`; the networks take its parameters as float32. With one head it is not kept.
        runtime: "onnxruntime" or "openvino".
        dtype: in which the networks compute, see `load_onnx`. "auto" is bfloat16 in OpenVINO on processors with
            instructions for it, otherwise float32.

    Attributes:
        config: of the model, with all its heads and experts.
        dtype: in which the networks compute.
        runtime: their runtime.
        quantization: of the model's kernels, which are so in the networks.
        source: what all results depend on: the network of the only head, or a model with several.

    Raises:
        ValueError: for an unknown runtime, a dtype that it does not know, or a network above 2 GiB.
        ImportError: if the runtime or onnx is not installed.
    """

    def __init__(self, model: VitPose, runtime: str, *, dtype: DTypeLike | Literal["auto"] = jnp.float32):
        self._name = _choose_dtype(runtime, dtype)
        self.config, self.quantization = model.config, model.quantization
        self.dtype, self.runtime = jnp.dtype(self._name), runtime
        self._networks: dict[int, ExportedModel] = {}
        self._lock = threading.Lock()
        several = len(model.config.skeletons) > 1
        self.source = model if several else self._load(model, None)

    def network(self, dataset_index: int) -> ExportedModel:
        """The network of a dataset, which is made the first time."""
        if isinstance(self.source, ExportedModel):
            return self.source
        with self._lock:  # several threads may call an estimator
            if dataset_index not in self._networks:
                self._networks[dataset_index] = self._load(self.source, dataset_index)
            return self._networks[dataset_index]

    def _load(self, model: VitPose, dataset_index: int | None) -> ExportedModel:
        # It needs the package onnx.
        from vitpose_jax.export.onnx import build_graph
        from vitpose_jax.export.write import one_head

        content = b"".join(build_graph(one_head(model, dataset_index)))
        return ExportedModel(load_graph(content, self.runtime, dtype=self._name))

    def fixed_batch(self, *, flip_test: bool = False) -> None:
        """None: the networks take any number of boxes."""

    def program(self, *, border: Border, padding: float, stretch: bool) -> "RuntimePath":
        """The whole path.

        Args:
            border, padding, stretch: see `PoseEstimator`.
        """
        return RuntimePath(self, border=border, padding=padding, stretch=stretch)


class RuntimePath:
    """From images and boxes to keypoints, each dataset in its own network, as serving/program.py runs a model."""

    def __init__(self, model: RuntimeModel, **options: Any):
        self._model, self._options = model, options
        self._paths: dict[int, ExportedPath] = {}

    def __call__(
        self, images: PackedImages, boxes: Float[Array, "n 4"], *, dataset_index: int = 0, **options: Any
    ) -> tuple[Float[Array, "n K 2"], Float[Array, "n K"], Float[Array, "n K 2 2"]]:
        """As `predict`."""
        return self._path(dataset_index)(images, boxes, **options)

    def _path(self, dataset_index: int) -> ExportedPath:
        if dataset_index not in self._paths:
            path = self._model.network(dataset_index).program(**self._options)
            return self._paths.setdefault(dataset_index, path)
        return self._paths[dataset_index]

    @property
    def device_kind(self) -> str:
        """The kind of the device that the networks run on; if there is none yet, that of the first head is made."""
        path = next(iter(list(self._paths.values())), None)
        return (path or self._path(self._model.config.dataset_index())).device_kind

    @property
    def num_compiled(self) -> int:
        """The number of programs that JAX compiled so far."""
        return sum(path.num_compiled for path in list(self._paths.values()))


def load_model(
    source: str | os.PathLike[str],
    runtime: str = JAX,
    *,
    devices: Sequence[jax.Device] | jax.sharding.Mesh | None = None,
    dtype: DTypeLike | Literal["auto"] = jnp.float32,
    param_dtype: DTypeLike | None = None,
    **kwargs: Any,
) -> VitPose | RuntimeModel:
    """A pretrained model, for a runtime.

    Args:
        source: see `vitpose_jax.from_pretrained`.
        runtime: "jax", "onnxruntime" or "openvino".
        devices: those of `PoseEstimator`; None with another runtime than JAX.
        dtype: in which the model computes; in another runtime as `RuntimeModel` says.
        param_dtype: see `vitpose_jax.from_pretrained`, but None means `dtype` on CPUs too; in another runtime float32.
        kwargs: for `vitpose_jax.from_pretrained`.

    Raises:
        ValueError, ImportError: as `from_pretrained` and `RuntimeModel`; for an unknown runtime, and for devices or a
            `param_dtype` that it does not take. What can be checked is checked before the model is read.
    """
    if runtime == JAX:
        # Programs read the arrays of single blocks, of any dtype; only a scan is slow with stacked bfloat16 on a CPU.
        dtype = choose_dtype(dtype)
        param_dtype = dtype if param_dtype is None else param_dtype
        return from_pretrained(source, dtype=dtype, param_dtype=param_dtype, **kwargs)
    if runtime not in RUNTIMES:
        raise ValueError(f"runtime: expected one of {JAX}, {', '.join(RUNTIMES)}, got {runtime!r}")
    if devices is not None:
        raise ValueError(f"devices: expected none with the runtime {runtime}, which chooses its own")
    if param_dtype is not None:
        check_dtype(param_dtype, "param_dtype")
        if jnp.dtype(param_dtype) != jnp.float32:
            raise ValueError(f"param_dtype: expected float32 with the runtime {runtime}, got {jnp.dtype(param_dtype)}")
    _choose_dtype(runtime, dtype)
    return RuntimeModel(from_pretrained(source, **kwargs), runtime, dtype=dtype)


def _choose_dtype(runtime: str, dtype: DTypeLike | Literal["auto"]) -> str:
    """The name of the dtype for a runtime, which is there and knows it."""
    if isinstance(dtype, str) and dtype == "auto":
        name = "bfloat16" if runtime == "openvino" and has_bfloat16_products() else "float32"
    else:
        check_dtype(dtype)
        name = jnp.dtype(dtype).name
    check_runtime(runtime, name)
    check_installed(runtime)
    return name
