"""Speed of a training step beside PyTorch's, and beside what the machine can multiply, in one run.

    python benchmarks/train_step.py                                     # the defaults below
    python benchmarks/train_step.py --presets base --crops 64 --dtypes bfloat16 --output train_gpu
    python benchmarks/train_step.py --presets tiny --crops 2 --rounds 1    # shows that it runs

A step is: forward, joints MSE, backward, clipping, AdamW with a learning rate for each layer. "step" begins at crops
and targets, as PyTorch's does. "whole step" begins at images and boxes: augmentation, crops and targets are in the
same program; PyTorch's step leaves them to the CPU. Our step has stochastic depth, which computes every branch and
then drops some. PyTorch's is the network of transformers without stochastic depth, in bfloat16 under autocast: eager,
and with `--peers eager compile` also under torch.compile.

Steps are warm and interleaved. "of limit" is the fraction of the rate of a large matrix product, counting three times
the multiplications of a forward pass; what --remat computes again does not count.
"""

import argparse
import tempfile
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from common import OURS, PRODUCT_SIZE, TINY, arguments, product, report, timed_rows, vitpose_config
from flax import nnx
from peers import load
from speed import multiplications
from speed_tables import train_step_table

from vitpose_jax import VitPose, VitPoseConfig, convert
from vitpose_jax.pipeline.packing import pack_images
from vitpose_jax.pipeline.regions import Regions, boxes_to_regions
from vitpose_jax.training.augment import Augmentation, skeleton_arrays
from vitpose_jax.training.data import TrainingBatch
from vitpose_jax.training.losses import joints_mse
from vitpose_jax.training.optim import OptimConfig, batch_stats, layer_scales, merge
from vitpose_jax.training.step import init_state, make_train_step

PRESETS = ["base-simple"]
CROPS = [8]
DTYPES = ["float32"]
ROUNDS = 5
PEERS = ["eager"]


def random_batch(config: VitPoseConfig, crops: int) -> TrainingBatch:
    """Images of noise, 400 x 300 pixels, with a person in the middle of each."""
    rng = np.random.default_rng(0)
    images = [rng.integers(0, 256, (400, 300, 3), np.uint8) for _ in range(crops)]
    boxes = np.tile(np.array([[75, 75, 150, 250]], np.float32), (crops, 1))
    regions = boxes_to_regions(boxes, config.image_size)
    (skeleton,) = config.skeletons
    flip_indices, upper_body = (np.tile(row, (crops, 1)) for row in skeleton_arrays([skeleton]))
    shape = (crops, skeleton.num_keypoints)
    return TrainingBatch(
        images=pack_images(images),
        regions=Regions(np.asarray(regions.center), np.asarray(regions.scale)),
        keypoints=rng.uniform(80, 220, (*shape, 2)).astype(np.float32),
        visible=np.full(shape, 2, np.int32),
        weights=np.ones(shape, np.float32),
        dataset_index=np.zeros(crops, np.int32),
        udp=np.ones(crops, bool),
        flip_indices=flip_indices,
        upper_body=upper_body,
    )


class Repeated:
    """A step that starts from the state that it returned before."""

    def __init__(self, step: Callable, state: Any):
        self.step, self.state = step, state

    def __call__(self) -> Any:
        """The loss of the next step."""
        self.state, loss = self.step(self.state)
        return loss


def ours(config: VitPoseConfig, settings: OptimConfig, crops: int, dtype: str, remat: bool) -> dict[str, Callable]:
    """The whole step, and the part of it that PyTorch's step has."""
    key = jax.random.key(0)

    def begin():
        model = VitPose(config, dtype=jnp.dtype(dtype), param_dtype=jnp.float32, rngs=nnx.Rngs(0))
        return init_state(model, settings)

    graphdef, optimizer, state = begin()
    options = {"optim_config": settings, "augmentation": Augmentation(), "remat": remat}
    run = make_train_step(config, graphdef, optimizer, **options)
    batch = jax.device_put(random_batch(config, crops))

    def whole(state):
        state, metrics = run(state, batch, key)
        return state, metrics["loss"]

    pixels, targets, weights = inputs(config, crops)

    def objective(trained, rest, key, pixels, targets, weights):
        model = merge(graphdef, trained, rest)
        heatmaps = model(pixels, drop_path=settings.drop_path, key=key, remat=remat)
        return joints_mse(heatmaps, targets, weights), rest | batch_stats(model)

    def update(state, *batch):
        drop_key = jax.random.fold_in(key, state.micro_step)
        (loss, rest), gradients = jax.value_and_grad(objective, has_aux=True)(
            state.trained, state.rest, drop_key, *batch
        )
        updates, opt_state = optimizer.update(gradients, state.opt_state, state.trained)
        trained = optax.apply_updates(state.trained, updates)
        return state._replace(micro_step=state.micro_step + 1, trained=trained, rest=rest, opt_state=opt_state), loss

    part = jax.jit(update, donate_argnums=0)
    part_batch = jax.device_put((pixels, targets, weights))
    return {
        f"{OURS}, step": Repeated(lambda state: part(state, *part_batch), begin()[2]),
        f"{OURS}, whole step": Repeated(whole, state),
    }


