"""Variants that were tried for the parts of the network and of the crop, side by side.

    python benchmarks/variants.py                                        # the defaults below
    python benchmarks/variants.py --parts attention crops --batches 8
    python benchmarks/variants.py --presets tiny --batches 1 --rounds 1    # shows that it runs

The first variant of each part is the one that the library uses. All give the same result: the largest difference from
the first is printed. Calls are warm and interleaved; the table shows medians. `ahead.py` compiles the same variants for
devices that the machine does not have.
"""

import argparse
import functools
import time
from collections.abc import Callable, Iterator

import jax
import jax.numpy as jnp
import numpy as np
from common import PRODUCT_SIZE, arguments, product, report, timed_rows, vitpose_config
from flax import nnx
from speed_tables import variants_table

from vitpose_jax import VitPose
from vitpose_jax.pipeline import warp
from vitpose_jax.pipeline.packing import PackedImages
from vitpose_jax.pipeline.regions import boxes_to_regions, crop_to_image
from vitpose_jax.vitpose import modeling, ops

PRESETS = ["base"]
BATCHES = [1, 8]
ROUNDS = 9
# The call of a network so small that only the overhead counts: many rounds.
CALL_ROUNDS = 200
SPLIT_FIRST = "split q, k, v first; heads first, keys transposed"

# A function and its arguments, by the name of the variant.
Variants = dict[str, tuple[Callable, tuple]]


def random(model: VitPose, *shape: int) -> jax.Array:
    """Noise in the model's dtype."""
    return jax.random.normal(jax.random.key(0), shape, model.backbone.dtype)


def blocks(model: VitPose, batch: int) -> Variants:
    """How blocks are stored: stacked and scanned, the scan unrolled, or a list with the parameters of each."""
    stacked = model.backbone.blocks
    depth = model.config.num_layers
    separate = [jax.tree.map(lambda leaf, i=i: leaf[i], stacked) for i in range(depth)]
    tokens = random(model, batch, model.config.num_patches, model.config.hidden_size)

    def scan(unroll):
        return lambda blocks, x: jax.lax.scan(lambda x, b: (b(x)[0], None), x, blocks, unroll=unroll)[0]

    def loop(blocks, tokens):
        for block in blocks:
            tokens = block(tokens)[0]
        return tokens

    return {
        "scan": (scan(1), (stacked, tokens)),
        "scan, unrolled": (scan(depth), (stacked, tokens)),
        "list of blocks": (loop, (separate, tokens)),
    }


def attention(model: VitPose, batch: int) -> Variants:
    """How attention is computed, in all blocks of the backbone."""

    def parts(self, tokens):
        n, length, _ = tokens.shape
        return [part.reshape(n, length, self.num_heads, -1) for part in jnp.split(self.qkv(tokens), 3, axis=-1)]

    def late_split(self, tokens, shift=None):
        n, length, dim = tokens.shape
        qkv = self.qkv(tokens).reshape(n, length, 3, self.num_heads, -1)
        query, value = qkv[:, :, 0].transpose(0, 2, 1, 3), qkv[:, :, 2].transpose(0, 2, 1, 3)
        logits = jnp.matmul(query, qkv[:, :, 1].transpose(0, 2, 3, 1), preferred_element_type=jnp.float32)
        weights = jax.nn.softmax(logits * query.shape[-1] ** -0.5).astype(tokens.dtype)
        return self.proj((weights @ value).transpose(0, 2, 1, 3).reshape(n, length, dim)), weights

    def einsum(self, tokens, shift=None):
        query, key, value = parts(self, tokens)
        logits = jnp.einsum("nqhd,nkhd->nhqk", query, key, preferred_element_type=jnp.float32)
        weights = jax.nn.softmax(logits * query.shape[-1] ** -0.5).astype(tokens.dtype)
        return self.proj(jnp.einsum("nhqk,nkhd->nqhd", weights, value).reshape(tokens.shape)), weights

    def library(self, tokens, shift=None):
        return self.proj(jax.nn.dot_product_attention(*parts(self, tokens)).reshape(tokens.shape)), tokens

    def late_normalisation(self, tokens, shift=None):
        query, key, value = parts(self, tokens)
        query, key, value = query.transpose(0, 2, 1, 3), key.transpose(0, 2, 3, 1), value.transpose(0, 2, 1, 3)
        logits = jnp.matmul(query, key, preferred_element_type=jnp.float32) * query.shape[-1] ** -0.5
        weights = jnp.exp(logits - logits.max(-1, keepdims=True))
        mixed = jnp.matmul(weights.astype(tokens.dtype), value, preferred_element_type=jnp.float32)
        mixed = (mixed / weights.sum(-1, keepdims=True)).astype(tokens.dtype)
        return self.proj(mixed.transpose(0, 2, 1, 3).reshape(tokens.shape)), tokens

    def run(attend, model, crops):
        # The class has the other implementation while the function is traced.
        original, modeling.Attention.__call__ = modeling.Attention.__call__, attend
        try:
            return model.backbone(crops, 0).tokens
        finally:
            modeling.Attention.__call__ = original

    forms = {
        SPLIT_FIRST: modeling.Attention.__call__,
        "split heads first, then q, k, v": late_split,
        "einsum, heads in the middle": einsum,
        "jax.nn.dot_product_attention": library,
        "normalise after the product": late_normalisation,
    }
    crops = random(model, batch, *model.config.image_size, 3)
    return {name: (functools.partial(run, form), (model, crops)) for name, form in forms.items()}


