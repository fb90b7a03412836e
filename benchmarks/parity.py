"""How close the models are to those of transformers, what loading one costs, for every published architecture.

    python benchmarks/parity.py                           # all of them; writes results/parity.{md,json}
    python benchmarks/parity.py --models base,plus-small  # some of them; prints alone

For each architecture, transformers writes a model with random weights, every parameter and buffer of it, to a
temporary folder; one process runs it with torch, a second one loads the folder and compares. They never hold a
model at the same time. Exits with 1 where heatmaps or keypoints are further off than the tests allow.

Two crops of random numbers are compared heatmap by heatmap. Keypoints are compared from a photograph (the sample
data's, see VITPOSE_DATA; a smooth random image where there is none) and boxes, by the "transformers" decoding.
The heatmaps of random weights are noise, and where noise is highest says little; so the decoder's last
convolution is fitted, by least squares, to a peak in each heatmap of the photograph. A keypoint is compared where
the reference has a unique peak: its highest pixel leads every other one by LEAD, as a share of the largest of all
heatmaps, and its refined point is less than a pixel away from there.
"""

import argparse
import datetime
import importlib.metadata
import json
import os
import pathlib
import platform
import resource
import subprocess
import sys
import tempfile
import time

ROOT = pathlib.Path(__file__).parents[1]
RESULTS = ROOT / "benchmarks" / "results"

COMMAND = "python benchmarks/parity.py"
SEED = 0
RANDOM_CROPS = 2
PHOTOGRAPH = "coco_val/images/000000000139.jpg"
BOXES = [[412.8, 157.61, 53.05, 138.01], [384.43, 172.21, 15.12, 35.74], [0.0, 0.0, 640.0, 426.0]]
LEAD = 0.01
PEAK_WIDTH = 2.0
# As in tests/tolerances.py.
ALLOWED = {"heatmaps": 1e-4, "keypoints, same crops": 1e-2, "keypoints, whole pipeline": 1e-2}

