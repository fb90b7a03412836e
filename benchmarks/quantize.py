"""What int8 and int4 weights cost in accuracy, and what they save in memory.

    python benchmarks/quantize.py --images coco_val/images --annotations coco_val/person_keypoints.json
    python benchmarks/quantize.py --presets plus-huge
    python benchmarks/quantize.py --presets tiny --rounds 1     # shows that it runs
    python benchmarks/quantize.py --products
    python benchmarks/quantize.py --architectures vitpose-small-open small base --output quantize_architectures
    python benchmarks/quantize.py --presets base vitpose-small-open --forward 1 8 --rounds 7 --output quantize_forward

With images: AP of the bundled model in the annotated boxes, with the flip test, at each setting; and how far keypoints
move. "clipped" chooses the range of each group by the squared error; "everything" rounds patch embedding and head, too.
The bundled file has int8 kernels already, so its float32 model is one of rounded weights.

With presets: a checkpoint with random weights in the Hub's format is written to a temporary folder. A fresh process for
each setting loads it and runs one crop; its peak memory is what Linux reports (VmHWM). Then one process runs all
settings in turn.

With architectures: how far heatmaps of the people in a photograph move in models of these presets. Their weights are
random, with kernels whose products keep the size of their inputs, so that all blocks matter as in a trained model, and
heatmaps depend on the crop. Differences count in units of how much heatmaps of two people differ. The bundled model
beside them is a trained one, whose AP is known at each setting.

With products: the linear layers of the base model, 16 crops. "w8a8" rounds the tokens to int8, too, each with a scale
of its own, and multiplies integers.

With forward: the whole network with such products in all linear layers of the blocks, for these numbers of crops,
beside floating point and int8 weights alone. The heatmaps are compared with those of float32. Only those of the bundled
model, in crops of a photograph, mean something: random weights add up to heatmaps that hardly depend on the input.
"""

import argparse
import functools
import json
import math
import pathlib
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from unittest import mock

import jax
import jax.numpy as jnp
import numpy as np
from accuracy_tables import (
    quantize_accuracy_table,
    quantize_architectures_table,
    quantize_forward_table,
    quantize_memory_table,
    quantize_products_table,
    quantize_time_table,
)
from common import TINY, arguments, report, timed_rows, vitpose_config
from flax import nnx
from quantize_worker import SETTINGS, program

from vitpose_jax import Detector, VitPose, VitPoseConfig, crop_boxes, from_pretrained, load_image
from vitpose_jax.bundled import DEMO_BOX, DEMO_IMAGE, GROUP_IMAGE
from vitpose_jax.convert.engine import plan, source_shapes
from vitpose_jax.convert.formats import HUGGINGFACE
from vitpose_jax.convert.formats.format import vitpose_shapes
from vitpose_jax.datasets import read_dataset
from vitpose_jax.datasets.dataset import Dataset
from vitpose_jax.evaluation.journal import DECIMALS
from vitpose_jax.evaluation.scoring import measure, to_results
from vitpose_jax.pipeline.packing import PackedImages, pack_images, pixel_bucket
from vitpose_jax.pipeline.predict import predict
from vitpose_jax.serving.program import Program
from vitpose_jax.storage import int4, int8, parameters
from vitpose_jax.vitpose import products
from vitpose_jax.vitpose.modeling import abstract_vitpose
from vitpose_jax.vitpose.quantized import QuantizedKernel, is_quantized, num_bytes

MODEL = "vitpose-small-open"
WORKER = pathlib.Path(__file__).with_name("quantize_worker.py")
BATCH = 4
# Boxes in a batch whose accuracy is measured, and the lowest score of a keypoint whose distance counts.
PEOPLE, LOWEST = 16, 0.3
# Fractions of the largest weight of a group that are tried as its range.
RANGES = np.linspace(1.0, 0.7, 7)

# People of the photograph whose heatmaps are compared between settings of an architecture.
SHOWN = 8

PRODUCT = QuantizedKernel.product

Round = Callable[[np.ndarray], np.ndarray]


