"""VitPose of transformers as the benchmarks call it, with its own crops and decoding.

"eager" and "compile" (torch.compile) run in PyTorch. "onnxruntime" and "openvino" run the network that transformers
exports as ONNX, on the CPU; "onnxruntime-int8" rounds it to int8 first.
"""

import importlib.util
import tempfile
import time
from collections.abc import Callable
from typing import Any

import numpy as np


class Peer:
    """A model of transformers with its processor; on CUDA if there is a GPU.

    Args:
        folder: a Hugging Face checkpoint.
        dtype: "float32", "bfloat16" or "float16".
        compiled: run the network through torch.compile, on CUDA with mode "max-autotune".
    """

    def __init__(self, folder: str, dtype: str, *, compiled: bool):
        import torch
        import transformers

        self.device = "cuda" if torch.cuda.is_available() else "cpu"
        self.dtype = getattr(torch, dtype)
        # The processor for machines without torchvision; older releases have only one.
        kind = getattr(transformers, "VitPoseImageProcessorPil", None) or transformers.VitPoseImageProcessor
        self.processor = kind()
        self.output = transformers.models.vitpose.modeling_vitpose.VitPoseEstimatorOutput
        start = time.perf_counter()
        model = transformers.VitPoseForPoseEstimation.from_pretrained(
            folder, attn_implementation={"backbone_config": "sdpa"}
        )
        self.model = model.to(self.device, self.dtype).eval()
        self.load_seconds = time.perf_counter() - start
        mode = "max-autotune" if self.device == "cuda" else None
        self.network = torch.compile(self.model, mode=mode) if compiled else self.model
        self.arguments: dict[str, Any] = {}
        if self.model.config.backbone_config.num_experts > 1:
            self.arguments["dataset_index"] = torch.tensor([0], device=self.device)

    def forward(self, crops, flip_pairs=None):
        """Heatmaps of crops (n, 3, height, width)."""
        import torch

        with torch.inference_mode():
            arguments = self.arguments if flip_pairs is None else {**self.arguments, "flip_pairs": flip_pairs}
            # A copy, because a compiled network overwrites its result in the next call.
            heatmaps = self.network(crops, **arguments).heatmaps.clone()
        if self.device == "cuda":
            torch.cuda.synchronize()
        return heatmaps

    def peak_bytes(self, crops) -> int:
        """Peak memory of a forward pass on CUDA, in bytes, without what was allocated before it."""
        import torch

        self.forward(crops)
        before = torch.cuda.memory_allocated()
        torch.cuda.reset_peak_memory_stats()
        self.forward(crops)
        return torch.cuda.max_memory_allocated() - before

    def to_torch(self, values):
        """A channels-last array as a channels-first tensor on the device."""
        import torch

        channels_first = np.asarray(values, np.float32).transpose(0, 3, 1, 2).copy()
        return torch.from_numpy(channels_first).to(self.device, self.dtype)

    def crop(self, image, boxes):
        """Crops (n, 3, height, width) of boxes, on the CPU."""
        return self.processor(image, boxes=[boxes.tolist()], return_tensors="pt")["pixel_values"]

    def decode(self, heatmaps, boxes):
        """Keypoints of heatmaps, on the CPU."""
        return self.processor.post_process_pose_estimation(self.output(heatmaps=heatmaps), boxes=[boxes.tolist()])

    def path(self, image, boxes, flip_pairs=None):
        """From image and boxes to keypoints; with flip pairs, averaged with the mirrored crops."""
        crops = self.crop(image, boxes).to(self.device, self.dtype)
        heatmaps = self.forward(crops)
        if flip_pairs is not None:
            import torch

            pairs = torch.tensor(flip_pairs, device=self.device)
            heatmaps = (heatmaps + self.forward(crops.flip(-1), pairs)) / 2
        return self.decode(heatmaps.float(), boxes)


