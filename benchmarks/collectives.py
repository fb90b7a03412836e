"""What the devices of a training step send to each other, by mesh, from the compiled program.

    python benchmarks/collectives.py                                   # ViT-S and ViT-B on eight devices
    python benchmarks/collectives.py --presets tiny --crops 8          # shows that it runs

The step is compiled for eight devices that the host plays; nothing runs, and no time is measured. For each collective
operation the table counts the bytes of its results on one device, in all rounds of the loops that it stands in:

    all-reduce        a sum that all devices of a group get: gradients, BatchNorm, clipping
    all-gather        a whole from the parts of a group: parameters, and the pixels of the batch
    reduce-scatter    a sum, of which each device gets its part. XLA for CPUs writes it as an all-reduce and a slice

"sent by a device" is what a ring of the group's n devices sends: 2 (n - 1) / n of an all-reduce, (n - 1) / n of the
whole in an all-gather or a reduce-scatter. "state" is what a device holds of parameters, moments and statistics;
"temporary" what the compiler needs besides.
"""

import argparse
import collections
import os
import re

# Read when JAX is loaded.
os.environ["JAX_PLATFORMS"] = "cpu"
os.environ["XLA_FLAGS"] = f"{os.environ.get('XLA_FLAGS', '')} --xla_force_host_platform_device_count=8"

import jax
import numpy as np
from ahead import computations, size
from common import arguments, report, vitpose_config
from flax import nnx
from scale_tables import collectives_table
from train_step import random_batch

from vitpose_jax import VitPose
from vitpose_jax.training import step as training_step
from vitpose_jax.training.augment import Augmentation
from vitpose_jax.training.optim import OptimConfig
from vitpose_jax.training.sharding import make_mesh, put_batch, replicated
from vitpose_jax.training.step import init_state, make_train_step

PRESETS = ["small", "base"]
MESHES = ["8x1", "2x4", "1x8"]
CROPS = 32
KINDS = ("all-reduce", "all-gather", "reduce-scatter")


def collectives(program: str) -> dict[str, float]:
    """The bytes of the collective operations of a compiled program by kind, and those that a ring sends."""
    lines, entry = computations(program)
    total: dict[str, float] = collections.defaultdict(float)

    def walk(name: str, times: int) -> None:
        for operation in lines.get(name, []):
            called = dict(re.findall(r"(\w+)=%([\w.\-]+)", operation.line))
            if operation.op == "while":
                rounds = re.search(r'known_trip_count":\{"n":"(\d+)"', operation.line)
                if rounds is None:
                    raise SystemExit(f"expected loops of a known length, got {operation.line}")
                walk(called["body"], times * int(rounds[1]))
            elif operation.op in ("call", "conditional", "fusion"):
                for target in called.values():
                    walk(target, times)
            kind = operation.op.removesuffix("-start")
            if kind not in (*KINDS, "all-to-all", "collective-permute"):
                continue
            count = times * size(operation.type)
            total[kind if kind in KINDS else "other"] += count
            devices = group(operation.line)
            factor = {"all-reduce": 2.0, "reduce-scatter": float(devices)}.get(kind, 1.0)
            total["sent"] += count * (1.0 if kind == "collective-permute" else factor * (devices - 1) / devices)

    walk(entry, 1)
    return {name: total[name] for name in (*KINDS, "other", "sent")}


def group(line: str) -> int:
    """The number of devices of each group of an operation."""
    listed = re.search(r"replica_groups=\{\{([\d,]*)\}", line)
    if listed is not None:
        return len(listed[1].split(","))
    counted = re.search(r"replica_groups=\[\d+,(\d+)\]", line)
    return int(counted[1]) if counted is not None else jax.device_count()


def measure(preset: str, data: int, fsdp: int, crops: int) -> dict:
    """A row."""
    config = vitpose_config(preset)
    mesh = make_mesh(data, fsdp)
    settings = OptimConfig(total_steps=9, warmup_steps=0, ema_decay=0.0)
    graphdef, optimizer, state = init_state(VitPose(config, rngs=nnx.Rngs(0)), settings, mesh)
    # The program is compiled here, to be read.
    compile_step, training_step.compile_step = training_step.compile_step, lambda train_step, mesh: train_step
    step = make_train_step(config, graphdef, optimizer, optim_config=settings, augmentation=Augmentation(), mesh=mesh)
    training_step.compile_step = compile_step
    sharding = jax.tree.map(lambda leaf: leaf.sharding, state)
    program = jax.jit(step, donate_argnums=0, out_shardings=(sharding, replicated(mesh)))
    compiled = program.lower(state, put_batch(random_batch(config, crops), mesh), jax.random.key(0)).compile()
    shards = [leaf.addressable_shards[0].data for leaf in jax.tree.leaves(state)]
    return {
        "preset": preset,
        "data": data,
        "fsdp": fsdp,
        **collectives(compiled.as_text()),
        "state": float(sum(np.prod(shard.shape) * shard.dtype.itemsize for shard in shards)),
        "temp": float(compiled.memory_analysis().temp_size_in_bytes),
    }


def parser() -> argparse.ArgumentParser:
    """The options."""
    made = arguments(__doc__, presets=PRESETS)
    made.add_argument("--meshes", nargs="+", default=MESHES, help="data x fsdp")
    made.add_argument("--crops", type=int, default=CROPS, help="crops of a batch, on all devices together")
    return made


def main() -> None:
    """Compile, count, and report the table of the rows."""
    options = parser().parse_args()
    rows = []
    for preset in options.presets:
        for mesh in options.meshes:
            data, fsdp = map(int, mesh.split("x"))
            rows.append(measure(preset, data, fsdp, options.crops))
    report(collectives_table(rows), rows, options)


if __name__ == "__main__":
    main()
