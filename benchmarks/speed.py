"""Speed of every stage, beside PyTorch and beside what the machine can do, in one run.

    python benchmarks/speed.py                                     # the defaults below
    python benchmarks/speed.py --presets base plus-base --people 1 8 32 --dtypes bfloat16 --output gpu

Everything is warm and interleaved (A B A B ...): a noisy machine slows all alike. Medians, with the fastest and
slowest tenth. The same weights go to all: random ones, written as a folder that transformers loads. A large matrix
product is timed in the same rounds; "of ceiling" is the share of its rate that a forward pass reaches, counting the
multiplications the network needs and no others.
"""

import argparse
import json
import pathlib
import platform
import statistics
import tempfile
import time
from collections.abc import Callable

import flax
import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from vitpose_jax import PoseEstimator, VitPose, VitPoseConfig, convert
from vitpose_jax.postprocess import decode_heatmaps
from vitpose_jax.preprocess import crop_boxes

PRESETS = ["base"]
PEOPLE = [1, 8]
DTYPES = ["float32"]
FLIP = [False]
ROUNDS = 9
PEERS = ["eager", "compile"]
STAGES = ["forward", "crop", "decode", "path"]
IMAGE = (480, 640)
RESULTS = pathlib.Path(__file__).parent / "results"


def multiplications(config: VitPoseConfig) -> float:
    """Multiply-adds of one forward pass of one crop, without flip test; one expert, one head."""
    tokens, dim = config.num_patches, config.hidden_size
    patches = tokens * dim * config.num_channels * config.patch_size[0] * config.patch_size[1]
    block = tokens * (4 * dim * dim + 2 * dim * config.mlp_features) + 2 * tokens * tokens * dim
    keypoints = config.skeletons[0].num_keypoints
    rows, columns = config.heatmap_size
    if config.decoder == "simple":
        decoder = rows * columns * 9 * dim * keypoints
    else:
        # A transposed convolution meets each input pixel with all its 4 x 4 taps.
        decoder = tokens * 16 * dim * 256 + 4 * tokens * 16 * 256 * 256 + rows * columns * 256 * keypoints
    return patches + config.num_layers * block + decoder


def ceiling(dtype: str) -> Callable[[], object]:
    """A matrix product large enough to fill the machine."""
    a, b = (jax.random.normal(jax.random.key(seed), (CEILING_SIZE, CEILING_SIZE), dtype) for seed in (0, 1))
    product = jax.jit(jnp.matmul)
    return lambda: product(a, b)


CEILING_SIZE = 2048 if jax.default_backend() == "cpu" else 8192


def peers(folder: str, dtype: str, names: list[str]) -> dict[str, dict[str, Callable]]:
    """For each peer its forward pass; and its processor. {} where torch or transformers is missing."""
    try:
        import torch
        import transformers
    except ImportError:
        return {}
    device = "cuda" if torch.cuda.is_available() else "cpu"
    torch_dtype = getattr(torch, dtype)
    processor_class = getattr(transformers, "VitPoseImageProcessorPil", None) or transformers.VitPoseImageProcessor
    processor = processor_class()
    found = {}
    for name in names:
        model = transformers.VitPoseForPoseEstimation.from_pretrained(
            folder, attn_implementation={"backbone_config": "sdpa"}
        )
        model = model.to(device, torch_dtype).eval()
        index = (
            {"dataset_index": torch.tensor([0], device=device)} if model.config.backbone_config.num_experts > 1 else {}
        )
        mode = "max-autotune" if device == "cuda" else None
        network = torch.compile(model, mode=mode) if name == "compile" else model

        def forward(crops, network=network, index=index):
            with torch.inference_mode():
                heatmaps = network(crops, **index).heatmaps
            if device == "cuda":
                torch.cuda.synchronize()
            return heatmaps

        def to_torch(crops):
            return torch.from_numpy(np.asarray(crops, np.float32).transpose(0, 3, 1, 2).copy()).to(device, torch_dtype)

        def crop(image, boxes):
            return processor(image, boxes=[boxes.tolist()], return_tensors="pt")["pixel_values"]

        def decode(heatmaps, boxes):
            output = transformers.models.vitpose.modeling_vitpose.VitPoseEstimatorOutput(heatmaps=heatmaps)
            return processor.post_process_pose_estimation(output, boxes=[boxes.tolist()])

        def path(image, boxes, forward=forward):
            heatmaps = forward(crop(image, boxes).to(device, torch_dtype))
            return decode(heatmaps.float(), boxes)

        found[name] = {"forward": forward, "to_torch": to_torch, "crop": crop, "decode": decode, "path": path}
    return found


