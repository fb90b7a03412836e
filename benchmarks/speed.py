"""Speed of every stage, beside PyTorch and beside what the machine can do, in one run.

    python benchmarks/speed.py                                     # the defaults below
    python benchmarks/speed.py --presets base plus-base --people 1 8 32 --dtypes bfloat16 --output gpu

Everything is warm and interleaved (A B A B ...): a noisy machine slows all alike. Medians, with the fastest and
slowest tenth, and the time of the first call, which compiles. The same weights go to all: random ones, written as a
folder that transformers loads. A large matrix product and a large copy are timed in the same rounds; "of ceiling" is
the share that is reached of the product's rate (forward, path: multiplications the network needs, and no others) or
of the copy's (crop: values written; decode: values read).

Runs on CPU, GPU and TPU, from a plain copy of the repository as well: `PYTHONPATH=. python benchmarks/speed.py`.
"""

import argparse
import statistics
import tempfile
import time
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
from common import COPY_BYTES, PRODUCT_SIZE, arguments, copy, markdown, measure_and_report, product, spread, take_turns
from flax import nnx
from peers import Peer, functions, load

from vitpose_jax import PoseEstimator, VitPose, VitPoseConfig, checkpoint, convert
from vitpose_jax.pipeline.postprocess import decode_heatmaps
from vitpose_jax.pipeline.preprocess import crop_boxes

PRESETS = ["base"]
PEOPLE = [1, 8]
DTYPES = ["float32"]
FLIP = [False]
ROUNDS = 9
PEERS = ["eager", "compile"]
STAGES = ["forward", "crop", "decode", "path"]
MORE_STAGES = ["moe", "dispatch", "load", "memory"]
IMAGE = (480, 640)
OURS = "vitpose-jax"


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


def scene(people: int) -> tuple[np.ndarray, np.ndarray]:
    """A smooth image, and boxes in it."""
    rng = np.random.default_rng(0)
    small = rng.integers(0, 256, (12, 16, 3), np.uint8)
    image = np.asarray(jax.image.resize(small.astype(np.float32), (*IMAGE, 3), "linear")).astype(np.uint8)
    corner = rng.uniform(0, 300, (people, 2))
    return image, np.concatenate([corner, rng.uniform(60, 300, (people, 2))], axis=1).astype(np.float32)


def forward(ours: PoseEstimator, peers: dict[str, Peer], people: int) -> dict[str, Callable]:
    """Crops to heatmaps."""
    size, model = ours.config.image_size, ours.model
    crops = jax.random.normal(jax.random.key(0), (people, *size, 3), model.backbone.dtype)
    run = jax.jit(lambda model, crops: model(crops, 0))

    def theirs(peer):
        tensor = peer.to_torch(crops)
        return lambda: peer.forward(tensor)

    return {OURS: lambda: run(model, crops)} | functions(peers, theirs)


def crop(ours: PoseEstimator, peers: dict[str, Peer], people: int) -> dict[str, Callable]:
    """Image and boxes to normalised crops."""
    image, boxes = scene(people)
    run = jax.jit(lambda image, boxes: crop_boxes(image, boxes, ours.config.image_size))
    return {OURS: lambda: run(image, boxes)} | functions(_one(peers), lambda peer: lambda: peer.crop(image, boxes))


def decode(ours: PoseEstimator, peers: dict[str, Peer], people: int) -> dict[str, Callable]:
    """Heatmaps to keypoints, as transformers decodes."""
    _, boxes = scene(people)
    shape = (people, *ours.config.heatmap_size, ours.config.skeletons[0].num_keypoints)
    heatmaps = jax.random.normal(jax.random.key(0), shape)
    run = jax.jit(lambda heatmaps, boxes: decode_heatmaps(heatmaps, boxes, decode="transformers"))

    def theirs(peer):
        tensor = peer.to_torch(heatmaps).float().cpu()
        return lambda: peer.decode(tensor, boxes)

    return {OURS: lambda: run(heatmaps, boxes)} | functions(_one(peers), theirs)


def path(ours: PoseEstimator, peers: dict[str, Peer], people: int, flip: bool = False) -> dict[str, Callable]:
    """Image and boxes to keypoints."""
    image, boxes = scene(people)
    pairs = list(ours.config.skeletons[0].flip_pairs) if flip else None
    return {OURS: lambda: ours(image, boxes, decode="transformers", flip_test=flip)} | functions(
        peers, lambda peer: lambda: peer.path(image, boxes, pairs)
    )