def rounded_int4(group_size: int, *, clip: bool = False) -> Round:
    """The weights that int4 makes of a kernel (..., in, out); with `clip` in the range with the least squared error."""

    def function(weights: np.ndarray) -> np.ndarray:
        if not clip:
            return int4.dequantize(*int4.quantize(weights, group_size))
        groups = weights.reshape(*weights.shape[:-2], -1, group_size, weights.shape[-1])
        largest = np.abs(groups).max(axis=-2, keepdims=True)
        result, least = np.zeros_like(groups), np.full(largest.shape, np.inf, np.float32)
        for fraction in RANGES:
            scale = largest * np.float32(fraction / int4.LARGEST)
            tried = np.clip(np.rint(groups / scale), -int4.LARGEST, int4.LARGEST) * scale
            error = np.square(tried - groups).sum(axis=-2, keepdims=True)
            result, least = np.where(error < least, tried, result), np.minimum(error, least)
        return result.reshape(weights.shape)

    return function


def rounded_int8(weights: np.ndarray) -> np.ndarray:
    """The weights that int8 makes of a kernel (..., in, out): a scale for each output."""
    return int8.dequantize(*int8.round_kernel("backbone.blocks.kernel", weights))


# What `measure_architecture` compares with float32.
ROUNDINGS: dict[str, Round] = {
    "int8": rounded_int8,
    **{f"int4, groups of {size}": rounded_int4(size) for size in (128, 64, 32)},
}


def rounded_model(model: VitPose, function: Round, *, everything: bool = False) -> VitPose:
    """A float32 model whose kernels were rounded: those of the blocks, or also all others."""
    tensors = dict(parameters.flatten(model))
    for name, leaf in tensors.items():
        weights = np.asarray(leaf, np.float32)
        if is_quantized(name):
            tensors[name] = function(weights)
        elif everything and name.endswith("kernel"):
            tensors[name] = function(weights.reshape(-1, weights.shape[-1])).reshape(weights.shape)
    return parameters.fill(abstract_vitpose(model.config), tensors)


def models() -> Iterator[tuple[str, VitPose]]:
    """The settings whose accuracy is measured."""
    model = from_pretrained(MODEL)
    yield "float32", model
    yield "int8", from_pretrained(MODEL, quantize="int8")
    for size in (128, 64, 32):
        yield f"int4, groups of {size}", from_pretrained(MODEL, quantize="int4", group_size=size)
    yield "int4, groups of 128, clipped", rounded_model(model, rounded_int4(128, clip=True))
    yield "int4, groups of 32, clipped", rounded_model(model, rounded_int4(32, clip=True))
    yield "int4, groups of 32, everything", rounded_model(model, rounded_int4(32), everything=True)
    yield (
        "int4, groups of 32, computed in bfloat16",
        from_pretrained(MODEL, quantize="int4", group_size=32, dtype=jnp.bfloat16),
    )


def batches(dataset: Dataset) -> list[tuple[PackedImages, np.ndarray]]:
    """The images and boxes of a dataset in batches of one shape, so that each model compiles one program."""
    rows = [(sample.path, box) for sample in dataset.samples for box in sample.boxes]
    rows += [rows[-1]] * (-len(rows) % PEOPLE)
    groups = [rows[start : start + PEOPLE] for start in range(0, len(rows), PEOPLE)]
    packed = []
    for group in groups:
        paths = list(dict.fromkeys(path for path, _ in group))
        images = [load_image(path) for path in paths]
        index = np.asarray([paths.index(path) for path, _ in group])
        packed.append((pack_images(images), index, np.stack([box for _, box in group])))
    length = pixel_bucket(max(len(images.pixels) for images, _, _ in packed))
    for place, (images, index, boxes) in enumerate(packed):
        pixels = np.zeros((length, 3), np.uint8)
        pixels[: len(images.pixels)] = images.pixels
        packed[place] = (PackedImages(pixels, images.shapes[index]), boxes.astype(np.float32))
    return packed