def rounds(variants: dict[str, Callable[[], object]], count: int) -> dict[str, list[float]]:
    """Times of each, in turn, after two calls of each to warm up."""
    for function in (*variants.values(), *variants.values()):
        jax.block_until_ready(function())
    times: dict[str, list[float]] = {name: [] for name in variants}
    for _ in range(count):
        for name, function in variants.items():
            start = time.perf_counter()
            jax.block_until_ready(function())
            times[name].append(time.perf_counter() - start)
    return times


def stage_variants(stage: str, ours: PoseEstimator, others: dict, people: int, flip: bool) -> dict[str, Callable]:
    """Ours and the peers' functions for one stage, without arguments."""
    rng = np.random.default_rng(0)
    small = rng.integers(0, 256, (12, 16, 3), np.uint8)
    image = np.asarray(jax.image.resize(small.astype(np.float32), (*IMAGE, 3), "linear")).astype(np.uint8)
    corner = rng.uniform(0, 300, (people, 2))
    boxes = np.concatenate([corner, rng.uniform(60, 300, (people, 2))], axis=1).astype(np.float32)
    model, size = ours.model, ours.config.image_size
    if stage == "path":
        variants = {"vitpose-jax": lambda: ours(image, boxes, decode="transformers", flip_test=flip)}
        return variants | ({} if flip else {n: lambda p=p: p["path"](image, boxes) for n, p in others.items()})
    if stage == "crop":
        crop = jax.jit(lambda image, boxes: crop_boxes(image, boxes, size))
        return {"vitpose-jax": lambda: crop(image, boxes)} | {
            name: lambda peer=peer: peer["crop"](image, boxes) for name, peer in list(others.items())[:1]
        }
    crops = jnp.asarray(rng.normal(size=(people, *size, 3)), model.backbone.dtype)
    forward = jax.jit(lambda model, crops: model(crops, 0))
    if stage == "moe":
        # One expert for all against the same expert folded into a plain model, and against all of them mixed.
        plain, mixed = model.specialize(), jnp.arange(people, dtype=jnp.int32) % model.config.num_experts
        features = jax.jit(lambda model, crops, index: model.backbone(crops, index).tokens)
        one = jax.jit(lambda model, crops: model.backbone(crops, 0).tokens)
        return {
            "vitpose-jax": lambda: one(model, crops),
            "plain": lambda: one(plain, crops),
            "mixed experts": lambda: features(model, crops, mixed),
        }
    if stage == "forward":
        theirs = {name: (peer["forward"], peer["to_torch"](crops)) for name, peer in others.items()}
        return {"vitpose-jax": lambda: forward(model, crops)} | {
            name: lambda f=f, x=x: f(x) for name, (f, x) in theirs.items()
        }
    heatmaps = forward(model, crops)
    decode = jax.jit(lambda heatmaps, boxes: decode_heatmaps(heatmaps, boxes, decode="transformers"))
    variants = {"vitpose-jax": lambda: decode(heatmaps, boxes)}
    for name, peer in list(others.items())[:1]:
        import torch

        tensor = torch.from_numpy(np.asarray(heatmaps, np.float32).transpose(0, 3, 1, 2).copy())
        variants[name] = lambda peer=peer, tensor=tensor: peer["decode"](tensor, boxes)
    return variants


