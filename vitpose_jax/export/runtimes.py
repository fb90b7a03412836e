"""ONNX files in ONNX Runtime and OpenVINO, for `PoseEstimator.from_exported` and for the check after an export."""

import hashlib
import importlib
import importlib.util
import os
import pathlib
import sys
from collections.abc import Callable
from typing import Any

import numpy as np
from jaxtyping import Float

from vitpose_jax.export.metadata import KEY, Metadata, onnx_property
from vitpose_jax.storage.text import printable

RUNTIMES = ("onnxruntime", "openvino")
# With int8 or int4 weights, both round the activations to int8 before a product unless these options are set.
ACCURACY_OPTION, ACCURACY_LEVEL = "session.qdq_matmulnbits_accuracy_level", "1"  # 1 is float32
EXACT_PRODUCTS = {"DYNAMIC_QUANTIZATION_GROUP_SIZE": 0}
_PRECISIONS = {"float32": "f32", "bfloat16": "bf16", "float16": "f16"}


class OnnxNetwork:
    """The network of an ONNX file; `load_onnx` makes it.

    Attributes:
        metadata: inputs, outputs, skeleton, mean, standard deviation and more.
        runtime: "onnxruntime" or "openvino".
        dtype: in which it computes.
    """

    def __init__(
        self, run: Callable[[np.ndarray], np.ndarray], metadata: Metadata, *, runtime: str, dtype: str, device_kind: str
    ):
        self.metadata, self.runtime, self.dtype, self.device_kind = metadata, runtime, dtype, device_kind
        self._run = run

    def __repr__(self) -> str:
        height, width = self.metadata.image_size
        return f"OnnxNetwork({self.metadata.skeleton.name}, crops {height} x {width}, {self.runtime}, {self.dtype})"

    def __call__(self, crops: Any) -> Float[np.ndarray, "n rows columns K"]:
        """The heatmaps of normalised crops.

        Args:
            crops: float32 (n, height, width, 3).

        Raises:
            ValueError: for crops of another shape.
        """
        crops = np.asarray(crops, np.float32)
        count, *sides = self.metadata.inputs[0]["shape"]
        if crops.ndim != 4 or list(crops.shape[1:]) != sides or crops.shape[0] < 1 or count not in ("n", len(crops)):
            raise ValueError(f"crops: expected shape ({', '.join(map(str, (count, *sides)))}), got {crops.shape}")
        return self._run(crops)


def load_onnx(path: str | os.PathLike[str], runtime: str = "onnxruntime", *, dtype: str = "float32") -> OnnxNetwork:
    """Load an ONNX file that `vitpose-jax export` or `to_onnx` wrote.

    Args:
        path: of the file.
        runtime: "onnxruntime", which uses the devices that its package is for, or "openvino", on the CPU.
        dtype: in which the network computes. ONNX Runtime knows float32; OpenVINO also bfloat16 and float16, where the
            processor does.

    Raises:
        ValueError: for an unknown runtime, a dtype that it does not know, or a file that is missing, damaged or
            something else.
        ImportError: if the runtime is not installed.
    """
    if runtime not in RUNTIMES:
        raise ValueError(f"runtime: expected one of {', '.join(RUNTIMES)}, got {runtime!r}")
    known = list(_PRECISIONS) if runtime == "openvino" else ["float32"]
    if dtype not in known:
        raise ValueError(f"dtype: {runtime} expects {' or '.join(known)}, got {dtype}")
    path = pathlib.Path(path)
    if not path.is_file():
        raise ValueError(f"{path}: expected an ONNX file, found {'a folder' if path.is_dir() else 'none'}")
    if importlib.util.find_spec(runtime) is None:
        package = "openvino" if runtime == "openvino" else '"vitpose-jax[onnxruntime]"'
        raise ImportError(f"{path} needs the package {runtime}: pip install {package}")
    return _load_openvino(path, dtype) if runtime == "openvino" else _load_onnxruntime(path, dtype)


