"""ONNX files and graphs in ONNX Runtime and OpenVINO: for `PoseEstimator`, and for the check after an export.

load_onnx    a file
load_graph   what `build_graph` makes, in memory
"""

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
# The extras that bring onnx and the runtime.
_EXTRAS = {"onnxruntime": "onnx", "openvino": "openvino"}
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
    check_runtime(runtime, dtype)
    path = pathlib.Path(path)
    if not path.is_file():
        raise ValueError(f"{path}: expected an ONNX file, found {'a folder' if path.is_dir() else 'none'}")
    if importlib.util.find_spec(runtime) is None:
        package = "openvino" if runtime == "openvino" else '"vitpose-jax[onnxruntime]"'
        raise ImportError(f"{path} needs the package {runtime}: pip install {package}")
    return _LOADERS[runtime](path, str(path), dtype)


def load_graph(content: bytes, runtime: str = "onnxruntime", *, dtype: str = "float32") -> OnnxNetwork:
    """Load the bytes of an ONNX file that were never written, as `build_graph` in export/onnx.py makes them.

    Args:
        content: of the file.
        runtime, dtype: as in `load_onnx`.

    Raises:
        ValueError: as `load_onnx`.
        ImportError: if the runtime or onnx is not installed.
    """
    check_runtime(runtime, dtype)
    check_installed(runtime)
    return _LOADERS[runtime](content, "the model", dtype)


def check_runtime(runtime: str, dtype: str) -> None:
    """Check that there is such a runtime, and that it computes in this dtype.

    Raises:
        ValueError: naming those that there are.
    """
    if runtime not in RUNTIMES:
        raise ValueError(f"runtime: expected one of {', '.join(RUNTIMES)}, got {runtime!r}")
    known = list(_PRECISIONS) if runtime == "openvino" else ["float32"]
    if dtype not in known:
        raise ValueError(f"dtype: {runtime} expects {' or '.join(known)}, got {dtype}")


def check_installed(runtime: str) -> None:
    """Check that the packages are installed that hand a model to a runtime.

    Raises:
        ImportError: naming them, and how to install them.
    """
    missing = [name for name in ("onnx", runtime) if importlib.util.find_spec(name) is None]
    if missing:
        packages = f"the package{'s' if len(missing) > 1 else ''} {' and '.join(missing)}"
        raise ImportError(f'the runtime {runtime} needs {packages}: pip install "vitpose-jax[{_EXTRAS[runtime]}]"')


def num_threads() -> int:
    """How many threads a runtime takes on the CPU: as many as NPROC says, which XLA goes by; 0 for its own choice."""
    threads = os.environ.get("NPROC", "")
    return int(threads) if threads.isdecimal() else 0


def _load_onnxruntime(content: pathlib.Path | bytes, name: str, dtype: str) -> OnnxNetwork:
    import onnxruntime

    errors: Any = importlib.import_module("onnxruntime.capi.onnxruntime_pybind11_state")

    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    options.intra_op_num_threads = num_threads()
    options.add_session_config_entry(ACCURACY_OPTION, ACCURACY_LEVEL)
    # Azure's sends the data away, and is available in every build.
    providers = [name for name in onnxruntime.get_available_providers() if name != "AzureExecutionProvider"]
    try:
        session = onnxruntime.InferenceSession(
            content if isinstance(content, bytes) else str(content), options, providers=providers
        )
    except (errors.Fail, errors.InvalidProtobuf, errors.InvalidGraph, errors.NotImplemented) as error:
        raise ValueError(f"{name}: ONNX Runtime cannot read it ({printable(error)})") from error
    # The session keeps the bytes to begin anew on another device, and holds the weights a second time with them.
    if isinstance(content, bytes) and hasattr(session, "_model_bytes"):
        session._model_bytes = None
    metadata = _read_metadata(session.get_modelmeta().custom_metadata_map.get(KEY), content, name)

    def run(crops: np.ndarray) -> np.ndarray:
        (heatmaps,) = session.run(None, {metadata.inputs[0]["name"]: crops})
        return np.asarray(heatmaps)

    provider = session.get_providers()[0].removesuffix("ExecutionProvider")
    return OnnxNetwork(run, metadata, runtime="onnxruntime", dtype=dtype, device_kind=provider.lower())


def _load_openvino(content: pathlib.Path | bytes, name: str, dtype: str) -> OnnxNetwork:
    openvino = _import_openvino()
    core = openvino.Core()
    try:
        model = core.read_model(content)
    except RuntimeError as error:
        raise ValueError(f"{name}: OpenVINO cannot read it ({printable(error)})") from error
    path_in_model = ["framework", KEY]
    text = model.get_rt_info(path_in_model).astype(str) if model.has_rt_info(path_in_model) else None
    metadata = _read_metadata(text, content, name)
    options = {"INFERENCE_PRECISION_HINT": _PRECISIONS[dtype], "PERFORMANCE_HINT": "LATENCY", **EXACT_PRODUCTS}
    options["INFERENCE_NUM_THREADS"] = num_threads()
    try:
        compiled = core.compile_model(model, "CPU", options)
    except RuntimeError as error:
        raise ValueError(f"{name}: OpenVINO cannot compile it in {dtype} ({printable(error)})") from error

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


def _read_metadata(text: str | None, content: pathlib.Path | bytes, name: str) -> Metadata:
    """The metadata of a graph. The content of a file is compared with the checksum in them."""
    if text is None:
        raise ValueError(f"{name}: expected a file that `vitpose-jax export` wrote, got another ONNX file")
    metadata = Metadata.from_json(text, source=name)
    if len(metadata.inputs) != 1 or len(metadata.inputs[0]["shape"]) != 4:
        raise ValueError(f"{name}: damaged metadata: expected one input with four axes")
    if isinstance(content, bytes):
        return metadata
    last, digest = onnx_property(text), hashlib.sha256()
    rest = content.stat().st_size - len(last)
    with content.open("rb") as file:
        while rest > 0 and (piece := file.read(min(rest, 2**20))):
            digest.update(piece)
            rest -= len(piece)
        if file.read() != last or digest.hexdigest() != metadata.sha256:
            raise ValueError(f"{name}: damaged or changed: its checksum is not the one in its metadata")
    return metadata


_LOADERS = {"onnxruntime": _load_onnxruntime, "openvino": _load_openvino}