SMALL = {"hidden_size": 384, "num_hidden_layers": 12, "num_attention_heads": 12}
BASE = {"hidden_size": 768, "num_hidden_layers": 12, "num_attention_heads": 12}
LARGE = {"hidden_size": 1024, "num_hidden_layers": 24, "num_attention_heads": 16}
HUGE = {"hidden_size": 1280, "num_hidden_layers": 32, "num_attention_heads": 16}
# The largest last.
MODELS = {
    "small": SMALL,
    "base-simple": {**BASE, "simple": True},
    "base": BASE,
    "base-coco-aic-mpii": BASE,
    "plus-small": {**SMALL, "num_experts": 6, "part_features": 96},
    "plus-base": {**BASE, "num_experts": 6, "part_features": 192},
    "large": LARGE,
    "plus-large": {**LARGE, "num_experts": 6, "part_features": 256},
    "huge": HUGE,
    "plus-huge": {**HUGE, "num_experts": 6, "part_features": 320},
}
COLUMNS = {
    "model": "{}",
    "parameters": "{:.2f} M",
    "file": "{:.0f} MB",
    "load": "{:.1f} s",
    "peak memory": "{:.0f} MB",
    "heatmaps": "{:.1e}",
    "share of largest": "{:.1e}",
    "keypoints, same crops": "{:.1e} px",
    "keypoints, whole pipeline": "{:.1e} px",
    "within 0.01 px": "{}",
}
LEGEND = """\
- file: size of the weights, float32. load: `from_pretrained` of the folder transformers wrote, conversion included,
  with the file in the page cache. peak memory: what that adds to the resident memory of a process that has
  imported everything; pages of the file that are mapped while it is read count as well.
- heatmaps: largest absolute difference over {crops} crops of random numbers; share of largest: the same over the
  largest heatmap value.
- keypoints: largest difference in pixels of the image, over {boxes} boxes. same crops: the reference's crops through
  both networks and decoders. whole pipeline: from image and boxes; here the crops differ in one value of some
  thousands by one grey level, because the two round differently, and the ragged peaks of random weights magnify
  it. Both are of the keypoints that have a unique peak in the reference (see benchmarks/parity.py); within 0.01 px:
  how many of those, out of how many, are that close through the whole pipeline."""


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", default=",".join(MODELS), help="names, separated by commas")
    parser.add_argument("--worker", choices=["reference", "ours"], help=argparse.SUPPRESS)
    parser.add_argument("--folder", type=pathlib.Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    names = options.models.split(",")
    unknown = [name for name in names if name not in MODELS]
    if unknown:
        parser.error(f"--models: expected some of {', '.join(MODELS)}, got {', '.join(unknown)}")
    if options.worker:
        {"reference": run_reference, "ours": run_ours}[options.worker](names[0], options.folder)
        return 0

    rows = [measure(name) for name in names]
    report = {
        "command": COMMAND,
        "machine": machine(),
        "versions": versions(),
        "date": f"{datetime.date.today()}",
        "rows": rows,
    }
    text = markdown(report)
    print(text)
    if names == list(MODELS):
        RESULTS.mkdir(exist_ok=True)
        write(RESULTS / "parity.json", json.dumps(report, indent=2) + "\n")
        write(RESULTS / "parity.md", text)
    off = [f"{row['model']} ({column})" for row in rows for column in ALLOWED if not row[column] <= ALLOWED[column]]
    print(f"further off than the tests allow: {', '.join(off)}" if off else "all within the tolerances of the tests")
    return 1 if off else 0


def measure(name: str) -> dict:
    """One row of the table, by two processes, one after the other."""
    with tempfile.TemporaryDirectory() as folder:
        for worker in ("reference", "ours"):
            print(f"{name}: {worker}", file=sys.stderr, flush=True)
            command = [sys.executable, __file__, "--worker", worker, "--models", name, "--folder", folder]
            subprocess.run(command, check=True, stdout=sys.stderr)
        return json.loads(pathlib.Path(folder, "row.json").read_text())


def run_reference(name: str, folder: pathlib.Path) -> None:
    """Write a random model; its heatmaps of random crops and of the photograph; and its keypoints."""
    import numpy as np
    import torch
    import transformers

    from vitpose_jax.convert.formats.huggingface import COCO_LABELS
    from vitpose_jax.skeletons import COCO

    transformers.utils.logging.disable_progress_bar()
    fields = dict(MODELS[name])
    simple = fields.pop("simple", False)
    config = transformers.VitPoseConfig(
        backbone_config=transformers.VitPoseBackboneConfig(**fields, out_indices=[fields["num_hidden_layers"]]),
        use_simple_decoder=simple,
        id2label=dict(enumerate(COCO_LABELS)),
        label2id={label: index for index, label in enumerate(COCO_LABELS)},
        edges=COCO.edges,
    )
    with torch.device("meta"):
        model = transformers.VitPoseForPoseEstimation(config)
    model.to_empty(device="cpu").eval()
    randomize(model, SEED + list(MODELS).index(name))
    processor = transformers.VitPoseImageProcessorPil()
    image = photograph()
    crops = processor(image, boxes=[BOXES], return_tensors="pt")["pixel_values"].float()
    make_peaks(model, crops)
    model.save_pretrained(folder)
    processor.save_pretrained(folder)

    noise = torch.randn((RANDOM_CROPS, *crops.shape[1:]), generator=torch.Generator().manual_seed(SEED))

    output = run(model, crops)
    poses = processor.post_process_pose_estimation(output, boxes=[BOXES])[0]
    np.savez(
        folder / "reference.npz",
        noise=noise.permute(0, 2, 3, 1),
        noise_heatmaps=run(model, noise).heatmaps.permute(0, 2, 3, 1),
        image=np.asarray(image),
        crops=crops.permute(0, 2, 3, 1),
        heatmaps=output.heatmaps.permute(0, 2, 3, 1),
        keypoints=np.stack([pose["keypoints"] for pose in poses]),
    )


def randomize(model, seed: int) -> None:
    """Random numbers in every parameter and buffer, such that activations stay of the order of 1."""
    import torch

    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, tensor in model.state_dict().items():
            if name.endswith("num_batches_tracked"):
                tensor.zero_()
            elif name.endswith("running_var") or (tensor.ndim == 1 and name.endswith("weight")):
                tensor.uniform_(0.5, 1.5, generator=generator)
            elif tensor.ndim == 1 or name.endswith("position_embeddings"):
                tensor.normal_(0, 0.2, generator=generator)
            else:
                # Every output of a transposed convolution, (in, out, 4, 4), meets a quarter of the kernel.
                fan_in = tensor.shape[0] * 4 if ".deconv" in name else tensor[0].numel()
                tensor.normal_(0, fan_in**-0.5, generator=generator)


def run(model, crops):
    """What the reference computes; its first expert where it has several."""
    import torch

    with torch.no_grad():
        return model(crops, dataset_index=torch.zeros(len(crops), dtype=torch.long))


def make_peaks(model, crops) -> None:
    """Fit the last convolution, by least squares, to a Gaussian at a random place of each heatmap of the crops.

    The fit is poor, but its highest pixels are peaks; they are scaled so that the highest of all is 1.
    """
    import torch

    conv, inputs = model.head.conv, []
    hook = conv.register_forward_pre_hook(lambda _, arguments: inputs.append(arguments[0]))
    n, channels, height, width = run(model, crops).heatmaps.shape
    hook.remove()
    x, y = torch.rand((2, n, channels, 1, 1), generator=torch.Generator().manual_seed(SEED))
    x, y = 4 + x * (width - 9), 4 + y * (height - 9)
    rows, columns = torch.meshgrid(torch.arange(height), torch.arange(width), indexing="ij")
    targets = torch.exp(-((columns - x) ** 2 + (rows - y) ** 2) / (2 * PEAK_WIDTH**2)).flatten(2)
    windows = torch.nn.functional.unfold(inputs[0], conv.kernel_size, padding=conv.padding)
    gram = torch.einsum("ncp,ndp->cd", windows, windows)
    gram.diagonal().add_(1e-4 * gram.trace() / len(gram))
    solution = torch.linalg.solve(gram, torch.einsum("ncp,nkp->ck", windows, targets))
    with torch.no_grad():
        conv.weight.copy_(solution.T.reshape(conv.weight.shape))
        conv.bias.zero_()
    conv.weight.data /= run(model, crops).heatmaps.max()


def run_ours(name: str, folder: pathlib.Path) -> None:
    """Load the model, measuring that, and compare with what the reference left in the folder."""
    import jax
    import jax.numpy as jnp
    import numpy as np

    from vitpose_jax import PoseEstimator, from_pretrained
    from vitpose_jax.pipeline.postprocess import decode_heatmaps
    from vitpose_jax.storage import parameters

    jax.config.update("jax_default_matmul_precision", "highest")
    jnp.zeros(1).block_until_ready()
    memory, begin = resident_peak(), time.perf_counter()
    model = from_pretrained(folder)
    leaves = parameters.flatten(model)
    jax.block_until_ready(leaves)
    load, memory = time.perf_counter() - begin, resident_peak() - memory

    theirs = np.load(folder / "reference.npz")
    run = jax.jit(lambda model, crops: model(crops))
    difference = np.abs(run(model, theirs["noise"]) - theirs["noise_heatmaps"]).max()
    largest = np.abs(theirs["noise_heatmaps"]).max()
    boxes = np.asarray(BOXES, np.float32)
    same, _ = decode_heatmaps(run(model, theirs["crops"]), boxes, decode="transformers")
    poses = PoseEstimator(model)(theirs["image"], boxes, decode="transformers")
    clear = unique_peaks(theirs["heatmaps"], theirs["keypoints"], boxes)
    same = np.abs(same - theirs["keypoints"])[clear].max(-1)
    whole = np.abs(poses.keypoints - theirs["keypoints"])[clear].max(-1)
    row = {
        "model": name,
        "parameters": sum(leaf.size for key, leaf in leaves.items() if not key.endswith((".mean", ".var"))) / 1e6,
        "file": sum(path.stat().st_size for path in folder.glob("*.safetensors")) / 1e6,
        "load": load,
        "peak memory": memory / 1e6,
        "heatmaps": float(difference),
        "share of largest": float(difference / largest),
        "keypoints, same crops": float(same.max()),
        "keypoints, whole pipeline": float(whole.max()),
        "within 0.01 px": f"{(whole < 0.01).sum()} of {len(whole)}",
    }
    (folder / "row.json").write_text(json.dumps(row))


def unique_peaks(heatmaps, keypoints, boxes):
    """(n, K): whether the highest pixel of a heatmap leads every other, and the keypoint is less than a pixel away."""
    import numpy as np

    from vitpose_jax.pipeline.postprocess import decode_heatmaps
    from vitpose_jax.pipeline.preprocess import boxes_to_center_scale

    n, height, width, channels = heatmaps.shape
    ordered = np.sort(heatmaps.reshape(n, height * width, channels), axis=1)
    leads = ordered[:, -1] - ordered[:, -2] > LEAD * ordered.max()
    highest, _ = decode_heatmaps(heatmaps, boxes, decode="argmax")
    _, scale = boxes_to_center_scale(boxes, (height, width))
    pixel = np.asarray(scale)[:, None] / (width - 1, height - 1)
    return leads & (np.abs(keypoints - highest) < pixel).all(-1)


def photograph():
    """The photograph of the sample data, or a smooth random image of its size."""
    import numpy as np
    from PIL import Image

    path = pathlib.Path(os.environ.get("VITPOSE_DATA", ROOT.parent / "shared" / "data")) / PHOTOGRAPH
    if path.is_file():
        return Image.open(path).convert("RGB")
    print("no sample data: a random image instead of the photograph", file=sys.stderr)
    coarse = np.random.default_rng(SEED).integers(0, 256, (27, 40, 3), np.uint8)
    return Image.fromarray(coarse).resize((640, 426), Image.Resampling.BICUBIC)


def resident_peak() -> int:
    """The most bytes this process has held in memory."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


def machine() -> str:
    """Processor and number of cores."""
    lines = pathlib.Path("/proc/cpuinfo").read_text().splitlines() if sys.platform == "linux" else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return f"{names[0] if names else platform.processor() or platform.machine()}, {os.cpu_count()} cores"


def versions() -> dict[str, str]:
    """Of Python and of the libraries."""
    libraries = ("jax", "flax", "torch", "transformers", "numpy")
    return {"python": platform.python_version()} | {name: importlib.metadata.version(name) for name in libraries}


def markdown(report: dict) -> str:
    """The table, with what it was measured on."""
    lines = ["# Parity with transformers", "", f"`{report['command']}`", ""]
    used = ", ".join(f"{name} {version}" for name, version in report["versions"].items())
    lines += [f"{report['date']}. {report['machine']}. {used}.", ""]
    lines += [f"| {' | '.join(COLUMNS)} |", f"|---|{'---:|' * (len(COLUMNS) - 1)}"]
    for row in report["rows"]:
        lines.append(f"| {' | '.join(form.format(row[column]) for column, form in COLUMNS.items())} |")
    legend = LEGEND.format(crops=RANDOM_CROPS, boxes=len(BOXES))
    return "\n".join([*lines, "", legend, ""])


def write(path: pathlib.Path, text: str) -> None:
    """Whole or not at all."""
    partial = path.with_name(f"{path.name}.partial")
    partial.write_text(text)
    os.replace(partial, path)


if __name__ == "__main__":
    sys.exit(main())
