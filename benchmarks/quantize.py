"""What int8 and int4 weights cost in accuracy, and what they save in memory.

    python benchmarks/quantize.py --images coco_val/images --annotations coco_val/person_keypoints.json
    python benchmarks/quantize.py --presets plus-huge
    python benchmarks/quantize.py --presets tiny --rounds 1     # shows that it runs

With images: AP of the bundled model in the annotated boxes, with the flip test, at each setting; and how far keypoints
move. "clipped" chooses the range of each group by the squared error; "everything" rounds patch embedding and head, too.
The bundled file has int8 kernels already, so its float32 model is one of rounded weights.

With presets: a checkpoint with random weights in the Hub's format is written to a temporary folder. A fresh process for
each setting loads it and runs one crop; its peak memory is what Linux reports (VmHWM). Then one process runs all
settings in turn.
"""

import argparse
import json
import math
import pathlib
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator

import jax.numpy as jnp
import numpy as np
from common import TINY, arguments, report, timed_rows, vitpose_config
from quantize_worker import SETTINGS, program
from tables import quantize_accuracy_table, quantize_memory_table

from vitpose_jax import PoseEstimator, VitPose, VitPoseConfig, from_pretrained
from vitpose_jax.convert.engine import plan, source_shapes
from vitpose_jax.convert.formats import HUGGINGFACE
from vitpose_jax.convert.formats.format import vitpose_shapes
from vitpose_jax.datasets import read_dataset
from vitpose_jax.datasets.dataset import Dataset
from vitpose_jax.evaluation import evaluate
from vitpose_jax.storage import int4, int8, parameters
from vitpose_jax.vitpose.modeling import abstract_vitpose
from vitpose_jax.vitpose.quantized import is_quantized, num_bytes

MODEL = "vitpose-small-open"
WORKER = pathlib.Path(__file__).with_name("quantize_worker.py")
BATCH = 4
# Images whose keypoints are compared, and the lowest score of such a keypoint.
COMPARED, LOWEST = 16, 0.3

Round = Callable[[np.ndarray], np.ndarray]


def rounded_int4(group_size: int, clip: bool = False) -> Round:
    """The weights that int4 makes of a kernel (..., in, out)."""
    return lambda weights: int4.dequantize(*int4.quantize(weights, group_size, clip=clip))


def rounded_int8(weights: np.ndarray) -> np.ndarray:
    """The weights that int8 makes of a kernel (..., in, out)."""
    return int8.dequantize(*int8.round_kernel("backbone.blocks.", weights))


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


def keypoints(estimator: PoseEstimator, dataset: Dataset) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Keypoints (n, K, 2) of the first images, their scores (n, K), and the square roots of the boxes' areas (n,)."""
    samples = [sample for sample in dataset.samples[:COMPARED] if len(sample.boxes)]
    poses = [estimator(sample.path, sample.boxes) for sample in samples]
    sides = [np.sqrt(sample.boxes[:, 2] * sample.boxes[:, 3]) for sample in samples]
    return (
        np.concatenate([each.keypoints for each in poses]),
        np.concatenate([each.scores for each in poses]),
        np.concatenate(sides),
    )


def measure_accuracy(images: pathlib.Path, annotations: pathlib.Path, limit: int | None) -> list[dict]:
    """One row for each setting: AP, AR, bytes, and the distance of keypoints from those of float32."""
    dataset, rows, reference = read_dataset("coco", annotations, images), [], None
    for name, model in models():
        estimator = PoseEstimator(model, border="opencv")
        points, scores, sides = keypoints(estimator, dataset)
        reference = reference or (points, scores)
        distances = np.linalg.norm(points - reference[0], axis=-1) / sides[:, None]
        distances = distances[reference[1] >= LOWEST]
        metrics = evaluate(estimator, dataset, flip_test=True, limit=limit).metrics
        moved = {"median": float(np.median(distances)), "high": float(np.quantile(distances, 0.95))}
        rows.append({"setting": name, "AP": metrics["AP"], "AR": metrics["AR"], "moved": moved})
        print(rows[-1], file=sys.stderr, flush=True)
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


def parser() -> argparse.ArgumentParser:
    """The command line."""
    options = arguments(__doc__ or "", presets=[], dtypes=["bfloat16"], rounds=5)
    options.add_argument("--settings", nargs="+", default=list(SETTINGS)[1:], choices=list(SETTINGS))
    options.add_argument("--images", type=pathlib.Path, help="images of COCO")
    options.add_argument("--annotations", type=pathlib.Path, help="their person_keypoints file")
    options.add_argument("--limit", type=int, help="only the first images")
    return options


def main() -> None:
    """Measure, print, write."""
    options = parser().parse_args()
    if options.images is not None:
        rows = measure_accuracy(options.images, options.annotations, options.limit)
        options.images, options.annotations = options.images.name, options.annotations.name
        report(quantize_accuracy_table(rows), rows, options, model=MODEL, bytes=num_bytes(from_pretrained(MODEL)))
        return
    rows = [
        row
        for preset in options.presets
        for dtype in options.dtypes
        for row in measure_memory(preset, dtype, options.settings, options.rounds)
    ]
    report(quantize_memory_table(rows), rows, options)


if __name__ == "__main__":
    main()