def _load_onnxruntime(path: pathlib.Path, dtype: str) -> OnnxNetwork:
    import onnxruntime

    errors: Any = importlib.import_module("onnxruntime.capi.onnxruntime_pybind11_state")

    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    options.add_session_config_entry(ACCURACY_OPTION, ACCURACY_LEVEL)
    # Azure's sends the data away, and is available in every build.
    providers = [name for name in onnxruntime.get_available_providers() if name != "AzureExecutionProvider"]
    try:
        session = onnxruntime.InferenceSession(str(path), options, providers=providers)
    except (errors.Fail, errors.InvalidProtobuf, errors.InvalidGraph, errors.NotImplemented) as error:
        raise ValueError(f"{path}: ONNX Runtime cannot read it ({printable(error)})") from error
    metadata = _read_metadata(session.get_modelmeta().custom_metadata_map.get(KEY), path)

    def run(crops: np.ndarray) -> np.ndarray:
        (heatmaps,) = session.run(None, {metadata.inputs[0]["name"]: crops})
        return np.asarray(heatmaps)

    provider = session.get_providers()[0].removesuffix("ExecutionProvider")
    return OnnxNetwork(run, metadata, runtime="onnxruntime", dtype=dtype, device_kind=provider.lower())


def _load_openvino(path: pathlib.Path, dtype: str) -> OnnxNetwork:
    openvino = _import_openvino()
    core = openvino.Core()
    try:
        model = core.read_model(path)
    except RuntimeError as error:
        raise ValueError(f"{path}: OpenVINO cannot read it ({printable(error)})") from error
    path_in_model = ["framework", KEY]
    metadata = _read_metadata(
        model.get_rt_info(path_in_model).astype(str) if model.has_rt_info(path_in_model) else None, path
    )
    options = {"INFERENCE_PRECISION_HINT": _PRECISIONS[dtype], "PERFORMANCE_HINT": "LATENCY", **EXACT_PRODUCTS}
    try:
        compiled = core.compile_model(model, "CPU", options)
    except RuntimeError as error:
        raise ValueError(f"{path}: OpenVINO cannot compile it in {dtype} ({printable(error)})") from error

    def run(crops: np.ndarray) -> np.ndarray:
        # A request of its own: one cannot serve several threads, and the next call would write over its result.
        return compiled.infer_new_request([crops])[0]

    return OnnxNetwork(run, metadata, runtime="openvino", dtype=dtype, device_kind="cpu")


def _import_openvino() -> Any:
    """Import OpenVINO without its telemetry, for which it would fork this process and the threads of JAX in it."""
    if "openvino" in sys.modules:
        return sys.modules["openvino"]
    name = "openvino_telemetry"
    before = sys.modules.get(name)
    sys.modules[name] = None  # pyright: ignore[reportArgumentType]: it counts as not installed
    try:
        return importlib.import_module("openvino")
    finally:
        del sys.modules[name]
        if before is not None:
            sys.modules[name] = before


def _read_metadata(text: str | None, path: pathlib.Path) -> Metadata:
    """The metadata of a file, whose content is compared with the checksum in it."""
    if text is None:
        raise ValueError(f"{path}: expected a file that `vitpose-jax export` wrote, got another ONNX file")
    metadata = Metadata.from_json(text, source=str(path))
    if len(metadata.inputs) != 1 or len(metadata.inputs[0]["shape"]) != 4:
        raise ValueError(f"{path}: damaged metadata: expected one input with four axes")
    last, digest = onnx_property(text), hashlib.sha256()
    rest = path.stat().st_size - len(last)
    with path.open("rb") as file:
        while rest > 0 and (piece := file.read(min(rest, 2**20))):
            digest.update(piece)
            rest -= len(piece)
        if file.read() != last or digest.hexdigest() != metadata.sha256:
            raise ValueError(f"{path}: damaged or changed: its checksum is not the one in its metadata")
    return metadata
