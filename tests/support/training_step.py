"""Single steps of training on random batches."""

import functools

import jax
import jax.numpy as jnp
import numpy as np

from vitpose_jax import VitPose, VitPoseConfig
from vitpose_jax.pipeline.packing import pack_images
from vitpose_jax.pipeline.preprocess import normalize
from vitpose_jax.pipeline.regions import Regions, crop_to_image
from vitpose_jax.pipeline.warp import warp
from vitpose_jax.training.augment import Augmentation, skeleton_arrays
from vitpose_jax.training.data import TrainingBatch
from vitpose_jax.training.optim import OptimConfig
from vitpose_jax.training.step import TrainState, init_state, make_train_step
from vitpose_jax.training.targets import gaussian_heatmaps

NONE = Augmentation.none()

KEY = jax.random.key(3)


def random_batch(config: VitPoseConfig, datasets: list[str], *, seed: int = 0, udp: bool = True) -> TrainingBatch:
    """A crop for each of these datasets, of three noise images; most keypoints inside."""
    rng = np.random.default_rng(seed)
    n, channels = len(datasets), max(skeleton.num_keypoints for skeleton in config.skeletons)
    images = [rng.integers(0, 256, (*rng.integers(60, 90, 2), 3), np.uint8) for _ in range(3)]
    packed = pack_images(images, 3 * 90 * 90)
    # With UDP the pixels of these crops are pixels of the image, so pixel values are not rounded differently.
    scale = np.tile(np.float32([config.image_size[1] - 1, config.image_size[0] - 1]), (n, 1))
    corner = rng.integers(-5, 20, (n, 2)).astype(np.float32)
    keypoints = corner[:, None] + scale[:, None] * rng.uniform(-0.1, 1.1, (n, channels, 2))
    own = np.array([config.skeleton(name).num_keypoints for name in datasets])[:, None]
    flip_indices, upper_body = skeleton_arrays([config.skeleton(name) for name in datasets], channels)
    return TrainingBatch(
        images=packed.select(rng.integers(0, 3, n)),
        regions=Regions(corner + scale / 2, scale),
        keypoints=keypoints.astype(np.float32),
        visible=(rng.choice([0, 1, 2], (n, channels), p=[0.2, 0.3, 0.5]) * (np.arange(channels) < own)).astype(
            np.int32
        ),
        weights=rng.choice([0.5, 1.0], (n, channels)).astype(np.float32),
        dataset_index=np.array([config.dataset_index(name) for name in datasets], np.int32),
        udp=np.full(n, udp),
        flip_indices=flip_indices,
        upper_body=upper_body,
    )


def begin(model: VitPose, optim_config: OptimConfig, **options):
    """The state and the step."""
    graphdef, optimizer, state = init_state(model, optim_config)
    step = make_train_step(model.config, graphdef, optimizer, optim_config=optim_config, **options)
    return state, step


def copied(state: TrainState) -> dict[str, np.ndarray]:
    """Parameters and statistics of a state, which the next step uses up."""
    return {name: np.array(leaf) for name, leaf in (state.trained | state.rest).items()}


def crops_and_targets(config: VitPoseConfig, batch: TrainingBatch):
    """What the network and the loss see of a batch that is not augmented, put together from the parts."""
    return _crops_and_targets(jax.tree.map(jnp.asarray, batch), config)


@functools.partial(jax.jit, static_argnums=1)
def _crops_and_targets(batch: TrainingBatch, config: VitPoseConfig):
    rows, columns = np.mgrid[: config.image_size[0], : config.image_size[1]].astype(np.float32)
    grid = np.broadcast_to(np.stack([columns, rows], axis=-1), (len(batch.udp), *config.image_size, 2))
    places = crop_to_image(jnp.asarray(grid), batch.regions, config.image_size)
    crops = normalize(warp(batch.images, places, border="opencv"))
    center, scale, _ = batch.regions
    low, size = center - scale / 2, np.array(config.image_size[::-1]) - 1
    inside = ((batch.keypoints - low[:, None]) / scale[:, None] * size).astype(np.float32)
    targets, counted = gaussian_heatmaps(
        inside, batch.visible, config.image_size, config.heatmap_size, sigma=2 * config.heatmap_size[0] / 64
    )
    return crops, targets, counted * batch.weights