def activation(model: VitPose, batch: int) -> Variants:
    """The GELU of the MLP, in all blocks of the backbone."""

    def run(act, model, tokens):
        def step(tokens, block):
            return block.mlp.fc2(act(block.mlp.fc1(tokens))), None

        return jax.lax.scan(step, tokens, model.backbone.blocks)[0]

    tokens = random(model, batch, model.config.num_patches, model.config.hidden_size)
    forms = {
        "erf, in float32": ops.gelu,
        "jax.nn.gelu (erfc)": lambda x: jax.nn.gelu(x, approximate=False),
        "erfc, in float32": lambda x: jax.nn.gelu(x.astype(jnp.float32), approximate=False).astype(x.dtype),
    }
    return {name: (functools.partial(run, form), (model, tokens)) for name, form in forms.items()}


def deconvolution(model: VitPose, batch: int) -> Variants:
    """The second transposed convolution of the classic decoder, 32 x 24 pixels to 64 x 48, and its BatchNorm."""
    head = next(iter(model.heads.values()))
    rows, columns = (2 * side for side in model.config.grid_size)
    x = random(model, batch, rows, columns, modeling.DECONV_FEATURES)

    def scattered(x, kernel):
        # Every input pixel times all 16 taps in one product; the products are added to the output pixels.
        n, height, width, _ = x.shape
        taps = jnp.einsum("nhwi,abio->nhwabo", x, kernel[::-1, ::-1])
        result = jnp.zeros((n, 2 * height + 2, 2 * width + 2, kernel.shape[-1]), x.dtype)
        for row in range(4):
            for column in range(4):
                rows, columns = slice(row, row + 2 * height, 2), slice(column, column + 2 * width, 2)
                result = result.at[:, rows, columns].add(taps[:, :, :, row, column])
        return result[:, 1:-1, 1:-1]

    def run(deconv, x, head):
        return jax.nn.relu(head.norm2(deconv(x, head.deconv2.kernel[...])))

    forms = {
        "chosen by platform": ops.deconv,
        "one 2x2 convolution, four parities interleaved": functools.partial(ops._by_parity, convolve=ops._conv2x2),
        "convolution of the dilated input": ops._dilated,
        "one matrix product, scattered": scattered,
    }
    return {name: (functools.partial(run, form), (x, head)) for name, form in forms.items()}


def crops(model: VitPose, batch: int) -> Variants:
    """How crops are sampled, from an image of 480 x 640."""
    rng = np.random.default_rng(0)
    image = rng.integers(0, 256, (480, 640, 3), np.uint8)
    boxes = np.concatenate([rng.uniform(0, 300, (batch, 2)), rng.uniform(60, 300, (batch, 2))], 1).astype(np.float32)
    size = model.config.image_size
    shapes = np.tile(np.asarray([[0, *image.shape[:2]]], np.int32), (batch, 1))

    def sample_points(boxes):
        columns, rows = jnp.meshgrid(jnp.arange(size[1], dtype=jnp.float32), jnp.arange(size[0], dtype=jnp.float32))
        grid = jnp.broadcast_to(jnp.stack([columns, rows], -1), (batch, *size, 2))
        return crop_to_image(grid, boxes_to_regions(boxes, size), size)

    def upright(form):
        def run(image, boxes):
            points = sample_points(boxes)
            return form(PackedImages(image.reshape(-1, 3), jnp.asarray(shapes)), points[:, 0, :, 0], points[:, :, 0, 1])

        return run

    def gathered(images, x, y):
        return warp._gathered(images, x[:, None, :], y[:, :, None], "scipy")

    def library(image, boxes):
        points = sample_points(boxes)
        at = [points[..., 1], points[..., 0]]
        values = [jax.scipy.ndimage.map_coordinates(image[..., c].astype(jnp.float32), at, order=1) for c in range(3)]
        inside = (at[0] >= 0) & (at[0] <= image.shape[0] - 1) & (at[1] >= 0) & (at[1] <= image.shape[1] - 1)
        return jnp.where(inside[..., None], jnp.floor(jnp.stack(values, -1) + 0.5), 0.0)

    def products(image, boxes):
        # Bilinear weights of rows and of columns as two matrices for each box: no gather.
        points = sample_points(boxes)

        def weights(at, length):
            return (
                jnp.maximum(0, 1 - jnp.abs(at[..., None] - jnp.arange(length)))
                * ((at >= 0) & (at <= length - 1)).astype(jnp.float32)[..., None]
            )

        rows, columns = weights(points[:, :, 0, 1], image.shape[0]), weights(points[:, 0, :, 0], image.shape[1])
        wide = jnp.einsum("nyh,hwc->nywc", rows, image.astype(jnp.float32))
        return jnp.floor(jnp.einsum("nxw,nywc->nyxc", columns, wide) + 0.5)

    forms = {
        "chosen by platform": upright(warp.warp_upright),
        "gather from the flat pixel buffer": upright(gathered),
        "load pixel runs, select by one-hot product": upright(functools.partial(warp._selected, border="scipy")),
        "map_coordinates": library,
        "two bilinear matrix products": products,
    }
    return {name: (sample, (image, boxes)) for name, sample in forms.items()}


