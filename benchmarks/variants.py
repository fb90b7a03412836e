"""Ways that were tried for the parts of the network and of the crop, side by side; modeling.py keeps the first of each.

    python benchmarks/variants.py

Every variant gives the same result (the largest difference from the first is printed). Rounds are interleaved, medians.
`ahead.py` compiles the same variants for devices that are not there.
"""

import functools
import statistics
import time
from collections.abc import Callable, Iterator

import jax
import jax.numpy as jnp
import numpy as np
from common import PRODUCT_SIZE, markdown, product, report, take_turns
from flax import nnx

from vitpose_jax import VitPose, VitPoseConfig
from vitpose_jax.pipeline import warp as sampling
from vitpose_jax.pipeline.preprocess import boxes_to_center_scale, crop_to_image
from vitpose_jax.vitpose import modeling, ops

PRESET = "base"
BATCHES = (1, 8)
ROUNDS = 9
DISPATCH_CALLS = 200

# A function, and what to call it with.
Variants = dict[str, tuple[Callable, tuple]]


def random(model: VitPose, *shape: int) -> jax.Array:
    """Noise in the model's dtype."""
    return jax.random.normal(jax.random.key(0), shape, model.backbone.dtype)


def blocks(model: VitPose, batch: int) -> Variants:
    """How the blocks are held: stacked and scanned, the scan unrolled, or each with its own parameters."""
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
    """How queries meet keys, all blocks of the backbone with each."""

    def parts(self, tokens):
        n, length, _ = tokens.shape
        return [part.reshape(n, length, self.num_heads, -1) for part in jnp.split(self.qkv(tokens), 3, axis=-1)]

    def late_cut(self, tokens, shift=None):
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

    def late_division(self, tokens, shift=None):
        query, key, value = parts(self, tokens)
        query, key, value = query.transpose(0, 2, 1, 3), key.transpose(0, 2, 3, 1), value.transpose(0, 2, 1, 3)
        logits = jnp.matmul(query, key, preferred_element_type=jnp.float32) * query.shape[-1] ** -0.5
        weights = jnp.exp(logits - logits.max(-1, keepdims=True))
        mixed = jnp.matmul(weights.astype(tokens.dtype), value, preferred_element_type=jnp.float32)
        mixed = (mixed / weights.sum(-1, keepdims=True)).astype(tokens.dtype)
        return self.proj(mixed.transpose(0, 2, 1, 3).reshape(tokens.shape)), tokens

    def run(way, model, crops):
        # While the function is traced, the class has another way.
        kept, modeling.Attention.__call__ = modeling.Attention.__call__, way
        try:
            return model.backbone(crops, 0).tokens
        finally:
            modeling.Attention.__call__ = kept

    ways = {
        "cut in three, heads first, keys transposed": modeling.Attention.__call__,
        "heads told apart, then cut in three": late_cut,
        "einsum on heads in the middle": einsum,
        "jax.nn.dot_product_attention": library,
        "division after the product": late_division,
    }
    crops = random(model, batch, *model.config.image_size, 3)
    return {name: (functools.partial(run, way), (model, crops)) for name, way in ways.items()}


def activation(model: VitPose, batch: int) -> Variants:
    """The GELU between the layers of an MLP, all blocks of the backbone with each."""

    def run(act, model, tokens):
        def step(tokens, block):
            return block.mlp.fc2(act(block.mlp.fc1(tokens))), None

        return jax.lax.scan(step, tokens, model.backbone.blocks)[0]

    tokens = random(model, batch, model.config.num_patches, model.config.hidden_size)
    ways = {
        "erf, in float32": ops.gelu,
        "jax.nn.gelu (erfc)": lambda x: jax.nn.gelu(x, approximate=False),
        "erfc, in float32": lambda x: jax.nn.gelu(x.astype(jnp.float32), approximate=False).astype(x.dtype),
    }
    return {name: (functools.partial(run, way), (model, tokens)) for name, way in ways.items()}


def deconvolution(model: VitPose, batch: int) -> Variants:
    """The second transposed convolution of the classic decoder, 32 x 24 pixels to 64 x 48, and its BatchNorm."""
    head = next(iter(model.heads.values()))
    rows, columns = (2 * side for side in model.config.grid_size)
    x = random(model, batch, rows, columns, modeling.DECONV_FEATURES)

    def scattered(x, kernel):
        # Every input pixel times all 16 taps in one product, added up where they land.
        n, height, width, _ = x.shape
        taps = jnp.einsum("nhwi,abio->nhwabo", x, kernel[::-1, ::-1])
        result = jnp.zeros((n, 2 * height + 2, 2 * width + 2, kernel.shape[-1]), x.dtype)
        for row in range(4):
            for column in range(4):
                rows, columns = slice(row, row + 2 * height, 2), slice(column, column + 2 * width, 2)
                result = result.at[:, rows, columns].add(taps[:, :, :, row, column])
        return result[:, 1:-1, 1:-1]

    def run(way, x, head):
        return jax.nn.relu(head.norm2(way(x, head.deconv2.kernel[...])))

    ways = {
        "by platform": ops.deconv,
        "2x2 into four parities": functools.partial(ops._by_parity, convolve=ops._conv2x2),
        "over the dilated input": ops._dilated,
        "one product, scattered": scattered,
    }
    return {name: (functools.partial(run, way), (x, head)) for name, way in ways.items()}


