"""What the compilers of devices that are not there make of the network.

    python benchmarks/ahead.py --target v5e --preset base --batch 64           # needs pip install "jax[tpu]"
    python benchmarks/ahead.py --target h100 --parts path step                 # needs pip install jax-cuda12-pjrt

XLA compiles for a TPU or a GPU on any machine with its plugin: so this shows that the whole path and a step of training
compile for them, and what of two equal forms the compiler likes better. Nothing is run, nothing is timed. Columns:

    Mcycles     TPU: the cycles of all kernels as the compiler estimates them, in loops as often as they run
    kernels     GPU: how many are started
    GB          GPU: what they read and write, each operand counted once a kernel
    temp MB     memory besides arguments and results
    loops       loops whose length is not known when compiling, counted once

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
from common import markdown, report
from flax import nnx
from jax.experimental import topologies
from variants import PARTS

from vitpose_jax import VitPose, VitPoseConfig
from vitpose_jax.pipeline.predict import predict
from vitpose_jax.training.optim import merge, split, training_view
from vitpose_jax.vitpose.modeling import abstract_vitpose

TARGET = "v5e"
PRESET = "base"
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
    rest = line[head.end() :]
    end = rest.index(" ")
    if rest.startswith("("):
        depths = np.cumsum([(letter == "(") - (letter == ")") for letter in rest])
        end = int(np.argmax(depths == 0)) + 1
    op, _, arguments = rest[end + 1 :].partition("(")
    operands = [part.split()[-1].lstrip("%") for part in arguments.partition(")")[0].split(",") if part.strip()]
    return Instruction(head[1], rest[:end], op, operands, line)


def computations(program: str) -> tuple[dict[str, list[Instruction]], str]:
    """The computations of a program by name, and the name of the one that is called."""
    found: dict[str, list[Instruction]] = {}
    name = entry = ""
    for line in program.splitlines():
        if line.rstrip().endswith("{") and not line[:1].isspace():
            name = line.removeprefix("ENTRY ").split()[0].lstrip("%")
            entry = name if line.startswith("ENTRY") else entry
            found[name] = []
        elif name and line[:1].isspace() and (parsed := instruction(line)):
            found[name].append(parsed)
    return found, entry


def size(type_: str, slices: int = 1) -> float:
    """Bytes of a type; of arrays stacked for `slices` rounds of a loop, one round's."""
    total = 0.0
    for name, dimensions in re.findall(r"(\w+)\[([\d,]*)\]", type_):
        shape = [int(side) for side in dimensions.split(",") if side]
        stacked = slices > 1 and len(shape) > 1 and shape[0] == slices
        total += BYTES.get(name, 4) * np.prod(shape[1:] if stacked else shape, dtype=float)
    return total


def costs(program: str) -> dict[str, float]:
    """The columns of a table, from the compiled program."""
    found, entry = computations(program)
    total = {"cycles": 0.0, "kernels": 0.0, "bytes": 0.0, "loops": 0.0}

    def length(condition: str) -> int | None:
        limits = [re.search(r"constant\((\d+)\)", step.line) for step in found[condition] if step.op == "constant"]
        return int(limits[0][1]) if len(limits) == 1 and limits[0] else None

    def walk(name: str, times: int, slices: int) -> None:
        types = {step.name: step.type for step in found[name]}
        for step in found[name]:
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

    def path(state, pixels, shapes, boxes):
        return predict(nnx.merge(graphdef, state), pixels, shapes, boxes)

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
    image = array("uint8", PIXELS, 3), array("int32", batch, 3), array("float32", batch, 4)
    return {
        "forward": (forward, (state, crops)),
        "path": (path, (state, *image)),
        "step": (step, (trained, rest, crops, heatmaps)),
    }


def compile_for(device: Any, function: Callable, arguments: tuple) -> dict[str, float]:
    """Compile a function for a device; arrays among the arguments stand for their shapes."""
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


def main() -> None:
    """Parse the knobs, compile, and write JSON and Markdown into results/."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    names = [part.__name__ for part in PARTS]
    parser.add_argument("--target", choices=TARGETS, default=TARGET)
    parser.add_argument("--preset", default=PRESET)
    parser.add_argument("--batch", type=int, default=BATCH)
    parser.add_argument("--dtype", default="bfloat16")
    parser.add_argument("--parts", nargs="+", choices=["forward", "path", "step", *names], default=["path", "step"])
    parser.add_argument("--output", help="name of the files in results/; none are written without it")
    options = parser.parse_args()
    device = TARGETS[options.target]().devices[0]
    config = VitPoseConfig.preset(options.preset)
    programs = {}
    for name, program in parts(config, options.batch, options.dtype).items():
        if name in options.parts:
            programs[name, ""] = program
    model = VitPose(config, dtype=options.dtype, param_dtype=options.dtype, rngs=nnx.Rngs(0))
    for part in PARTS:
        if part.__name__ in options.parts:
            programs |= {(part.__name__, name): program for name, program in part(model, options.batch).items()}
    rows = []
    for (part, variant), (function, arguments) in programs.items():
        rows.append({"part": part, "variant": variant, **compile_for(device, function, arguments)})
        print(rows[-1], flush=True)
    tpu = device.platform == "tpu"
    columns = {"Mcycles": ("cycles", 1e6, 2)} if tpu else {"kernels": ("kernels", 1, 0), "GB": ("bytes", 1e9, 2)}
    columns |= {"temp MB": ("temp", 1e6, 0), "loops": ("loops", 1, 0), "compiled in, s": ("seconds", 1, 0)}
    lines = [
        [row["part"], row["variant"], *(f"{row[key] / unit:.{digits}f}" for key, unit, digits in columns.values())]
        for row in rows
    ]
    document = {"target": device.device_kind, "options": vars(options), "rows": rows}
    text = f"compiled for: {device.device_kind}\n\n" + markdown(["part", "variant", *columns], lines)
    report(text, output=options.output, document=document)


if __name__ == "__main__":
    main()
