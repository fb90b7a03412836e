"""One step of training, from images to new parameters, as one compiled program.

    batch: images, regions, keypoints
      augment_crops         crops and keypoints in them, varied at random
      gaussian_heatmaps     targets and their weights
      VitPose               heatmaps, in the model's dtype; parameters stay float32
      Teacher               its heatmaps of the same crops, where one is learnt from (distill.py)
      loss, gradients
      make_optimizer        clipping, Adam, decay, learning rates
      update_ema            the average of the parameters, where it is kept

Everything random comes from one key and the number of the step: a training that was interrupted goes on as if it had
not been, and the number of devices does not matter.
"""

from collections.abc import Callable
from typing import Literal, NamedTuple

import jax
import jax.numpy as jnp
import optax
from flax import nnx
from jax.sharding import Mesh
from jaxtyping import Array, Float, Int, PRNGKeyArray

from vitpose_jax.pipeline.preprocess import Border
from vitpose_jax.training.augment import Augmentation, augment_crops
from vitpose_jax.training.data import TrainingBatch
from vitpose_jax.training.distill import Teacher
from vitpose_jax.training.losses import heatmap_pck, joints_mse, joints_mse_by_dataset, online_hard_keypoints
from vitpose_jax.training.optim import (
    OptimConfig,
    Tensors,
    batch_stats,
    learning_rate,
    make_optimizer,
    merge,
    split,
    training_view,
    update_ema,
)
from vitpose_jax.training.sharding import batch_sharding, replicated, state_sharding
from vitpose_jax.training.targets import gaussian_heatmaps
from vitpose_jax.vitpose.config import VitPoseConfig
from vitpose_jax.vitpose.modeling import VitPose

LOSSES = ("mse", "ohkm")
Metrics = dict[str, Float[Array, ""]]


class TrainState(NamedTuple):
    """All that a step changes; arrays are by flat name (`parameters.flatten`).

    Attributes:
        step: batches seen.
        trained: parameters that are trained.
        rest: frozen parameters, and BatchNorm's running statistics.
        opt_state: of the optimiser.
        ema: the average of `trained`; None where none is kept.
    """

    step: Int[Array, ""]
    trained: Tensors
    rest: Tensors
    opt_state: optax.OptState
    ema: Tensors | None


TrainStep = Callable[[TrainState, TrainingBatch, PRNGKeyArray], tuple[TrainState, Metrics]]


def init_state(
    model: VitPose, optim_config: OptimConfig, mesh: Mesh | None = None
) -> tuple[nnx.GraphDef, optax.GradientTransformation, TrainState]:
    """What a training begins with.

    Args:
        model: its parameters are copied.
        optim_config: of the training.
        mesh: of devices, over which the state is laid out (sharding.py); None for JAX's default device.

    Returns:
        The graph of the model, set to train; the optimiser; the state. All three are for `make_train_step`.

    Raises:
        ValueError: as `split` and `make_optimizer`, for what is frozen.
    """
    model = training_view(model, optim_config.frozen)
    graphdef, trained, rest = split(model, optim_config.frozen)
    optimizer = make_optimizer(optim_config, model.config)

    def create(trained: Tensors, rest: Tensors) -> TrainState:
        ema = None if optim_config.ema_decay is None else jax.tree.map(jnp.copy, trained)
        copied = jax.tree.map(jnp.copy, (trained, rest))
        return TrainState(jnp.zeros((), jnp.int32), *copied, optimizer.init(trained), ema)

    # Parameters cross to the mesh as host arrays: every process has them, and keeps its part.
    trained, rest = jax.device_get((trained, rest))
    if mesh is None:
        return graphdef, optimizer, jax.jit(create)(trained, rest)
    layout = state_sharding(jax.eval_shape(create, trained, rest), mesh)
    trained = {name: jax.device_put(leaf, layout.trained[name]) for name, leaf in trained.items()}
    rest = {name: jax.device_put(leaf, layout.rest[name]) for name, leaf in rest.items()}
    return graphdef, optimizer, jax.jit(create, out_shardings=layout)(trained, rest)


