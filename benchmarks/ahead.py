"""What the compilers of GPUs and TPUs make of the network, without the device.

    python benchmarks/ahead.py --target v5e --presets base --batch 64          # needs pip install "jax[tpu]"
    python benchmarks/ahead.py --target h100 --parts path step                 # needs pip install jax-cuda12-pjrt

XLA compiles for a TPU or a GPU on any machine that has its plugin. So this shows that the whole path and a training
step compile for them, and which of two equal forms suits the compiler better. Nothing runs on the device, so no figure
is a time on it. Columns:

    million cycles           TPU: the compiler's estimate for all kernels; a kernel in a loop counts once a round
    kernels                  GPU: kernels that are started
    GB read and written      GPU: by the kernels; each operand counts once a kernel
    temporary memory         memory besides arguments and results
    loops of unknown length  counted as one round

On a GPU the compiler would time variants of each product: this is switched off here.
"""

import argparse
import os
import re
import time
from collections.abc import Callable
from typing import Any, NamedTuple

# Read when JAX and the plugins are loaded.
os.environ["JAX_PLATFORMS"] = "cpu"
os.environ.setdefault("XLA_FLAGS", "--xla_gpu_autotune_level=0")
os.environ.setdefault("TPU_SKIP_MDS_QUERY", "1")

import jax
import jax.numpy as jnp
import numpy as np
import optax
from common import arguments, report, vitpose_config
from flax import nnx
from jax.experimental import topologies
from speed_tables import ahead_table
from variants import PARTS

from vitpose_jax import VitPose, VitPoseConfig
from vitpose_jax.pipeline.packing import PackedImages
from vitpose_jax.pipeline.predict import predict
from vitpose_jax.training.optim import merge, split, training_view
from vitpose_jax.vitpose.modeling import abstract_vitpose

TARGET = "v5e"
PRESETS = ["base"]
BATCH = 64
PIXELS = 1024 * 1024
H100 = """
gpu_device_info {
  cuda_compute_capability { major: 9 }
  threads_per_block_limit: 1024
  threads_per_warp: 32
  shared_memory_per_block: 49152
  shared_memory_per_block_optin: 232448
  shared_memory_per_core: 233472
  registers_per_block_limit: 65536
  registers_per_core_limit: 65536
  threads_per_core_limit: 2048
  core_count: 132
  fpus_per_core: 128
  block_dim_limit_x: 2147483647
  block_dim_limit_y: 65535
  block_dim_limit_z: 65535
  clock_rate_ghz: 1.98
  memory_bandwidth: 3352320000000
  l2_cache_size: 52428800
  device_memory_size: 84978434048
}
platform_name: "CUDA"
dnn_version_info { major: 9 minor: 10 }
device_description_str: "NVIDIA H100 80GB HBM3"
"""
TARGETS = {
    "v5e": lambda: topologies.get_topology_desc("v5e:2x2", platform="tpu"),
    "v6e": lambda: topologies.get_topology_desc("v6e:2x2", platform="tpu"),
    "h100": lambda: topologies.get_topology_desc("", platform="cuda", topology="1x1x1", target_config=H100),
}
BYTES = {"pred": 1, "s8": 1, "u8": 1, "bf16": 2, "f16": 2, "s32": 4, "u32": 4, "f32": 4}
KERNELS = ("fusion", "custom-call", "copy", "convolution", "dot", "transpose", "reduce")


class Instruction(NamedTuple):
    """A line of a compiled program."""

    name: str
    type: str
    op: str
    operands: list[str]
    line: str


def instruction(line: str) -> Instruction | None:
    """`%name = type op(%operand, ...), ...`; a type may be a tuple of types."""
    head = re.match(r"\s*(?:ROOT )?%?([\w.\-]+) = ", line)
    if head is None:
        return None
    text = line[head.end() :]
    end = text.index(" ")
    if text.startswith("("):
        depths = np.cumsum([(letter == "(") - (letter == ")") for letter in text])
        end = int(np.argmax(depths == 0)) + 1
    op, _, arguments = text[end + 1 :].partition("(")
    operands = [part.split()[-1].lstrip("%") for part in arguments.partition(")")[0].split(",") if part.strip()]
    return Instruction(head[1], text[:end], op, operands, line)


def computations(program: str) -> tuple[dict[str, list[Instruction]], str]:
    """The computations of a program by name, and the name of the entry computation."""
    lines: dict[str, list[Instruction]] = {}
    name = entry = ""
    for line in program.splitlines():
        if line.rstrip().endswith("{") and not line[:1].isspace():
            name = line.removeprefix("ENTRY ").split()[0].lstrip("%")
            entry = name if line.startswith("ENTRY") else entry
            lines[name] = []
        elif name and line[:1].isspace() and (parsed := instruction(line)):
            lines[name].append(parsed)
    return lines, entry


def size(type_: str, slices: int = 1) -> float:
    """Bytes of a type; of an array stacked for `slices` rounds of a loop only the bytes of one round."""
    total = 0.0
    for name, dimensions in re.findall(r"(\w+)\[([\d,]*)\]", type_):
        shape = [int(side) for side in dimensions.split(",") if side]
        stacked = slices > 1 and len(shape) > 1 and shape[0] == slices
        total += BYTES.get(name, 4) * np.prod(shape[1:] if stacked else shape, dtype=float)
    return total


