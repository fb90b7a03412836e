"""Differences between our models and transformers, and the cost of loading, for every published architecture.

    python benchmarks/parity.py --output parity            # all models; writes results/parity.json
    python benchmarks/parity.py --models base plus-small   # some models; only prints

For each architecture transformers writes a model with random weights (every parameter and buffer) to a temporary
folder. One process runs it with torch; a second one loads the folder and compares. They never hold a model at the same
time. The exit status is 1 if heatmaps or keypoints differ by more than the tests allow.

Heatmaps are compared on two crops of random numbers. Keypoints are compared on a photograph (of the sample data, see
VITPOSE_DATA; without it a smooth random image) and boxes, with the "transformers" decoding. The heatmaps of random
weights are noise, and the place of the highest noise means little. So the last convolution of the decoder is fitted, by
least squares, to a peak in each heatmap of the photograph. A keypoint is compared if the reference has a unique peak:
its highest pixel leads every other pixel by LEAD, as a fraction of the largest value of all heatmaps, and its refined
point is less than a pixel away from there.
"""

import argparse
import json
import os
import pathlib
import resource
import subprocess
import sys
import tempfile
import time

from accuracy_tables import parity_table
from common import arguments, report
from reports import ROOT

SEED = 0
RANDOM_CROPS = 2
PHOTOGRAPH = "coco_val/images/000000000139.jpg"
BOXES = [[412.8, 157.61, 53.05, 138.01], [384.43, 172.21, 15.12, 35.74], [0.0, 0.0, 640.0, 426.0]]
LEAD = 0.01
PEAK_WIDTH = 2.0
# As in tests/tolerances.py.
ALLOWED = {"heatmaps": 1e-4, "keypoints_same_crops_px": 1e-2, "keypoints_pipeline_px": 1e-2}

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


def parser() -> argparse.ArgumentParser:
    """The options."""
    options = arguments(__doc__)
    options.add_argument("--models", nargs="+", choices=list(MODELS), default=list(MODELS), metavar="MODEL")
    options.add_argument("--worker", choices=["reference", "ours"], help=argparse.SUPPRESS)
    options.add_argument("--folder", type=pathlib.Path, help=argparse.SUPPRESS)
    return options


def main() -> int:
    """Compare, report the table, and tell whether all differences are within the tolerances of the tests."""
    options = parser().parse_args()
    if options.worker:
        (name,) = options.models
        {"reference": run_reference, "ours": run_ours}[options.worker](name, options.folder)
        return 0
    rows = [measure(name) for name in options.models]
    del options.worker, options.folder
    report(parity_table(rows), rows, options)
    off = [f"{row['model']} ({column})" for row in rows for column in ALLOWED if not row[column] <= ALLOWED[column]]
    print(f"larger differences than the tests allow: {', '.join(off)}" if off else "all within the tests' tolerances")
    return 1 if off else 0


def measure(name: str) -> dict:
    """One row of the table, from two processes that run one after the other."""
    with tempfile.TemporaryDirectory() as folder:
        for worker in ("reference", "ours"):
            print(f"{name}: {worker}", file=sys.stderr, flush=True)
            command = [sys.executable, __file__, "--worker", worker, "--models", name, "--folder", folder]
            subprocess.run(command, check=True, stdout=sys.stderr)
        return json.loads(pathlib.Path(folder, "row.json").read_text())


def run_reference(name: str, folder: pathlib.Path) -> None:
    """Write a random model, its heatmaps of random crops and of the photograph, and its keypoints."""
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
    """Fill every parameter and buffer with random numbers; activations stay of the order of 1."""
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
                # Each output of a transposed convolution, (in, out, 4, 4), uses a quarter of the kernel.
                fan_in = tensor.shape[0] * 4 if ".deconv" in name else tensor[0].numel()
                tensor.normal_(0, fan_in**-0.5, generator=generator)


def run(model, crops):
    """The output of the reference; with its first expert if it has several."""
    import torch

    with torch.no_grad():
        return model(crops, dataset_index=torch.zeros(len(crops), dtype=torch.long))


def make_peaks(model, crops) -> None:
    """Fit the last convolution, by least squares, to a Gaussian at a random place of each heatmap of the crops.

    The fit is poor, but its highest pixels are peaks. They are scaled so that the highest of all is 1.
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
    """Load the model, measure that, and compare with the arrays that the reference wrote to the folder."""
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

    reference = np.load(folder / "reference.npz")
    run = jax.jit(lambda model, crops: model(crops))
    difference = np.abs(run(model, reference["noise"]) - reference["noise_heatmaps"]).max()
    largest = np.abs(reference["noise_heatmaps"]).max()
    boxes = np.asarray(BOXES, np.float32)
    same, _ = decode_heatmaps(run(model, reference["crops"]), boxes, decode="transformers")
    poses = PoseEstimator(model)(reference["image"], boxes, decode="transformers")
    clear = unique_peaks(reference["heatmaps"], reference["keypoints"], boxes)
    same = np.abs(same - reference["keypoints"])[clear].max(-1)
    whole = np.abs(poses.keypoints - reference["keypoints"])[clear].max(-1)
    row = {
        "model": name,
        "parameters_millions": sum(leaf.size for key, leaf in leaves.items() if not key.endswith((".mean", ".var")))
        / 1e6,
        "file_mb": sum(path.stat().st_size for path in folder.glob("*.safetensors")) / 1e6,
        "load_s": load,
        "peak_memory_mb": memory / 1e6,
        "heatmaps": float(difference),
        "heatmaps_fraction": float(difference / largest),
        "keypoints_same_crops_px": float(same.max()),
        "keypoints_pipeline_px": float(whole.max()),
        "within_0.01_px": f"{(whole < 0.01).sum()} of {len(whole)}",
    }
    (folder / "row.json").write_text(json.dumps(row))


def unique_peaks(heatmaps, keypoints, boxes):
    """(n, K): true if the highest pixel of a heatmap leads every other and the keypoint is less than a pixel away."""
    import numpy as np

    from vitpose_jax.pipeline.postprocess import decode_heatmaps
    from vitpose_jax.pipeline.regions import boxes_to_regions

    n, height, width, channels = heatmaps.shape
    ordered = np.sort(heatmaps.reshape(n, height * width, channels), axis=1)
    leads = ordered[:, -1] - ordered[:, -2] > LEAD * ordered.max()
    highest, _ = decode_heatmaps(heatmaps, boxes, decode="argmax")
    scale = boxes_to_regions(boxes, (height, width)).scale
    pixel = np.asarray(scale)[:, None] / (width - 1, height - 1)
    return leads & (np.abs(keypoints - highest) < pixel).all(-1)


def photograph():
    """The photograph of the sample data; without it a smooth random image of the same size."""
    import numpy as np
    from PIL import Image

    path = pathlib.Path(os.environ.get("VITPOSE_DATA", ROOT.parent / "shared" / "data")) / PHOTOGRAPH
    if path.is_file():
        return Image.open(path).convert("RGB")
    print("no sample data: a random image instead of the photograph", file=sys.stderr)
    coarse = np.random.default_rng(SEED).integers(0, 256, (27, 40, 3), np.uint8)
    return Image.fromarray(coarse).resize((640, 426), Image.Resampling.BICUBIC)


def resident_peak() -> int:
    """Peak resident memory of this process, in bytes."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


if __name__ == "__main__":
    sys.exit(main())