PARTS = (blocks, attention, activation, deconvolution, crops)


def call(preset: str) -> dict[str, Callable[[], object]]:
    """How the model is passed to jit, with a network so small that only the overhead counts."""
    config = vitpose_config(preset).replace(image_size=(32, 32), hidden_size=16, num_heads=2, decoder="simple")
    model = VitPose(config, rngs=nnx.Rngs(0))
    crops = jnp.zeros((1, 32, 32, 3))
    graphdef, state = nnx.split(model)
    leaves, structure = jax.tree.flatten(state)
    flat = jax.jit(lambda leaves, crops: nnx.merge(graphdef, jax.tree.unflatten(structure, leaves))(crops))
    plain, lifted = jax.jit(VitPose.__call__), nnx.jit(VitPose.__call__)
    return {
        "jax.jit of bare arrays": lambda: flat(leaves, crops),
        "jax.jit of the module": lambda: plain(model, crops),
        "nnx.jit of the module": lambda: lifted(model, crops),
    }


def compare(part: str, batch: int, programs: dict[str, Callable[[], object]], rounds: int) -> Iterator[dict]:
    """A row for each variant: median time, and the largest difference from the first variant."""
    start = time.perf_counter()
    results = {name: np.asarray(program()) for name, program in programs.items()}
    first, *_ = results
    rows, limit = timed_rows({}, programs, rounds=rounds, baseline=first, limit=product("float32"))
    for row in rows:
        yield {
            "part": part,
            "batch": batch,
            "variant": row["program"],
            "ms": row["ms"],
            "difference": float(np.abs(results[row["program"]] - results[first]).max()),
            "gflops_of_a_product": 2 * PRODUCT_SIZE**3 / limit / 1e9,
        }
    print(f"{part}, batch {batch}: {time.perf_counter() - start:.0f} s", flush=True)


def measure(options: argparse.Namespace) -> list[dict]:
    """One row for each model, part, batch and variant."""
    rows = []
    for preset in options.presets:
        model = VitPose(vitpose_config(preset), rngs=nnx.Rngs(0))
        for part in PARTS:
            # The tiny network has another decoder.
            if part.__name__ not in options.parts or (part is deconvolution and model.config.decoder != "classic"):
                continue
            for batch in options.batches:
                programs = {
                    name: functools.partial(jax.jit(function), *arguments)
                    for name, (function, arguments) in part(model, batch).items()
                }
                rows += compare(part.__name__, batch, programs, options.rounds)
        if "call" in options.parts:
            rows += compare("call", 1, call(preset), min(CALL_ROUNDS, 25 * options.rounds))
    return rows


def parser() -> argparse.ArgumentParser:
    """The options."""
    names = [part.__name__ for part in PARTS]
    options = arguments(__doc__, presets=PRESETS, rounds=ROUNDS)
    options.add_argument("--batches", nargs="+", type=int, default=BATCHES, help="crops in a batch")
    options.add_argument("--parts", nargs="+", choices=[*names, "call"], default=[*names, "call"])
    return options


def main() -> None:
    """Measure, and report the table of the rows."""
    options = parser().parse_args()
    rows = measure(options)
    report(variants_table(rows), rows, options)


if __name__ == "__main__":
    main()
