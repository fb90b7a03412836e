"""Speed of every stage, beside PyTorch and beside what the machine can do, in one run.

    python benchmarks/speed.py                                     # the defaults below
    python benchmarks/speed.py --presets base plus-base --people 1 8 32 --dtypes bfloat16 --output gpu
    python benchmarks/speed.py --runtimes onnxruntime openvino --stages forward path --dtypes float32 bfloat16
    python benchmarks/speed.py --presets tiny --rounds 1 --peers    # shows that it runs

Stages:

    forward    crops to heatmaps
    crop       image and boxes to normalised crops
    decode     heatmaps to keypoints
    path       image and boxes to keypoints
    experts    the backbone of a ViTPose++: one expert, that expert in a plain model, mixed experts
    load       time to load the model; to write and to convert it
    memory     what a forward pass needs besides parameters, crops and heatmaps
    dispatch   the whole path with a network so small that only the overhead counts

All programs get the same random weights, written as a folder that transformers loads. Calls are warm and interleaved;
a table shows medians, the range without the fastest and the slowest tenth, and the first call, which compiles. A large
matrix product and a large copy are timed in the same rounds. "of limit" is the fraction of the product's rate (forward
and path: only the multiplications that the network needs count) or of the copy's rate (crop: values written; decode:
values read). With --runtimes, the stages forward and path also time vitpose-jax with its network in these runtimes, in
the same rounds; a dtype that a runtime does not know is left out.

Runs on CPU, GPU and TPU, also from a plain copy of the repository: `PYTHONPATH=. python benchmarks/speed.py`.
"""

import argparse
import math
import tempfile
import time
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
from common import COPY_BYTES, OURS, PRODUCT_SIZE, arguments, copy, product, report, timed_rows, vitpose_config
from flax import nnx
from peers import Peer, functions, load
from speed_tables import experts_table, stages_table

from vitpose_jax import PoseEstimator, VitPose, VitPoseConfig, checkpoint, convert, crop_boxes, decode_heatmaps
from vitpose_jax.serving.program import Program
from vitpose_jax.vitpose.prepared import prepare_for_cpu

PRESETS = ["base"]
PEOPLE = [1, 8]
DTYPES = ["float32"]
FLIP = [False]
ROUNDS = 9
PEERS = ["eager", "compile"]
STAGES = ["forward", "crop", "decode", "path"]
MORE_STAGES = ["experts", "dispatch", "load", "memory"]
IMAGE = (480, 640)


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
        # A transposed convolution multiplies each input pixel with all 4 x 4 taps.
        decoder = tokens * 16 * dim * 256 + 4 * tokens * 16 * 256 * 256 + rows * columns * 256 * keypoints
    return patches + config.num_layers * block + decoder


def scene(people: int) -> tuple[np.ndarray, np.ndarray]:
    """A smooth image, and boxes in it."""
    rng = np.random.default_rng(0)
    small = rng.integers(0, 256, (12, 16, 3), np.uint8)
    image = np.asarray(jax.image.resize(small.astype(np.float32), (*IMAGE, 3), "linear")).astype(np.uint8)
    corner = rng.uniform(0, 300, (people, 2))
    return image, np.concatenate([corner, rng.uniform(60, 300, (people, 2))], axis=1).astype(np.float32)


def forward(
    ours: PoseEstimator, peers: dict[str, Peer], people: int, others: dict[str, PoseEstimator] | None = None
) -> dict[str, Callable]:
    """Crops to heatmaps; `others` are ours with their network in another runtime."""
    size, model = ours.config.image_size, ours.model
    crops = jax.random.normal(jax.random.key(0), (people, *size, 3), model.backbone.dtype)
    run = Program(model, lambda model, crops: model(crops, 0))

    def make(peer):
        tensor = peer.to_torch(crops)
        return lambda: peer.forward(tensor)

    def make_other(estimator):
        network, values = estimator.model.network(0).exported, np.asarray(crops, np.float32)
        return lambda: network(values)

    programs = {name: make_other(estimator) for name, estimator in (others or {}).items()}
    return {OURS: lambda: run(crops)} | programs | functions(peers, make)


def crop(ours: PoseEstimator, peers: dict[str, Peer], people: int) -> dict[str, Callable]:
    """Image and boxes to normalised crops."""
    image, boxes = scene(people)
    run = jax.jit(lambda image, boxes: crop_boxes(image, boxes, ours.config.image_size))
    return {OURS: lambda: run(image, boxes)} | functions(_first(peers), lambda peer: lambda: peer.crop(image, boxes))