def moe(ours: PoseEstimator, peers: dict[str, Peer], people: int) -> dict[str, Callable]:
    """The backbone with one expert for all crops, with that expert folded into a plain model, with all mixed."""
    model = ours.model
    plain, mixed = model.specialize(), jnp.arange(people, dtype=jnp.int32) % model.config.num_experts
    crops = jax.random.normal(jax.random.key(0), (people, *ours.config.image_size, 3), model.backbone.dtype)
    features = jax.jit(lambda model, crops, index: model.backbone(crops, index).tokens)
    one = jax.jit(lambda model, crops: model.backbone(crops, 0).tokens)
    return {
        OURS: lambda: one(model, crops),
        "plain": lambda: one(plain, crops),
        "mixed experts": lambda: features(model, crops, mixed),
    }


def memory(ours: PoseEstimator, peers: dict[str, Peer], people: int) -> dict[str, float]:
    """Megabytes that a forward pass needs besides parameters, crops and heatmaps; of a peer on CUDA alone."""
    size, model = ours.config.image_size, ours.model
    crops = jnp.zeros((people, *size, 3), model.backbone.dtype)
    compiled = jax.jit(lambda model, crops: model(crops, 0)).lower(model, crops).compile()
    found = {OURS: compiled.memory_analysis().temp_size_in_bytes}
    found |= {name: peer.peak_bytes(peer.to_torch(crops)) for name, peer in peers.items() if peer.device == "cuda"}
    return {name: size / 1e6 for name, size in found.items()}


def _one(peers: dict[str, Peer]) -> dict[str, Peer]:
    """Crops and decoding are the same for all peers."""
    return dict(list(peers.items())[:1])


def measure(options: argparse.Namespace) -> list[dict]:
    """One row for each stage, model, dtype, number of people and program."""
    rows = []
    for preset in options.presets:
        config = VitPoseConfig.preset(preset, layer_norm_eps=1e-12)
        config = config.replace(skeletons=config.skeletons[:1])
        for dtype in options.dtypes:
            with tempfile.TemporaryDirectory() as folder:
                ours, peers, loading = prepare(config, folder, dtype, options.peers)
            label = {"preset": preset, "dtype": dtype, "people": 0, "flip": False}
            if "load" in options.stages:
                rows += [{**label, "stage": "load", "program": name, **row} for name, row in loading.items()]
            for people in options.people:
                for flip in options.flip:
                    label = {"preset": preset, "dtype": dtype, "people": people, "flip": flip}
                    rows += measure_stages(options, label, ours, peers)
            label = {**label, "people": max(options.people), "stage": "programs", "program": OURS}
            rows.append(label | {"programs": ours.num_compiled})
    if "dispatch" in options.stages:
        rows += measure_dispatch(options)
    return rows


def prepare(config: VitPoseConfig, folder: str, dtype: str, names: list[str]) -> tuple[PoseEstimator, dict, dict]:
    """Our estimator, the peers, and how long each took to load (the file is in the cache of the disk for all)."""
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
    seconds["convert from the Hub's layout"] = time.perf_counter() - start
    return ours, peers, {name: {"ms": 1e3 * value} for name, value in seconds.items()}


def measure_stages(options: argparse.Namespace, label: dict, ours: PoseEstimator, peers: dict) -> list[dict]:
    rows = []
    makers = {"forward": forward, "crop": crop, "decode": decode, "moe": moe}
    for stage in options.stages:
        if stage == "memory" and not label["flip"]:
            found = memory(ours, peers, label["people"])
            rows += [{**label, "stage": stage, "program": name, "megabytes": size} for name, size in found.items()]
            continue
        if stage == "path":
            variants = path(ours, peers, label["people"], label["flip"])
        elif stage in makers and not label["flip"] and (stage != "moe" or ours.config.experts):
            variants = makers[stage](ours, peers, label["people"])
        else:
            continue
        limit = copy() if stage in ("crop", "decode") else product(label["dtype"])
        first, times = take_turns({**variants, "limit": limit}, options.rounds)
        rows += summarise(first, times, {**label, "stage": stage}, ours.config)
        print(f"{label} {stage}", flush=True)
    return rows