def inputs(config: VitPoseConfig, crops: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Crops, targets and weights of noise."""
    rng = np.random.default_rng(0)
    keypoints = config.skeletons[0].num_keypoints
    pixels = rng.normal(size=(crops, *config.image_size, 3)).astype(np.float32)
    targets = rng.uniform(size=(crops, *config.heatmap_size, keypoints)).astype(np.float32)
    return pixels, targets, np.ones((crops, keypoints), np.float32)


def torch_steps(
    config: VitPoseConfig, settings: OptimConfig, crops: int, dtype: str, names: list[str]
) -> dict[str, Callable]:
    """The same steps in PyTorch."""
    steps = {}
    for name in names:
        with tempfile.TemporaryDirectory() as folder:
            convert.write(VitPose(config, rngs=nnx.Rngs(0)), folder, to="huggingface", overwrite=True)
            peers = load(folder, "float32", [name])
        for peer in peers.values():
            steps[f"transformers, {name}"] = torch_step(peer, config, settings, crops, dtype)
    return steps


def torch_step(peer: Any, config: VitPoseConfig, settings: OptimConfig, crops: int, dtype: str) -> Callable:
    """One step of a peer in PyTorch, as a function without arguments."""
    import torch

    peer.model.train()
    scales = layer_scales(config, settings.layer_decay)
    depth = config.num_layers

    def scale(name: str) -> float:
        parts = name.split(".")
        if "embeddings" in name:
            return settings.layer_decay ** (depth + 1)
        if "layer" in parts:
            (block,) = scales["backbone.blocks.norm1.scale"][[int(parts[parts.index("layer") + 1])]]
            return float(block)
        return 1.0

    groups = [
        {
            "params": [parameter],
            "lr": settings.learning_rate * scale(name),
            "weight_decay": 0.0 if parameter.ndim == 1 or "position" in name else settings.weight_decay,
        }
        for name, parameter in peer.model.named_parameters()
    ]
    optimizer = torch.optim.AdamW(groups, fused=peer.device == "cuda")
    pixels, targets, weights = inputs(config, crops)
    pixels, targets = (torch.from_numpy(x.transpose(0, 3, 1, 2).copy()).to(peer.device) for x in (pixels, targets))
    weights = torch.from_numpy(weights)[:, :, None, None].to(peer.device)

    def run():
        with torch.autocast(peer.device, torch.bfloat16, enabled=dtype == "bfloat16"):
            heatmaps = peer.network(pixels).heatmaps
        loss = (((heatmaps.float() - targets) * weights) ** 2).mean()
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(peer.model.parameters(), settings.clip_norm)
        optimizer.step()
        if peer.device == "cuda":
            torch.cuda.synchronize()
        return loss.item()

    return run


def measure(options: argparse.Namespace) -> list[dict]:
    """One row for each model, dtype, number of crops and program."""
    rows = []
    for preset in options.presets:
        config = vitpose_config(preset, layer_norm_eps=1e-12)
        schedule = {"total_steps": 10**6, "warmup_steps": 0}
        settings = OptimConfig(**schedule) if preset == TINY else OptimConfig.preset(preset, **schedule)
        for dtype in options.dtypes:
            for crops in options.crops:
                programs = ours(config, settings, crops, dtype, options.remat)
                programs |= torch_steps(config, settings, crops, dtype, options.peers)
                label = {"preset": preset, "dtype": dtype, "crops": crops}
                timed, limit = timed_rows(
                    label, programs, rounds=options.rounds, baseline=f"{OURS}, step", limit=product(dtype)
                )
                ceiling, work = 2 * PRODUCT_SIZE**3 / limit, 6 * multiplications(config) * crops
                for row in timed:
                    duration = row["ms"] / 1e3
                    speed = {"crops_per_second": crops / duration, "of_ceiling": work / duration / ceiling}
                    rows.append({**row, **speed})
                del programs
    return rows


def parser() -> argparse.ArgumentParser:
    """The options; models with one head only."""
    options = arguments(__doc__, presets=PRESETS, dtypes=DTYPES, peers=PEERS, rounds=ROUNDS)
    options.add_argument("--crops", nargs="+", type=int, default=CROPS, help="crops in a batch")
    options.add_argument("--remat", action="store_true", help="recompute the blocks in the backward pass")
    return options


def main() -> None:
    """Measure, and report the table of the rows."""
    options = parser().parse_args()
    rows = measure(options)
    report(train_step_table(rows), rows, options)


if __name__ == "__main__":
    main()