def measure_accuracy(images: pathlib.Path, annotations: pathlib.Path, limit: int | None) -> list[dict]:
    """One row for each setting: AP, AR, and the distance of keypoints from those of the first."""
    dataset = read_dataset("coco", annotations, images)
    dataset = dataset if limit is None else dataset.first(limit)
    inputs, rows, reference = batches(dataset), [], None
    counts = [len(sample.boxes) for sample in dataset.samples]
    boxes = np.concatenate([sample.boxes for sample in dataset.samples])
    for name, model in models():
        run = Program(model, functools.partial(predict, border="opencv"), options=("flip_test",))
        results = [run(*batch, flip_test=True)[:2] for batch in inputs]
        points, scores = (np.concatenate([np.asarray(part) for part in parts]) for parts in zip(*results, strict=True))
        poses = np.concatenate([points, scores[..., None]], axis=-1)[: len(boxes)].astype(np.float64).round(DECIMALS)
        by_image = dict(enumerate(np.split(poses, np.cumsum(counts)[:-1])))
        metrics = measure(dataset, by_image, to_results(dataset, by_image))
        reference = poses if reference is None else reference
        sides = np.sqrt(boxes[:, 2] * boxes[:, 3])
        distances = np.linalg.norm(poses[..., :2] - reference[..., :2], axis=-1) / sides[:, None]
        distances = distances[reference[..., 2] >= LOWEST]
        moved = {"median": float(np.median(distances)), "high": float(np.quantile(distances, 0.95))}
        row = {"setting": name, "AP": metrics["AP"], "AR": metrics["AR"], "moved": moved, "bytes": num_bytes(model)}
        print(row, file=sys.stderr, flush=True)
        rows.append(row)
    return rows


def write_random(config: VitPoseConfig, folder: pathlib.Path) -> None:
    """A checkpoint in the Hub's format with random weights, written tensor by tensor: it is never in memory."""
    shapes = source_shapes(plan(HUGGINGFACE, config), vitpose_shapes(config))
    header, offset = {}, 0
    for name, shape in shapes.items():
        end = offset + 4 * math.prod(shape)
        header[name] = {"dtype": "F32", "shape": list(shape), "data_offsets": [offset, end]}
        offset = end
    text = json.dumps(header).encode()
    random = np.random.default_rng(0)
    with (folder / "model.safetensors").open("wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        for name, shape in shapes.items():
            values = random.standard_normal(shape, np.float32) * np.float32(0.02)
            file.write((np.abs(values) + 1 if "var" in name else values).tobytes())
    for name, values in HUGGINGFACE.make_documents(config, param_dtype=jnp.float32).items():
        (folder / name).write_text(json.dumps(values))


def measure_memory(preset: str, dtype: str, settings: list[str], rounds: int) -> list[dict]:
    """One row for each setting: bytes and peak memory of a fresh process, and milliseconds for a batch."""
    config = vitpose_config(preset, layer_norm_eps=1e-12)
    if preset == TINY:
        config = config.replace(hidden_size=128)  # one group
    with tempfile.TemporaryDirectory() as folder:
        write_random(config.replace(skeletons=config.skeletons[:1]), pathlib.Path(folder))
        rows = [measure_process(folder, setting, dtype) for setting in settings]
        crops = jnp.zeros((BATCH, *config.image_size, 3), dtype)
        programs = {setting: program(folder, setting, dtype)[0] for setting in settings}
        timed = {name: lambda run=run: run(crops) for name, run in programs.items()}
        times, _ = timed_rows({}, timed, rounds=rounds, baseline=settings[0])
    label = {"preset": preset, "dtype": dtype, "crops": BATCH}
    return [{**label, **row, **time} for row, time in zip(rows, times, strict=True)]


def measure_process(folder: str, setting: str, dtype: str) -> dict:
    """What a fresh process prints."""
    command = [sys.executable, str(WORKER), folder, setting, dtype]
    row = json.loads(subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True).stdout.splitlines()[-1])
    print(row, file=sys.stderr, flush=True)
    return row