def crops(model: VitPose, batch: int) -> Variants:
    """How the pixels of crops are found, in a photograph of 480 x 640."""
    rng = np.random.default_rng(0)
    image = rng.integers(0, 256, (480, 640, 3), np.uint8)
    boxes = np.concatenate([rng.uniform(0, 300, (batch, 2)), rng.uniform(60, 300, (batch, 2))], 1).astype(np.float32)
    size = model.config.image_size
    shapes = np.tile(np.asarray([[0, *image.shape[:2]]], np.int32), (batch, 1))

    def places(boxes):
        center, scale = boxes_to_center_scale(boxes, size)
        columns, rows = jnp.meshgrid(jnp.arange(size[1], dtype=jnp.float32), jnp.arange(size[0], dtype=jnp.float32))
        grid = jnp.broadcast_to(jnp.stack([columns, rows], -1), (batch, *size, 2))
        return crop_to_image(grid, center, scale, size)

    def upright(form):
        def run(image, boxes):
            points = places(boxes)
            return form(image.reshape(-1, 3), shapes, points[:, 0, :, 0], points[:, :, 0, 1])

        return run

    def gathered(pixels, shapes, x, y):
        return sampling._gathered(pixels, shapes, x[:, None, :], y[:, :, None], "scipy")

    def library(image, boxes):
        points = places(boxes)
        at = [points[..., 1], points[..., 0]]
        values = [jax.scipy.ndimage.map_coordinates(image[..., c].astype(jnp.float32), at, order=1) for c in range(3)]
        inside = (at[0] >= 0) & (at[0] <= image.shape[0] - 1) & (at[1] >= 0) & (at[1] <= image.shape[1] - 1)
        return jnp.where(inside[..., None], jnp.floor(jnp.stack(values, -1) + 0.5), 0.0)

    def products(image, boxes):
        # Rows and columns of bilinear weights as two matrices for each box: nothing is gathered.
        points = places(boxes)

        def weights(at, length):
            return (
                jnp.maximum(0, 1 - jnp.abs(at[..., None] - jnp.arange(length)))
                * ((at >= 0) & (at <= length - 1)).astype(jnp.float32)[..., None]
            )

        rows, columns = weights(points[:, :, 0, 1], image.shape[0]), weights(points[:, 0, :, 0], image.shape[1])
        wide = jnp.einsum("nyh,hwc->nywc", rows, image.astype(jnp.float32))
        return jnp.floor(jnp.einsum("nxw,nywc->nyxc", columns, wide) + 0.5)

    ways = {
        "by platform": upright(sampling.warp_upright),
        "gather from a row of pixels": upright(gathered),
        "stretches of rows, picked from": upright(functools.partial(sampling._picked, border="scipy")),
        "map_coordinates": library,
        "two products": products,
    }
    return {name: (way, (image, boxes)) for name, way in ways.items()}


PARTS = (blocks, attention, activation, deconvolution, crops)


def hand_over() -> dict[str, Callable[[], object]]:
    """How the model is given to jit, with a network so small that only that counts."""
    config = VitPoseConfig.preset(PRESET, image_size=(32, 32), hidden_size=16, num_heads=2, decoder="simple")
    model = VitPose(config, rngs=nnx.Rngs(0))
    image = jnp.zeros((1, 32, 32, 3))
    graphdef, state = nnx.split(model)
    leaves, structure = jax.tree.flatten(state)
    flat = jax.jit(lambda leaves, crops: nnx.merge(graphdef, jax.tree.unflatten(structure, leaves))(crops))
    plain, lifted = jax.jit(VitPose.__call__), nnx.jit(VitPose.__call__)
    return {
        "jax.jit of bare arrays": lambda: flat(leaves, image),
        "jax.jit of the module": lambda: plain(model, image),
        "nnx.jit of the module": lambda: lifted(model, image),
    }


def compare(title: str, batch: int, variants: dict[str, Callable[[], object]], rounds: int) -> Iterator[dict]:
    """A row for each variant: time, time of the first call, largest difference from the first variant."""
    results = {name: np.asarray(function()) for name, function in variants.items()}
    expected = next(iter(results.values()))
    limit = product("float32")
    start = time.perf_counter()
    _, times = take_turns({**variants, "limit": limit}, rounds)
    rate = 2 * PRODUCT_SIZE**3 / statistics.median(times["limit"])
    for name in variants:
        yield {
            "part": title,
            "batch": batch,
            "variant": name,
            "ms": 1e3 * statistics.median(times[name]),
            "difference": float(np.abs(results[name] - expected).max()),
            "gflops_of_a_product": rate / 1e9,
        }
    print(f"{title}, batch {batch}: {time.perf_counter() - start:.0f} s", flush=True)


def main() -> None:
    """Measure everything and write results/variants."""
    model = VitPose(VitPoseConfig.preset(PRESET), rngs=nnx.Rngs(0))
    rows = []
    for part in PARTS:
        for batch in BATCHES:
            variants = {
                name: functools.partial(jax.jit(function), *arguments)
                for name, (function, arguments) in part(model, batch).items()
            }
            rows += compare(part.__name__, batch, variants, ROUNDS)
    rows += compare("hand-over", 1, hand_over(), DISPATCH_CALLS)
    cells = [
        [row["part"], str(row["batch"]), row["variant"], f"{row['ms']:.2f}", f"{row['difference']:.0e}"] for row in rows
    ]
    header = ["part", "batch", "variant", "ms", "largest difference"]
    report(markdown(header, cells), output="variants", document={"rows": rows})


if __name__ == "__main__":
    main()