def measure(options: argparse.Namespace) -> list[dict]:
    """One row for each stage, model, dtype, number of people and program."""
    rows = []
    for preset in options.presets:
        config = VitPoseConfig.preset(preset, layer_norm_eps=1e-12)
        config = config.replace(skeletons=config.skeletons[:1])
        with tempfile.TemporaryDirectory() as folder:
            model = VitPose(config, rngs=nnx.Rngs(0))
            convert.write(model, folder, to="huggingface", overwrite=True)
            for dtype in options.dtypes:
                others = peers(folder, dtype, options.peers)
                ours = PoseEstimator.from_pretrained(folder, dtype=jnp.dtype(dtype))
                for people in options.people:
                    for flip in options.flip:
                        stages = ["path"] if flip else [*options.stages, *(["moe"] if config.experts else [])]
                        for stage in stages:
                            variants = stage_variants(stage, ours, others, people, flip)
                            if stage == "forward":
                                variants["product"] = ceiling(dtype)
                            label = {"stage": stage, "preset": preset, "dtype": dtype, "people": people, "flip": flip}
                            rows += summarise(rounds(variants, options.rounds), label, config)
                            print(f"{label}", flush=True)
    return rows


def summarise(times: dict[str, list[float]], label: dict, config: VitPoseConfig) -> list[dict]:
    """Rows of milliseconds; against ours, and against the ceiling where there is one."""
    medians = {name: statistics.median(values) for name, values in times.items()}
    rate = 2 * CEILING_SIZE**3 / medians["product"] if "product" in medians else None
    rows = []
    for name, values in times.items():
        if name == "product":
            continue
        low, high = np.quantile(values, [0.1, 0.9])
        row = {**label, "program": name, "ms": 1e3 * medians[name], "low_ms": 1e3 * low, "high_ms": 1e3 * high}
        row["ratio"] = medians[name] / medians["vitpose-jax"]
        if rate is not None:
            row["of_ceiling"] = 2 * multiplications(config) * label["people"] / medians[name] / rate
            row["ceiling_gflops"] = rate / 1e9
        rows.append(row)
    return rows


def table(rows: list[dict]) -> str:
    """Markdown."""
    lines = [
        "| stage | model | dtype | people | flip test | program | median, ms | 10 % to 90 % | x ours | of ceiling |",
        "|---|---|---|---|---|---|---|---|---|---|",
    ]
    for row in rows:
        share = f"{100 * row['of_ceiling']:.0f} %" if "of_ceiling" in row else ""
        lines.append(
            f"| {row['stage']} | {row['preset']} | {row['dtype']} | {row['people']} | {'yes' if row['flip'] else 'no'} "
            f"| {row['program']} | {row['ms']:.2f} | {row['low_ms']:.2f} to {row['high_ms']:.2f} "
            f"| {row['ratio']:.2f} | {share} |"
        )
    return "\n".join(lines)


def machine() -> dict[str, str]:
    """What the figures are for."""
    found = {"device": jax.devices()[0].device_kind, "jax": jax.__version__, "flax": flax.__version__}
    cpuinfo = pathlib.Path("/proc/cpuinfo")
    if cpuinfo.exists():
        names = [
            line.split(":")[1].strip() for line in cpuinfo.read_text().splitlines() if line.startswith("model name")
        ]
        found["processor"] = f"{len(names)} x {names[0]}" if names else platform.processor()
    for name in ("torch", "transformers"):
        try:
            found[name] = __import__(name).__version__
        except ImportError:
            found[name] = "missing"
    return found | {"python": platform.python_version()}


def main() -> None:
    """Parse the knobs, measure, and write JSON and Markdown into results/."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--presets", nargs="+", default=PRESETS)
    parser.add_argument("--people", nargs="+", type=int, default=PEOPLE)
    parser.add_argument("--dtypes", nargs="+", default=DTYPES)
    parser.add_argument("--flip", nargs="+", type=lambda text: text == "yes", default=FLIP, metavar="yes|no")
    parser.add_argument("--stages", nargs="*", default=STAGES)
    parser.add_argument("--peers", nargs="*", default=PEERS)
    parser.add_argument("--rounds", type=int, default=ROUNDS)
    parser.add_argument("--output", help="name of the files in results/; none are written without it")
    options = parser.parse_args()
    rows = measure(options)
    document = {"machine": machine(), "options": vars(options), "rows": rows}
    text = "\n".join(f"{name}: {value}  " for name, value in document["machine"].items()) + "\n\n" + table(rows) + "\n"
    print(text)
    if options.output:
        RESULTS.mkdir(exist_ok=True)
        (RESULTS / f"{options.output}.json").write_text(json.dumps(document, indent=1) + "\n")
        (RESULTS / f"{options.output}.md").write_text(text)


if __name__ == "__main__":
    main()