class Exported(Peer):
    """The network as an ONNX file for each number of crops, run by another runtime on the CPU."""

    def __init__(self, folder: str, dtype: str):
        super().__init__(folder, "float32", compiled=False)
        self.model.to("cpu")
        self.device, self.precision = "cpu", dtype
        self.programs: dict[tuple[int, ...], Callable[[np.ndarray], np.ndarray]] = {}

    def forward(self, crops, flip_pairs=None):
        """Heatmaps of crops (n, 3, height, width); flip pairs are for PyTorch."""
        import torch

        if flip_pairs is not None:
            raise ValueError("flip pairs: the exported network has none")
        shape = tuple(crops.shape)
        if shape not in self.programs:
            with tempfile.NamedTemporaryFile(suffix=".onnx") as file:
                self.export(shape, file.name)
                self.programs[shape] = self.compile(file.name)
        return torch.from_numpy(self.programs[shape](crops.numpy()))

    def export(self, shape: tuple[int, ...], path: str) -> None:
        """Write the network for crops of this shape."""
        import torch

        arguments = self.arguments

        class Network(torch.nn.Module):
            def __init__(self, model):
                super().__init__()
                self.model = model

            def forward(self, crops):
                return self.model(crops, **arguments).heatmaps

        torch.onnx.export(Network(self.model), (torch.zeros(shape),), path, dynamo=True, external_data=False)

    def compile(self, path: str) -> Callable[[np.ndarray], np.ndarray]:
        """A function from crops to heatmaps."""
        raise NotImplementedError


class OnnxRuntime(Exported):
    """ONNX Runtime's CPU provider; it has no bfloat16."""

    def compile(self, path: str) -> Callable[[np.ndarray], np.ndarray]:
        """A function from crops to heatmaps."""
        import onnxruntime

        session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
        name = session.get_inputs()[0].name
        return lambda crops: session.run(None, {name: crops})[0]


class OnnxRuntimeInt8(OnnxRuntime):
    """ONNX Runtime with int8 weights and activations, which it rounds as they come ("dynamic quantization")."""

    def compile(self, path: str) -> Callable[[np.ndarray], np.ndarray]:
        """A function from crops to heatmaps."""
        from onnxruntime.quantization import QuantType, quantize_dynamic

        with tempfile.NamedTemporaryFile(suffix=".onnx") as file:
            quantize_dynamic(
                path, file.name, op_types_to_quantize=["MatMul", "Gemm"], per_channel=True, weight_type=QuantType.QInt8
            )
            return super().compile(file.name)


class OpenVino(Exported):
    """OpenVINO's CPU plugin, in float32 or bfloat16."""

    def compile(self, path: str) -> Callable[[np.ndarray], np.ndarray]:
        """A function from crops to heatmaps."""
        import openvino

        precision = {"float32": "f32", "bfloat16": "bf16", "float16": "f16"}[self.precision]
        options = {"INFERENCE_PRECISION_HINT": precision, "PERFORMANCE_HINT": "LATENCY"}
        compiled = openvino.Core().compile_model(path, "CPU", options)
        return lambda crops: compiled([crops])[compiled.output(0)].copy()


RUNTIMES = {"onnxruntime": OnnxRuntime, "onnxruntime-int8": OnnxRuntimeInt8, "openvino": OpenVino}


def load(folder: str, dtype: str, names: list[str]) -> dict[str, Peer]:
    """The named peers that are installed and know the dtype; none without torch and transformers."""
    if not all(map(importlib.util.find_spec, ("torch", "transformers"))):
        return {}
    peers: dict[str, Peer] = {}
    for name in names:
        if name not in RUNTIMES:
            peers[name] = Peer(folder, dtype, compiled=name == "compile")
        elif importlib.util.find_spec(name.removesuffix("-int8")) and (dtype == "float32" or name == "openvino"):
            peers[name] = RUNTIMES[name](folder, dtype)
    return peers


def functions(peers: dict[str, Peer], make: Callable[[Peer], Callable[[], object]]) -> dict[str, Callable[[], object]]:
    """The function that `make` returns for each peer, by name."""
    return {name: make(peer) for name, peer in peers.items()}
