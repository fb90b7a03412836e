"""How the blocks are held, and how the model is handed to jit: compile, run and dispatch times side by side.

    python benchmarks/blocks.py

Variants of holding: "scan" (stacked parameters, lax.scan: what modeling.py does), "scan unrolled" (the same with
unroll=depth) and "list" (every block its own parameters, a Python loop). Rounds are interleaved; medians.
"""

import platform
import statistics
import time

import flax
import jax
import jax.numpy as jnp
from flax import nnx

from vitpose_jax import VitPose, VitPoseConfig

PRESET = "base"
BATCHES = (1, 8)
ROUNDS = 11
DISPATCH_CALLS = 200


def block_variants(model: VitPose) -> dict[str, tuple]:
    """For each way of holding the blocks: a function of (blocks, tokens), and the blocks."""
    stacked = model.backbone.blocks
    depth = model.config.num_layers
    separate = [jax.tree.map(lambda leaf, i=i: leaf[i], stacked) for i in range(depth)]

    def scan(unroll):
        def run(blocks, tokens):
            return jax.lax.scan(lambda x, block: (block(x)[0], None), tokens, blocks, unroll=unroll)[0]

        return run

    def loop(blocks, tokens):
        for block in blocks:
            tokens = block(tokens)[0]
        return tokens

    return {"scan": (scan(1), stacked), "scan unrolled": (scan(depth), stacked), "list": (loop, separate)}


def seconds(function, *arguments) -> float:
    start = time.perf_counter()
    jax.block_until_ready(function(*arguments))
    return time.perf_counter() - start


def compare_blocks(model: VitPose) -> None:
    print("| batch | blocks | compile, s | run, ms |\n|---|---|---|---|")
    for batch in BATCHES:
        tokens = jax.random.normal(jax.random.key(0), (batch, model.config.num_patches, model.config.hidden_size))
        compiled, compile_times = {}, {}
        for name, (function, blocks) in block_variants(model).items():
            leaves, structure = jax.tree.flatten(blocks)

            def run(leaves, tokens, function=function, structure=structure):
                return function(jax.tree.unflatten(structure, leaves), tokens)

            start = time.perf_counter()
            compiled[name] = (jax.jit(run).lower(leaves, tokens).compile(), leaves)
            compile_times[name] = time.perf_counter() - start
        times = {name: [] for name in compiled}
        for _ in range(ROUNDS):
            for name, (function, leaves) in compiled.items():
                times[name].append(seconds(function, leaves, tokens))
        for name, rounds in times.items():
            print(f"| {batch} | {name} | {compile_times[name]:.2f} | {1e3 * statistics.median(rounds):.1f} |")


def compare_dispatch() -> None:
    """A network so small that only the hand-over counts."""
    config = VitPoseConfig.preset(PRESET, image_size=(32, 32), hidden_size=16, num_heads=2, decoder="simple")
    model = VitPose(config, rngs=nnx.Rngs(0))
    crops = jnp.zeros((1, 32, 32, 3))
    graphdef, state = nnx.split(model)
    leaves, structure = jax.tree.flatten(state)
    flat = jax.jit(lambda leaves, crops: nnx.merge(graphdef, jax.tree.unflatten(structure, leaves))(crops))
    plain, lifted = jax.jit(VitPose.__call__), nnx.jit(VitPose.__call__)
    variants = {
        "jax.jit of bare arrays": lambda: flat(leaves, crops),
        "jax.jit of the module": lambda: plain(model, crops),
        "nnx.jit of the module": lambda: lifted(model, crops),
    }
    times = {name: [] for name in variants}
    for function in variants.values():
        seconds(function)
    for _ in range(DISPATCH_CALLS):
        for name, function in variants.items():
            times[name].append(seconds(function))
    print("\n| hand-over | call, ms |\n|---|---|")
    for name, calls in times.items():
        print(f"| {name} | {1e3 * statistics.median(calls):.2f} |")


if __name__ == "__main__":
    print(f"{platform.machine()}, {jax.devices()[0].device_kind}, jax {jax.__version__}, flax {flax.__version__}\n")
    compare_blocks(VitPose(VitPoseConfig.preset(PRESET), rngs=nnx.Rngs(0)))
    compare_dispatch()