def product_programs(rows: int, inputs: int, outputs: int) -> dict[str, Callable[[], object]]:
    """One linear layer in four ways; "int8" is the product, "w8a8" also rounds the tokens and scales the result."""
    x = jax.random.normal(jax.random.key(0), (rows, inputs))
    kernel = jax.random.normal(jax.random.key(1), (inputs, outputs))
    scale = jnp.abs(kernel).max(axis=0) / int8.LARGEST
    values = jnp.rint(kernel / scale).astype(jnp.int8)
    rounded = jnp.rint(x * int8.LARGEST / jnp.abs(x).max()).astype(jnp.int8)
    integer = functools.partial(jnp.matmul, preferred_element_type=jnp.int32)

    def w8a8(x: jax.Array, values: jax.Array) -> jax.Array:
        token_scale = jnp.abs(x).max(axis=-1, keepdims=True) / int8.LARGEST
        return integer(jnp.rint(x / token_scale).astype(jnp.int8), values) * token_scale * scale

    half = x.astype(jnp.bfloat16), kernel.astype(jnp.bfloat16)
    functions = {
        "float32": (jnp.matmul, x, kernel),
        "bfloat16": (products.matmul, *half),
        "int8": (integer, rounded, values),
        "w8a8": (w8a8, x, values),
    }
    compiled = {name: (jax.jit(function), a, b) for name, (function, a, b) in functions.items()}
    return {name: lambda f=f, a=a, b=b: f(a, b) for name, (f, a, b) in compiled.items()}


def measure_products(rounds: int) -> list[dict]:
    """Milliseconds of the linear layers of the base model, by kind of product."""
    config, rows = VitPoseConfig.preset("base"), []
    dim, hidden, tokens = config.hidden_size, config.mlp_features, PEOPLE * config.num_patches
    for name, inputs, outputs in (
        ("qkv", dim, 3 * dim),
        ("proj", dim, dim),
        ("fc1", dim, hidden),
        ("fc2", hidden, dim),
    ):
        label = {"layer": name, "tokens": tokens, "inputs": inputs, "outputs": outputs}
        rows += timed_rows(label, product_programs(tokens, inputs, outputs), rounds=rounds, baseline="float32")[0]
    return rows


def w8a8_product(kernel: QuantizedKernel, x: jax.Array, index: object = None) -> jax.Array:
    """`QuantizedKernel.product` with int8 tokens: each has a scale of its own."""
    if index is not None:
        raise ValueError("w8a8: expected a model without experts")
    wide = x.astype(jnp.float32)
    token_scale = jnp.maximum(jnp.abs(wide).max(axis=-1, keepdims=True) / int8.LARGEST, jnp.finfo(jnp.float32).tiny)
    rounded = jnp.rint(wide / token_scale).astype(jnp.int8)
    sums = jnp.matmul(rounded, kernel.values[...], preferred_element_type=jnp.int32)
    return (sums * token_scale * kernel.scale[...]).astype(x.dtype)


def lively_model(preset: str) -> VitPose:
    """A model with random weights whose heatmaps depend on the crop as much as those of a trained one.

    Kernels have a variance of 1 / inputs: a residual branch is as large as what it is added to. Norms and biases are
    random, too.
    """
    config = vitpose_config(preset)
    model = VitPose(config.replace(skeletons=config.skeletons[:1]), rngs=nnx.Rngs(0))
    rng = np.random.default_rng(0)
    tensors = {}
    for name, leaf in parameters.flatten(model).items():
        if name.endswith("kernel"):
            lead = name.startswith("backbone.blocks.") + ("experts" in name)
            values = rng.normal(0, math.prod(leaf.shape[lead:-1]) ** -0.5, leaf.shape)
        elif name.endswith((".scale", ".var")):
            values = rng.uniform(0.8, 1.2, leaf.shape)
        else:
            values = rng.normal(0, 0.1, leaf.shape)
        tensors[name] = values.astype(np.float32)
    return parameters.fill(abstract_vitpose(model.config), tensors)


def measure_architecture(preset: str) -> list[dict]:
    """How far the heatmaps of a photograph's people move at each setting."""
    model = from_pretrained(MODEL) if preset == MODEL else lively_model(preset)
    image = load_image(GROUP_IMAGE)
    boxes = np.asarray(Detector.from_pretrained()(image).boxes)[:SHOWN]
    crops = crop_boxes(image, boxes, model.config.image_size)

    def heatmaps(model: VitPose) -> np.ndarray:
        return np.asarray(jax.jit(lambda model, crops: model(crops, 0))(model, crops), np.float32)

    expected = heatmaps(model)
    # Of two people: each one's and the next one's.
    apart = np.sqrt(np.mean((expected - np.roll(expected, 1, axis=0)) ** 2))
    rows = []
    for setting, function in ROUNDINGS.items():
        got = heatmaps(rounded_model(model, function))
        error = np.sqrt(np.mean((got - expected) ** 2)) / apart
        rows.append({"preset": preset, "setting": setting, "people": len(boxes), "moved": float(error)})
    return rows