def decode(ours: PoseEstimator, peers: dict[str, Peer], people: int) -> dict[str, Callable]:
    """Heatmaps to keypoints, as transformers decodes."""
    _, boxes = scene(people)
    shape = (people, *ours.config.heatmap_size, ours.config.skeletons[0].num_keypoints)
    heatmaps = jax.random.normal(jax.random.key(0), shape)
    run = jax.jit(lambda heatmaps, boxes: decode_heatmaps(heatmaps, boxes, decode="transformers"))

    def make(peer):
        tensor = peer.to_torch(heatmaps).float().cpu()
        return lambda: peer.decode(tensor, boxes)

    return {OURS: lambda: run(heatmaps, boxes)} | functions(_first(peers), make)


def path(
    ours: PoseEstimator,
    peers: dict[str, Peer],
    people: int,
    flip: bool = False,
    others: dict[str, PoseEstimator] | None = None,
) -> dict[str, Callable]:
    """Image and boxes to keypoints; `others` are ours with their network in another runtime."""
    image, boxes = scene(people)
    pairs = list(ours.config.skeletons[0].flip_pairs) if flip else None

    def make(estimator):
        return lambda: estimator(image, boxes, decode="transformers", flip_test=flip)

    programs = {name: make(estimator) for name, estimator in {OURS: ours, **(others or {})}.items()}
    return programs | functions(peers, lambda peer: lambda: peer.path(image, boxes, pairs))


def experts(ours: PoseEstimator, peers: dict[str, Peer], people: int) -> dict[str, Callable]:
    """The backbone with one expert for all crops; that expert folded into a plain model; all experts in one batch."""
    model = ours.model
    plain, mixed = model.specialize(), jnp.arange(people, dtype=jnp.int32) % model.config.num_experts
    crops = jax.random.normal(jax.random.key(0), (people, *ours.config.image_size, 3), model.backbone.dtype)
    one, folded = (Program(each, lambda model, crops: model.backbone(crops, 0).tokens) for each in (model, plain))
    features = Program(model, lambda model, crops, index: model.backbone(crops, index).tokens)
    return {
        OURS: lambda: one(crops),
        "plain": lambda: folded(crops),
        "mixed experts": lambda: features(crops, mixed),
    }


def memory(ours: PoseEstimator, peers: dict[str, Peer], people: int) -> dict[str, float]:
    """Megabytes that a forward pass needs besides parameters, crops and heatmaps; peers only on CUDA."""
    size, model = ours.config.image_size, ours.model
    model = prepare_for_cpu(model) if jax.default_backend() == "cpu" else model
    crops = jnp.zeros((people, *size, 3), model.backbone.dtype)
    compiled = jax.jit(lambda model, crops: model(crops, 0)).lower(model, crops).compile()
    peaks = {OURS: compiled.memory_analysis().temp_size_in_bytes}
    peaks |= {name: peer.peak_bytes(peer.to_torch(crops)) for name, peer in peers.items() if peer.device == "cuda"}
    return {name: size / 1e6 for name, size in peaks.items()}


def _first(peers: dict[str, Peer]) -> dict[str, Peer]:
    """One peer: crops and decoding are the same code for all of them."""
    return dict(list(peers.items())[:1])


def measure(options: argparse.Namespace) -> list[dict]:
    """One row for each stage, model, dtype, number of people and program."""
    rows = []
    for preset in options.presets:
        config = vitpose_config(preset, layer_norm_eps=1e-12)
        config = config.replace(skeletons=config.skeletons[:1])
        for dtype in options.dtypes:
            with tempfile.TemporaryDirectory() as folder:
                ours, peers, loading = prepare(config, folder, dtype, options.peers)
                others = load_others(folder, dtype, options.runtimes)
            label = {"preset": preset, "dtype": dtype, "people": 0, "flip": False}
            if "load" in options.stages:
                rows += [{**label, "stage": "load", "program": name, **row} for name, row in loading.items()]
            for people in options.people:
                for flip in options.flip:
                    label = {"preset": preset, "dtype": dtype, "people": people, "flip": flip}
                    rows += measure_stages(options, label, ours, peers, others)
            if "path" in options.stages:
                label = {**label, "people": max(options.people), "stage": "programs", "program": OURS}
                rows.append(label | {"programs": ours.num_compiled})
    if "dispatch" in options.stages:
        rows += measure_dispatch(options)
    return rows


