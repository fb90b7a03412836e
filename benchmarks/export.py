"""Exported files beside the model: bytes, time to load, time of a forward pass.

    python benchmarks/export.py
    python benchmarks/export.py --presets vitpose-small-open --people 1 8 --rounds 21 --output cpu_avx512_export
    python benchmarks/export.py --presets tiny --rounds 1     # shows that it runs

A preset is the name of an architecture, whose weights are random, or of the bundled model. Each setting of the weights
is written as StableHLO and as ONNX into a temporary folder, which also compares the files with the model. "load" is the
time until a file, or for "vitpose-jax" a native folder, is ready to compile; "first" the first call, compilation
included. Then all forms run in turn. Crops are in memory; cropping and decoding are not part of it.
"""

import argparse
import functools
import pathlib
import tempfile
import time
from collections.abc import Callable
from typing import Any

import numpy as np
from common import OURS, TINY, arguments, report, timed_rows, vitpose_config
from flax import nnx
from speed_tables import export_table

from vitpose_jax import VitPose, checkpoint, export, from_pretrained
from vitpose_jax.bundled import DEFAULT_MODEL
from vitpose_jax.export.program import this_platform
from vitpose_jax.serving.program import Program
from vitpose_jax.storage import parameters
from vitpose_jax.vitpose.modeling import abstract_vitpose

SETTINGS: dict[str, dict[str, Any]] = {"float32": {}, "int8": {"quantize": "int8"}, "int4": {"quantize": "int4"}}
# How each form is called in the rows, and the end of its file's name.
FORMS = {"stablehlo": "stablehlo", "onnxruntime": "onnx", "openvino": "onnx"}


def make_model(preset: str) -> VitPose:
    """The bundled model, or one with random weights."""
    if preset == DEFAULT_MODEL:
        return from_pretrained(preset)
    config = vitpose_config(preset)
    if preset == TINY:
        config = config.replace(hidden_size=128)  # one group of int4
    model = VitPose(config.replace(skeletons=config.skeletons[:1]), rngs=nnx.Rngs(0))
    # A new head is so small that its heatmaps are nearly zero.
    random = np.random.default_rng(0)
    tensors = {name: np.asarray(leaf) for name, leaf in parameters.flatten(model).items()}
    tensors = {
        name: random.normal(0, 0.05, leaf.shape) if name.startswith("heads.") and name.endswith("kernel") else leaf
        for name, leaf in tensors.items()
    }
    return parameters.fill(abstract_vitpose(model.config), tensors)


def loaded(path: pathlib.Path, form: str) -> Callable[[np.ndarray], Any]:
    """The network of a file in a runtime."""
    return export.load(path) if form == "stablehlo" else export.load_onnx(path, form)


def measure(preset: str, setting: str, people: list[int], rounds: int) -> list[dict]:
    """A row for each form and each number of people."""
    with tempfile.TemporaryDirectory() as name:
        folder = pathlib.Path(name)
        checkpoint.save(make_model(preset), folder / "model")
        begin = time.perf_counter()
        model = from_pretrained(folder / "model", **SETTINGS[setting])
        seconds = {OURS: time.perf_counter() - begin}
        model = model if not model.config.experts else model.specialize()
        export.to_stablehlo(model, folder / "file.stablehlo", platforms=(this_platform(),))
        export.to_onnx(model, folder / "file.onnx")
        checkpoint.save(model, folder / "same")
        sizes = {OURS: (folder / "same" / "model.safetensors").stat().st_size}
        networks: dict[str, Callable[[np.ndarray], Any]] = {OURS: Program(model, lambda model, crops: model(crops))}
        for form, ending in FORMS.items():
            path = folder / f"file.{ending}"
            begin = time.perf_counter()
            networks[form] = loaded(path, form)
            seconds[form], sizes[form] = time.perf_counter() - begin, path.stat().st_size
        rows = []
        for count in people:
            crops = np.random.default_rng(0).normal(size=(count, *model.config.image_size, 3)).astype(np.float32)
            programs = {form: functools.partial(run, crops) for form, run in networks.items()}
            label = {"preset": preset, "setting": setting, "people": count}
            rows += timed_rows(label, programs, rounds=rounds)[0]
    return [row | {"load_s": seconds[row["program"]], "bytes": sizes[row["program"]]} for row in rows]


def parser() -> argparse.ArgumentParser:
    """The command line."""
    options = arguments(__doc__ or "", presets=[DEFAULT_MODEL], people=[1, 8], rounds=11)
    options.add_argument("--settings", nargs="+", default=list(SETTINGS), choices=list(SETTINGS), help="of the weights")
    return options


def main() -> None:
    """Measure, print, write."""
    options = parser().parse_args()
    rows = [
        row
        for preset in options.presets
        for setting in options.settings
        for row in measure(preset, setting, options.people, options.rounds)
    ]
    report(export_table(rows), rows, options)


if __name__ == "__main__":
    main()