def make_train_step(
    model_config: VitPoseConfig,
    graphdef: nnx.GraphDef,
    optimizer: optax.GradientTransformation,
    *,
    optim_config: OptimConfig,
    augmentation: Augmentation,
    loss: Literal["mse", "ohkm"] = "mse",
    sigma: float | None = None,
    remat: bool = False,
    border: Border = "opencv",
    mesh: Mesh | None = None,
    teacher: Teacher | None = None,
) -> TrainStep:
    """The compiled step.

    Args:
        model_config: of the model. With several heads each crop is for the head of its data set.
        graphdef, optimizer: from `init_state`. The dtype in which the model computes is in the graph.
        optim_config: of the training: stochastic depth, the average, the learning rate to be reported.
        augmentation: of the crops.
        loss: "mse", or "ohkm" for the 8 worst keypoints of each crop alone.
        sigma: of the targets, in heatmap pixels; None for 2 where heatmaps are 64 high, and so in proportion.
        remat: compute the blocks again for the gradient instead of keeping what they made.
        border: what lies outside an image, see preprocess.py.
        mesh: of the state and the batches (`sharding.put_batch`); None for one device.
        teacher: a model to learn from, too; from `make_teacher`, on the same mesh.

    Returns:
        A function of the state, which is used up; a batch; and a key, the same for all steps. It gives the new state
        and the metrics: "loss", "accuracy" (`heatmap_pck`), "gradient_norm" before clipping, "learning_rate"; with
        several heads also "loss/coco", "accuracy/coco" and so on: these losses add up to the whole. With a teacher
        "distillation", the mean squared difference from its heatmaps: all keypoints count, labelled or not; and
        "loss" has weight x that added.

    Raises:
        ValueError: for an unknown loss, or "ohkm" with several heads.
    """
    heads = {skeleton.name: skeleton.num_keypoints for skeleton in model_config.skeletons}
    if loss not in LOSSES:
        raise ValueError(f"loss: expected one of {', '.join(LOSSES)}, got {loss!r}")
    if loss == "ohkm" and len(heads) > 1:
        raise ValueError(f"loss: 'ohkm' is for a model with one head, got heads for {', '.join(heads)}")
    sigma = 2 * model_config.heatmap_size[0] / 64 if sigma is None else sigma
    num_keypoints = tuple(heads.get(name, 0) for name in model_config.datasets)
    rate = learning_rate(optim_config)

    def crops_and_targets(
        batch: TrainingBatch, key: PRNGKeyArray
    ) -> tuple[Float[Array, "n height width 3"], Float[Array, "n rows columns K"], Float[Array, "n K"]]:
        pixels = batch.pixels
        if mesh is not None:
            # A crop may be of an image that came to another device.
            pixels = jax.lax.with_sharding_constraint(pixels, replicated(mesh))
        # A label's weight goes with its keypoint, also in a mirrored crop; 0 is as not labelled.
        crops, keypoints, labels = augment_crops(
            key,
            pixels,
            batch.shapes,
            batch.center,
            batch.scale,
            batch.keypoints,
            jnp.where(batch.visible > 0, batch.weights, 0.0),
            flip_indices=batch.flip_indices,
            upper_body=batch.upper_body,
            size=model_config.image_size,
            udp=batch.udp,
            augmentation=augmentation,
            border=border,
            mean=model_config.image_mean,
            std=model_config.image_std,
        )
        targets, counted = gaussian_heatmaps(
            keypoints, labels, model_config.image_size, model_config.heatmap_size, sigma=sigma, udp=batch.udp
        )
        return crops, targets, counted * labels

    def objective(trained, rest, crops, targets, weights, dataset_index, taught, key):
        model = merge(graphdef, trained, rest)
        index = dataset_index if len(heads) > 1 else model_config.dataset_index()
        heatmaps = model(crops, index, drop_path=optim_config.drop_path, key=key, remat=remat)
        metrics = {"accuracy": heatmap_pck(heatmaps, targets, weights)}
        if len(heads) > 1:
            losses = joints_mse_by_dataset(heatmaps, targets, weights, dataset_index, num_keypoints)
            value = jnp.sum(losses)
            for name in heads:
                index = model_config.dataset_index(name)
                mine = jnp.where((dataset_index == index)[:, None], weights, 0.0)
                metrics |= {f"loss/{name}": losses[index], f"accuracy/{name}": heatmap_pck(heatmaps, targets, mine)}
        else:
            value = (joints_mse if loss == "mse" else online_hard_keypoints)(heatmaps, targets, weights)
        if taught is not None:
            everything = jnp.ones_like(weights)
            if len(heads) > 1:
                losses = joints_mse_by_dataset(heatmaps, taught, everything, dataset_index, num_keypoints)
                metrics["distillation"] = jnp.sum(losses)
            else:
                metrics["distillation"] = joints_mse(heatmaps, taught, everything)
            value += teacher.weight * metrics["distillation"]
        return value, (rest | batch_stats(model), metrics)

    def train_step(
        state: TrainState, batch: TrainingBatch, key: PRNGKeyArray, teachers: Tensors | None = None
    ) -> tuple[TrainState, Metrics]:
        augment_key, drop_key = jax.random.split(jax.random.fold_in(key, state.step))
        crops, targets, weights = crops_and_targets(batch, augment_key)
        if mesh is not None:
            crops = jax.lax.with_sharding_constraint(crops, batch_sharding(mesh))
        taught = None if teacher is None else teacher.heatmaps(teachers, crops, batch.dataset_index)
        (value, (rest, metrics)), gradients = jax.value_and_grad(objective, has_aux=True)(
            state.trained, state.rest, crops, targets, weights, batch.dataset_index, taught, drop_key
        )
        updates, opt_state = optimizer.update(gradients, state.opt_state, state.trained)
        trained = optax.apply_updates(state.trained, updates)
        ema = state.ema
        if ema is not None:
            # With accumulated gradients only every so many steps change anything.
            updated = (state.step + 1) % optim_config.accumulate == 0
            averaged = update_ema(ema, trained, optim_config.ema_decay)
            ema = jax.tree.map(lambda new, old: jnp.where(updated, new, old), averaged, ema)
        metrics |= {
            "loss": value,
            "gradient_norm": optax.tree.norm(gradients),
            "learning_rate": rate(state.step // optim_config.accumulate),
        }
        return TrainState(state.step + 1, trained, rest, opt_state, ema), metrics

    # The teacher's parameters are an argument: as constants they would be compiled in.
    teachers = () if teacher is None else (teacher.tensors,)
    if mesh is None:
        step = jax.jit(train_step, donate_argnums=0)
        return step if teacher is None else lambda *arguments: step(*arguments, *teachers)
    compiled: list[TrainStep] = []

    def run(state: TrainState, batch: TrainingBatch, key: PRNGKeyArray) -> tuple[TrainState, Metrics]:
        if not compiled:
            # The new state lies as the old one did.
            layout = jax.tree.map(lambda leaf: leaf.sharding, state)
            compiled.append(jax.jit(train_step, donate_argnums=0, out_shardings=(layout, replicated(mesh))))
        return compiled[0](state, batch, key, *teachers)

    return run
