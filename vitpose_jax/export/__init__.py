"""Models as files that run without this package: StableHLO for JAX, ONNX for other runtimes.

to_stablehlo(model, "base.stablehlo")
load("base.stablehlo")(crops)
to_onnx(model, "base.onnx")

Each file is one network with one head, and what is needed to use it: see metadata.py.
"""

import importlib
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from vitpose_jax.export.estimation import ExportedModel as ExportedModel
    from vitpose_jax.export.estimation import RuntimeModel as RuntimeModel
    from vitpose_jax.export.metadata import Metadata as Metadata
    from vitpose_jax.export.program import ExportedProgram as ExportedProgram
    from vitpose_jax.export.program import load as load
    from vitpose_jax.export.runtimes import OnnxNetwork as OnnxNetwork
    from vitpose_jax.export.runtimes import load_onnx as load_onnx
    from vitpose_jax.export.write import Export as Export
    from vitpose_jax.export.write import to_onnx as to_onnx
    from vitpose_jax.export.write import to_stablehlo as to_stablehlo

# Imported when first used: `load` needs JAX, but neither Flax nor the network.
_HOMES = {
    "Export": "write",
    "ExportedModel": "estimation",
    "ExportedProgram": "program",
    "Metadata": "metadata",
    "OnnxNetwork": "runtimes",
    "RuntimeModel": "estimation",
    "load": "program",
    "load_onnx": "runtimes",
    "to_onnx": "write",
    "to_stablehlo": "write",
}

__all__ = [
    "Export",
    "ExportedModel",
    "ExportedProgram",
    "Metadata",
    "OnnxNetwork",
    "RuntimeModel",
    "load",
    "load_onnx",
    "to_onnx",
    "to_stablehlo",
]


def __getattr__(name: str):
    if name in _HOMES:
        return getattr(importlib.import_module(f"vitpose_jax.export.{_HOMES[name]}"), name)
    raise AttributeError(f"module 'vitpose_jax.export' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])