def prepare(config: VitPoseConfig, folder: str, dtype: str, names: list[str]) -> tuple[PoseEstimator, dict, dict]:
    """Our estimator, the peers, and the time to load each (the file is in the page cache)."""
    convert.write(VitPose(config, rngs=nnx.Rngs(0)), folder, to="huggingface", overwrite=True)
    peers = load(folder, dtype, names)
    start = time.perf_counter()
    ours = PoseEstimator.from_pretrained(folder, dtype=jnp.dtype(dtype))
    jax.block_until_ready(nnx.state(ours.model))
    seconds = {OURS: time.perf_counter() - start} | {name: peer.load_seconds for name, peer in peers.items()}
    start = time.perf_counter()
    checkpoint.save(ours.model, f"{folder}/native")
    seconds["write native"] = time.perf_counter() - start
    start = time.perf_counter()
    convert.convert(folder, f"{folder}/converted")
    seconds["convert a Hub folder to native"] = time.perf_counter() - start
    return ours, peers, {name: {"ms": 1e3 * value} for name, value in seconds.items()}


def load_others(folder: str, dtype: str, runtimes: list[str]) -> dict[str, PoseEstimator]:
    """Our estimator with its network in each of these runtimes that knows the dtype, by the program's name."""
    return {
        f"{OURS}-{runtime}": PoseEstimator.from_pretrained(folder, runtime=runtime, dtype=dtype)
        for runtime in runtimes
        if dtype == "float32" or runtime == "openvino"
    }


def measure_stages(
    options: argparse.Namespace, label: dict, ours: PoseEstimator, peers: dict, others: dict
) -> list[dict]:
    """The rows of all stages for one model, dtype, number of people and flip test."""
    rows = []
    makers = {"crop": crop, "decode": decode, "experts": experts}
    for stage in options.stages:
        if stage == "memory" and not label["flip"]:
            peaks = memory(ours, peers, label["people"])
            rows += [{**label, "stage": stage, "program": name, "megabytes": size} for name, size in peaks.items()]
            continue
        if stage == "path":
            programs = path(ours, peers, label["people"], label["flip"], others)
        elif stage == "forward" and not label["flip"]:
            programs = forward(ours, peers, label["people"], others)
        elif stage in makers and not label["flip"] and (stage != "experts" or ours.config.experts):
            programs = makers[stage](ours, peers, label["people"])
        else:
            continue
        rows += measure_programs({**label, "stage": stage}, programs, ours.config, options.rounds)
        print(f"{label} {stage}", flush=True)
    return rows


def measure_dispatch(options: argparse.Namespace) -> list[dict]:
    """The whole path with a network so small that only the overhead counts."""
    config = vitpose_config("tiny", layer_norm_eps=1e-12)
    with tempfile.TemporaryDirectory() as folder:
        ours, peers, _ = prepare(config, folder, "float32", options.peers)
    label = {"preset": "1 block, 16 wide", "dtype": "float32", "people": 1, "flip": False, "stage": "dispatch"}
    return measure_programs(label, path(ours, peers, 1), config, 10 * options.rounds)


def measure_programs(label: dict, programs: dict[str, Callable], config: VitPoseConfig, rounds: int) -> list[dict]:
    """Rows of milliseconds, relative to ours and to the machine's limit."""
    stage = label["stage"]
    people = label["people"] * (2 if label["flip"] else 1)
    bound = {"forward": "product", "path": "product", "crop": "copy", "decode": "copy"}.get(stage)
    limit = {"product": lambda: product(label["dtype"]), "copy": copy}[bound]() if bound else None
    rows, limit_seconds = timed_rows(label, programs, rounds=rounds, limit=limit)
    if bound == "product":
        work, ceiling = 2 * multiplications(config) * people, 2 * PRODUCT_SIZE**3 / limit_seconds
    elif bound == "copy":
        crop_shape, heatmap_shape = (*config.image_size, 3), (*config.heatmap_size, config.skeletons[0].num_keypoints)
        shape = crop_shape if stage == "crop" else heatmap_shape
        work, ceiling = 4 * math.prod(shape) * people, 2 * COPY_BYTES / limit_seconds
    else:
        return rows
    return [{**row, "ceiling": ceiling, "of_ceiling": work / (row["ms"] / 1e3) / ceiling} for row in rows]


def parser() -> argparse.ArgumentParser:
    """The options."""
    options = arguments(__doc__, presets=PRESETS, people=PEOPLE, dtypes=DTYPES, peers=PEERS, rounds=ROUNDS)
    options.add_argument("--flip", nargs="+", type=lambda text: text == "yes", default=FLIP, metavar="yes|no")
    options.add_argument(
        "--runtimes", nargs="*", default=[], choices=["onnxruntime", "openvino"], help="run our network in these, too"
    )
    options.add_argument("--stages", nargs="*", default=STAGES, choices=[*STAGES, *MORE_STAGES])
    return options


def main() -> None:
    """Measure, and report the table of the rows."""
    options = parser().parse_args()
    rows = measure(options)
    table = experts_table if options.stages == ["experts"] else stages_table
    report(table(rows), rows, options)


if __name__ == "__main__":
    main()
