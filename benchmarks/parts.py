"""Where the time of a forward pass goes: each part of the network alone, beside the rates of the machine.

    python benchmarks/parts.py                                        # the defaults below
    python benchmarks/parts.py --presets tiny --people 1 --rounds 1     # shows that it runs

A part's time is that of one call, times the calls of a forward pass. Its operations are the multiplications and
additions of its matrix products; "GFLOP/s" stands beside the rate of a large product of the same dtype with float32
results, "GB/s" (what it must read and write) beside the rate of a large copy. Both are timed in the same rounds. A part
alone reads its input from memory and writes its result back, which the whole program saves where it fuses parts: so the
parts may add up to more than the whole.
"""

import argparse
import functools
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
from common import COPY_BYTES, PRODUCT_SIZE, arguments, copy, product, report, time_interleaved, vitpose_config
from flax import nnx
from speed_tables import parts_table

from vitpose_jax import VitPose
from vitpose_jax.vitpose import products

PRESETS = ["base"]
PEOPLE = [1, 8]
DTYPES = ["float32", "bfloat16"]
ROUNDS = 15


class Part(NamedTuple):
    """A part of the network.

    Attributes:
        calls: in a forward pass.
        function, arguments: the part.
        operations: of its matrix products, in one call.
    """

    calls: int
    function: Callable
    arguments: tuple
    operations: float


def attend(qkv: jax.Array, heads: int) -> jax.Array:
    """What an `Attention` does between its linear layers."""
    n, length, features = qkv.shape
    query, key, value = (part.reshape(n, length, heads, -1) for part in jnp.split(qkv, 3, axis=-1))
    query, key, value = query.transpose(0, 2, 1, 3), key.transpose(0, 2, 3, 1), value.transpose(0, 2, 1, 3)
    logits = products.matmul(query, key, jnp.float32) * query.shape[-1] ** -0.5
    mixed = products.matmul(jax.nn.softmax(logits).astype(qkv.dtype), value)
    return mixed.transpose(0, 2, 1, 3).reshape(n, length, features // 3)


def make_parts(model: VitPose, people: int) -> dict[str, Part]:
    """The parts of a model, by name; the first is the whole network."""
    config, backbone = model.config, model.backbone
    dtype, depth, dim, hidden = backbone.dtype, config.num_layers, config.hidden_size, config.mlp_features
    block = jax.tree.map(lambda leaf: leaf[0], backbone.blocks)
    rows = people * config.num_patches

    def noise(*shape: int) -> jax.Array:
        return jax.random.normal(jax.random.key(0), shape, dtype)

    crops, tokens = noise(people, *config.image_size, 3), noise(people, config.num_patches, dim)
    wide, qkv = noise(people, config.num_patches, hidden), noise(people, config.num_patches, 3 * dim)
    patch = config.patch_size[0] * config.patch_size[1] * config.num_channels

    def call(module: Callable, x: jax.Array) -> jax.Array:
        return module(x)

    return {
        "whole network": Part(1, lambda model, x: model(x, 0), (model, crops), 0),
        "patch embedding": Part(1, call, (backbone.patch_embed, crops), 2 * rows * patch * dim),
        "queries, keys, values": Part(depth, call, (block.attention.qkv, tokens), 6 * rows * dim**2),
        "attention between them": Part(
            depth,
            functools.partial(attend, heads=config.num_heads),
            (qkv,),
            4 * rows * config.num_patches * dim,
        ),
        "projection": Part(depth, call, (block.attention.proj, tokens), 2 * rows * dim**2),
        "first linear layer": Part(depth, call, (block.mlp.fc1, tokens), 2 * rows * dim * hidden),
        "GELU": Part(depth, block.mlp.act, (wide,), 0),
        "second linear layer": Part(depth, call, (block.mlp.fc2, wide), 2 * rows * dim * hidden),
        "layer norms": Part(2 * depth + 1, call, (block.norm1, tokens), 0),
        "residual sums": Part(2 * depth, jnp.add, (tokens, tokens + 1), 0),
        "decoder": Part(1, lambda model, x: model.decode(x), (model, tokens), 0),
    }


def moved_bytes(part: Part) -> int:
    """What a part reads and writes: its arguments and its result."""
    result = jax.eval_shape(part.function, *part.arguments)
    return sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves((part.arguments, result)))


def measure(preset: str, dtype: str, people: int, rounds: int) -> list[dict]:
    """A row for each part: the fastest of the calls, because the parts are compared with limits."""
    model = VitPose(vitpose_config(preset), dtype=dtype, rngs=nnx.Rngs(0))
    parts = make_parts(model, people)
    programs: dict[str, Callable] = {"product": product(dtype, "float32"), "copy": copy()}
    for name, part in parts.items():
        programs[name] = functools.partial(jax.jit(part.function), *part.arguments)
    times = {name: min(values) for name, values in time_interleaved(programs, rounds)[1].items()}
    product_rate, copy_rate = 2 * PRODUCT_SIZE**3 / times["product"], 2 * COPY_BYTES / times["copy"]
    rows = []
    for name, part in parts.items():
        row = {"preset": preset, "dtype": dtype, "people": people, "part": name, "ms": 1e3 * part.calls * times[name]}
        row["fraction"] = part.calls * times[name] / times["whole network"]
        if part.operations:
            rate = part.operations / times[name]
            row |= {"gflops": rate / 1e9, "of_product": rate / product_rate}
        elif name not in ("whole network", "decoder"):
            rate = moved_bytes(part) / times[name]
            row |= {"gbytes": rate / 1e9, "of_copy": rate / copy_rate}
        rows.append(row)
    return rows


def parser() -> argparse.ArgumentParser:
    """The options."""
    return arguments(__doc__, presets=PRESETS, people=PEOPLE, dtypes=DTYPES, rounds=ROUNDS)


def main() -> None:
    """Measure, and report the table of the rows."""
    options = parser().parse_args()
    rows = [
        row
        for preset in options.presets
        for dtype in options.dtypes
        for people in options.people
        for row in measure(preset, dtype, people, options.rounds)
    ]
    report(parts_table(rows), rows, options)


if __name__ == "__main__":
    main()