def costs(program: str) -> dict[str, float]:
    """Cycles, kernels, bytes and loops of unknown length of a compiled program (HLO text)."""
    lines, entry = computations(program)
    total = {"cycles": 0.0, "kernels": 0.0, "bytes": 0.0, "loops": 0.0}

    def length(condition: str) -> int | None:
        limits = [re.search(r"constant\((\d+)\)", step.line) for step in lines[condition] if step.op == "constant"]
        return int(limits[0][1]) if len(limits) == 1 and limits[0] else None

    def walk(name: str, times: int, slices: int) -> None:
        types = {step.name: step.type for step in lines[name]}
        for step in lines[name]:
            called = dict(re.findall(r"(\w+)=%([\w.\-]+)", step.line))
            if step.op == "while":
                rounds = length(called["condition"])
                stated = re.search(r'known_trip_count":\{"n":"(\d+)"', step.line)
                rounds = int(stated[1]) if stated else rounds
                total["loops"] += rounds is None
                walk(called["body"], times * (rounds or 1), rounds or 1)
                continue
            estimate = re.search(r'estimated_cycles":"?(\d+)', step.line)
            total["cycles"] += times * int(estimate[1]) if estimate else 0
            if step.op in KERNELS:
                total["kernels"] += times
                moved = size(step.type, slices) + sum(size(types.get(name, ""), slices) for name in step.operands)
                total["bytes"] += times * moved

    walk(entry, 1, 1)
    return total


def parts(config: VitPoseConfig, batch: int, dtype: str) -> dict[str, tuple[Callable, tuple]]:
    """The network, the path from image and boxes to keypoints, and the gradient of a step of training."""
    graphdef, state = nnx.split(abstract_vitpose(config, dtype=dtype, param_dtype=dtype))

    def forward(state, crops):
        return nnx.merge(graphdef, state)(crops)

    def path(state, images, boxes):
        return predict(nnx.merge(graphdef, state), images, boxes)

    graphdef32, trained, rest = split(training_view(abstract_vitpose(config, dtype=dtype, param_dtype="float32")))

    def step(trained, rest, crops, targets):
        def loss(trained):
            model = merge(graphdef32, trained, rest)
            return jnp.mean((model(crops).astype(jnp.float32) - targets) ** 2)

        return optax.apply_updates(trained, jax.tree.map(lambda x: -1e-4 * x, jax.grad(loss)(trained)))

    def array(dtype, *shape):
        return jax.ShapeDtypeStruct(shape, dtype)

    crops = array(dtype, batch, *config.image_size, 3)
    heatmaps = array("float32", batch, *config.heatmap_size, config.skeletons[0].num_keypoints)
    images = PackedImages(array("uint8", PIXELS, 3), array("int32", batch, 3))
    boxes = array("float32", batch, 4)
    return {
        "forward": (forward, (state, crops)),
        "path": (path, (state, images, boxes)),
        "step": (step, (trained, rest, crops, heatmaps)),
    }


def compile_for(device: Any, function: Callable, arguments: tuple) -> dict[str, float]:
    """Compile a function for a device; only the shapes and dtypes of the arguments count."""
    place = jax.sharding.SingleDeviceSharding(device)
    shapes = jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=place), arguments)
    start = time.perf_counter()
    compiled = jax.jit(function).lower(*shapes).compile()
    took = time.perf_counter() - start
    return {
        **costs(compiled.as_text()),
        "temp": compiled.memory_analysis().temp_size_in_bytes,
        "seconds": took,
    }


def measure(options: argparse.Namespace, device: Any) -> list[dict]:
    """One row for each model, part and variant."""
    rows = []
    for preset in options.presets:
        config = vitpose_config(preset)
        programs = {
            (name, ""): program
            for name, program in parts(config, options.batch, options.dtype).items()
            if name in options.parts
        }
        model = VitPose(config, dtype=options.dtype, param_dtype=options.dtype, rngs=nnx.Rngs(0))
        for part in PARTS:
            if part.__name__ in options.parts:
                programs |= {(part.__name__, name): program for name, program in part(model, options.batch).items()}
        for (part, variant), (function, inputs) in programs.items():
            rows.append({"preset": preset, "part": part, "variant": variant, **compile_for(device, function, inputs)})
            print(rows[-1], flush=True)
    return rows


def parser() -> argparse.ArgumentParser:
    """The options."""
    names = [part.__name__ for part in PARTS]
    options = arguments(__doc__, presets=PRESETS)
    options.add_argument("--target", choices=TARGETS, default=TARGET)
    options.add_argument("--batch", type=int, default=BATCH, help="crops in a batch")
    options.add_argument("--dtype", default="bfloat16", choices=["float32", "bfloat16", "float16"])
    options.add_argument("--parts", nargs="+", choices=["forward", "path", "step", *names], default=["path", "step"])
    return options


def main() -> None:
    """Compile, and report the table of the rows."""
    options = parser().parse_args()
    device = TARGETS[options.target]().devices[0]
    rows = measure(options, device)
    report(ahead_table(rows), rows, options, target=device.device_kind)


if __name__ == "__main__":
    main()