def measure_dispatch(options: argparse.Namespace) -> list[dict]:
    """The whole path with a network so small that everything else counts."""
    config = VitPoseConfig(hidden_size=16, num_heads=2, num_layers=1, decoder="simple", layer_norm_eps=1e-12)
    with tempfile.TemporaryDirectory() as folder:
        ours, peers, _ = prepare(config, folder, "float32", options.peers)
    first, times = take_turns(path(ours, peers, 1), 10 * options.rounds)
    label = {"preset": "1 block, 16 wide", "dtype": "float32", "people": 1, "flip": False, "stage": "dispatch"}
    return summarise(first, times, label, config)


def summarise(first: dict, times: dict, label: dict, config: VitPoseConfig) -> list[dict]:
    """Rows of milliseconds; against ours, and against the machine's limit."""
    medians = {name: statistics.median(values) for name, values in times.items()}
    people = label["people"] * (2 if label["flip"] else 1)
    operations = 2 * multiplications(config) * people
    values = {"crop": 3 * np.prod(config.image_size), "decode": np.prod(config.heatmap_size)}
    values["decode"] *= config.skeletons[0].num_keypoints
    rows = []
    for name in times:
        if name == "limit":
            continue
        row = {**label, "program": name, **spread(times[name]), "first_ms": 1e3 * first[name]}
        row["ratio"] = medians[name] / medians[OURS]
        if "limit" in medians and label["stage"] in ("forward", "path"):
            row["ceiling"] = 2 * PRODUCT_SIZE**3 / medians["limit"]
            row["of_ceiling"] = operations / medians[name] / row["ceiling"]
        if "limit" in medians and label["stage"] in values:
            row["ceiling"] = 2 * COPY_BYTES / medians["limit"]
            row["of_ceiling"] = float(4 * values[label["stage"]] * people / medians[name] / row["ceiling"])
        rows.append(row)
    return rows


def table(rows: list[dict]) -> str:
    """Markdown: the steady state; then what is paid once."""
    header = ["stage", "model", "dtype", "people", "flip test", "program", "median, ms", "10 % to 90 %", "x ours"]
    steady = [
        [
            *(str(row[name]) for name in ("stage", "preset", "dtype", "people")),
            "yes" if row["flip"] else "no",
            row["program"],
            f"{row['ms']:.2f}",
            f"{row['low_ms']:.2f} to {row['high_ms']:.2f}",
            f"{row['ratio']:.2f}",
            f"{100 * row['of_ceiling']:.0f} %" if "of_ceiling" in row else "",
            f"{row['first_ms']:.0f}",
        ]
        for row in rows
        if "ratio" in row
    ]
    once = [
        [row["stage"], row["preset"], row["dtype"], row["program"], f"{row['ms']:.0f}"]
        for row in rows
        if row["stage"] == "load"
    ]
    memory = [
        [row["preset"], row["dtype"], str(row["people"]), row["program"], f"{row['megabytes']:.0f}"]
        for row in rows
        if row["stage"] == "memory"
    ]
    programs = [
        [row["preset"], row["dtype"], str(row["people"]), str(row["programs"])]
        for row in rows
        if row["stage"] == "programs"
    ]
    parts = [markdown([*header, "of ceiling", "first call, ms"], steady)]
    if once:
        parts.append(markdown(["stage", "model", "dtype", "program", "ms"], once))
    if memory:
        parts.append(markdown(["model", "dtype", "people", "program", "memory of a forward pass, MB"], memory))
    parts.append(markdown(["model", "dtype", "most people", "programs compiled by the estimator"], programs))
    return "\n\n".join(parts)


def main() -> None:
    """Parse the knobs, measure, and write JSON and Markdown into results/."""
    parser = arguments(__doc__, dtypes=DTYPES, peers=PEERS, rounds=ROUNDS)
    parser.add_argument("--presets", nargs="+", default=PRESETS)
    parser.add_argument("--people", nargs="+", type=int, default=PEOPLE)
    parser.add_argument("--flip", nargs="+", type=lambda text: text == "yes", default=FLIP, metavar="yes|no")
    parser.add_argument("--stages", nargs="*", default=STAGES, choices=[*STAGES, *MORE_STAGES])
    measure_and_report(parser, measure, table)


if __name__ == "__main__":
    main()