def measure_forward(preset: str, counts: list[int], rounds: int) -> list[dict]:
    """One row for each kind of product and each number of crops."""
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        source = preset
        if preset != MODEL:
            config, source = vitpose_config(preset, layer_norm_eps=1e-12), folder
            write_random(config.replace(skeletons=config.skeletons[:1]), pathlib.Path(folder))
        networks: dict[str, Program] = {}
        for name, options in {
            "float32": {},
            "bfloat16": {"dtype": "bfloat16"},
            "int8 weights": {"quantize": "int8"},
            "int8 weights, bfloat16": {"quantize": "int8", "dtype": "bfloat16"},
            "W8A8": {"quantize": "int8"},
            "W8A8, bfloat16": {"quantize": "int8", "dtype": "bfloat16"},
        }.items():
            model = from_pretrained(source, **options)
            networks[name] = Program(model, lambda model, crops: model(crops))
        for count in counts:
            boxes = np.asarray(DEMO_BOX, np.float32) + np.random.default_rng(0).uniform(-20, 20, (count, 4))
            crops = crop_boxes(load_image(DEMO_IMAGE), boxes.astype(np.float32), model.config.image_size)
            heatmaps = {}
            for name, network in networks.items():
                # The first call of a shape traces the program.
                with mock.patch.object(QuantizedKernel, "product", w8a8_product if "W8A8" in name else PRODUCT):
                    heatmaps[name] = np.asarray(network(crops), np.float32)
            programs = {name: functools.partial(run, crops) for name, run in networks.items()}
            label = {"preset": preset, "people": count}
            largest = np.abs(heatmaps["float32"]).max()
            for row in timed_rows(label, programs, rounds=rounds, baseline="float32")[0]:
                error = np.abs(heatmaps[row["program"]] - heatmaps["float32"]).max() / largest
                rows.append(row | {"heatmaps": float(error)})
    return rows


def parser() -> argparse.ArgumentParser:
    """The command line."""
    options = arguments(__doc__ or "", presets=[], dtypes=["bfloat16"], rounds=5)
    options.add_argument("--settings", nargs="+", default=list(SETTINGS)[1:], choices=list(SETTINGS))
    options.add_argument("--images", help="images of COCO")
    options.add_argument("--annotations", help="their person_keypoints file")
    options.add_argument("--limit", type=int, help="only the first images")
    options.add_argument("--forward", nargs="+", type=int, metavar="CROPS", help="time whole forward passes")
    options.add_argument("--architectures", nargs="+", metavar="PRESET", help="how far heatmaps of these models move")
    options.add_argument("--products", action="store_true", help="time products of int8 tokens with int8 weights")
    return options


def main() -> None:
    """Measure, print, write."""
    options = parser().parse_args()
    if options.images is not None:
        rows = measure_accuracy(pathlib.Path(options.images), pathlib.Path(options.annotations), options.limit)
        report(quantize_accuracy_table(rows), rows, options, model=MODEL)
        return
    if options.architectures:
        rows = [row for preset in options.architectures for row in measure_architecture(preset)]
        report(quantize_architectures_table(rows), rows, options)
        return
    if options.products:
        rows = measure_products(options.rounds)
        report(quantize_products_table(rows), rows, options)
        return
    if options.forward:
        rows = [row for preset in options.presets for row in measure_forward(preset, options.forward, options.rounds)]
        report(quantize_forward_table(rows), rows, options)
        return
    rows = [
        row
        for preset in options.presets
        for dtype in options.dtypes
        for row in measure_memory(preset, dtype, options.settings, options.rounds)
    ]
    report(f"{quantize_memory_table(rows)}\n\n{quantize_time_table(rows)}", rows, options)


if __name__ == "__main__":
    main()
