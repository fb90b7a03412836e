"""One micro-step of training, from a batch of images to new parameters, as one compiled program.

    batch: images, regions, keypoints
      augment_crops         crops and the keypoints in them, augmented at random
      gaussian_heatmaps     targets and their weights
      VitPose               heatmaps, in the model's dtype; parameters stay float32
      Teacher               its heatmaps of the same crops, with distillation (distill.py)
      loss, gradients
      make_optimizer        clipping, Adam, weight decay, learning rates
      update_ema            the moving average of the parameters, with `ema_decay`

A micro-step is one batch. A step is one update of the parameters: with `accumulate` above 1 only every `accumulate`-th
micro-step updates them.

All random numbers come from one key and the index of the micro-step: a resumed run gives the same result as one that
was not interrupted, on any number of devices.
"""

from collections.abc import Callable
from typing import Any, Literal, NamedTuple, cast

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
    Model,
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
from vitpose_jax.training.sharding import batch_sharding, gather_parameters, replicated, split_gradients, state_sharding
from vitpose_jax.training.targets import gaussian_heatmaps
from vitpose_jax.vitpose.config import VitPoseConfig
from vitpose_jax.vitpose.modeling import VitPose

LOSSES = ("mse", "ohkm")
Metrics = dict[str, Float[Array, ""]]


class TrainState(NamedTuple):
    """Everything a micro-step changes. Arrays are stored by flat name (`parameters.flatten`).

    Attributes:
        micro_step: number of batches so far, int32.
        trained: the trained parameters.
        rest: frozen parameters, and BatchNorm's running statistics.
        opt_state: state of the optimiser.
        ema: moving average of `trained`; None without `ema_decay`.
    """

    micro_step: Int[Array, ""]
    trained: Tensors
    rest: Tensors
    opt_state: optax.OptState
    ema: Tensors | None


# The batch is a `TrainingBatch` here, and another one for another task.
TrainStep = Callable[[TrainState, Any, PRNGKeyArray], tuple[TrainState, Metrics]]


def init_state(
    model: Model, optim_config: OptimConfig, mesh: Mesh | None = None
) -> tuple[nnx.GraphDef[Model], optax.GradientTransformation, TrainState]:
    """The state before the first micro-step.

    Args:
        model: its parameters are copied.
        optim_config: settings of the optimiser, with `total_steps`.
        mesh: devices over which the state is sharded (sharding.py); None for JAX's default device.

    Returns:
        The graph of the model in training mode, the optimiser and the state: the arguments of `make_train_step` and of
        its result.

    Raises:
        ValueError: as in `split` and `make_optimizer`, for `frozen` and `total_steps`.
    """
    chosen = optim_config.frozen, optim_config.trained
    model = training_view(model, *chosen)
    graphdef, trained, rest = split(model, *chosen)
    optimizer = make_optimizer(optim_config, model.config, getattr(model, "lora", None))

    def create(trained: Tensors, rest: Tensors) -> TrainState:
        ema = None if optim_config.ema_decay is None else jax.tree.map(jnp.copy, trained)
        return TrainState(
            micro_step=jnp.zeros((), jnp.int32),
            trained=jax.tree.map(jnp.copy, trained),
            rest=jax.tree.map(jnp.copy, rest),
            opt_state=optimizer.init(trained),
            ema=ema,
        )

    # Parameters reach the mesh as host arrays: every process has all of them and keeps its part.
    trained, rest = jax.device_get((trained, rest))
    if mesh is None:
        return graphdef, optimizer, jax.jit(create)(trained, rest)
    sharding = state_sharding(jax.eval_shape(create, trained, rest), mesh)
    trained = {name: jax.device_put(leaf, sharding.trained[name]) for name, leaf in trained.items()}
    rest = {name: jax.device_put(leaf, sharding.rest[name]) for name, leaf in rest.items()}
    return graphdef, optimizer, jax.jit(create, out_shardings=sharding)(trained, rest)


def make_train_step(
    model_config: VitPoseConfig,
    graphdef: nnx.GraphDef[VitPose],
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
    """The compiled program of a micro-step.

    Args:
        model_config: configuration of the model. With several heads, each crop trains the head of its dataset.
        graphdef, optimizer: from `init_state`. The graph holds the dtype in which the model computes.
        optim_config: settings of the optimiser; used for stochastic depth, the moving average and the reported
            learning rate.
        augmentation: how crops are varied.
        loss: "mse", or "ohkm" for the 8 keypoints with the largest error of each crop.
        sigma: standard deviation of the targets in heatmap pixels; None for 2 at 64 rows, in proportion at other sizes.
        remat: recompute the blocks for the gradient instead of storing their intermediate values.
        border: pixel values outside an image, see preprocess.py.
        mesh: the mesh of the state and the batches (`sharding.put_batch`); None for one device.
        teacher: a model to learn from as well, from `make_teacher` on the same mesh.

    Returns:
        A function (state, batch, key) -> (new state, metrics). The state is donated. The key is the same for all
        micro-steps. Metrics: "loss", "accuracy" (`heatmap_pck`), "gradient_norm" before clipping, "learning_rate"; with
        several heads also "loss/coco", "accuracy/coco" and so on, where the losses add up to "loss". With a teacher
        also "distillation", the mean squared difference from its heatmaps over all keypoints, labelled or not;
        "loss" includes it, times the teacher's weight.

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

    def crops_and_targets(
        batch: TrainingBatch, key: PRNGKeyArray
    ) -> tuple[Float[Array, "n height width 3"], Float[Array, "n rows columns K"], Float[Array, "n K"]]:
        images = batch.images
        if mesh is not None:
            # The image of a crop may be on another device.
            images = images._replace(pixels=jax.lax.with_sharding_constraint(images.pixels, replicated(mesh)))
        # Mirroring moves the weight of a label with its keypoint; weight 0 means not labelled.
        crops, keypoints, labels = augment_crops(
            key,
            images,
            batch.regions,
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

    def objective(trained, rest, crops, targets, weights, dataset_index, teacher_heatmaps, key):
        model = merge(graphdef, trained, gather_parameters(rest, mesh))
        index = dataset_index if len(heads) > 1 else model_config.dataset_index()
        heatmaps = model(crops, index, drop_path=optim_config.drop_path, key=key, remat=remat)
        metrics = {"accuracy": heatmap_pck(heatmaps, targets, weights)}
        if len(heads) > 1:
            losses = joints_mse_by_dataset(heatmaps, targets, weights, dataset_index, num_keypoints)
            value = jnp.sum(losses)
            for name in heads:
                index = model_config.dataset_index(name)
                own_weights = jnp.where((dataset_index == index)[:, None], weights, 0.0)
                metrics[f"loss/{name}"] = losses[index]
                metrics[f"accuracy/{name}"] = heatmap_pck(heatmaps, targets, own_weights)
        else:
            value = (joints_mse if loss == "mse" else online_hard_keypoints)(heatmaps, targets, weights)
        if teacher is not None:
            ones = jnp.ones_like(weights)
            if len(heads) > 1:
                losses = joints_mse_by_dataset(heatmaps, teacher_heatmaps, ones, dataset_index, num_keypoints)
                metrics["distillation"] = jnp.sum(losses)
            else:
                metrics["distillation"] = joints_mse(heatmaps, teacher_heatmaps, ones)
            value += teacher.weight * metrics["distillation"]
        return value, (rest | batch_stats(model), metrics)

    def train_step(
        state: TrainState, batch: TrainingBatch, key: PRNGKeyArray, teacher_tensors: Tensors | None = None
    ) -> tuple[TrainState, Metrics]:
        augment_key, drop_key = jax.random.split(jax.random.fold_in(key, state.micro_step))
        crops, targets, weights = crops_and_targets(batch, augment_key)
        if mesh is not None:
            crops = jax.lax.with_sharding_constraint(crops, batch_sharding(mesh))
        teacher_heatmaps = None
        if teacher is not None and teacher_tensors is not None:
            teacher_heatmaps = teacher.heatmaps(teacher_tensors, crops, batch.dataset_index)
        trained = gather_parameters(state.trained, mesh)
        (value, (rest, metrics)), gradients = jax.value_and_grad(objective, has_aux=True)(
            trained, state.rest, crops, targets, weights, batch.dataset_index, teacher_heatmaps, drop_key
        )
        gradients = split_gradients(gradients, mesh)
        state, updated = apply_gradients(state, gradients, rest, optimizer, optim_config)
        return state, metrics | {"loss": value} | updated

    # The teacher's parameters are an argument: constants would be compiled into the program.
    return compile_step(train_step, mesh, *(() if teacher is None else (teacher.tensors,)))


def apply_gradients(
    state: TrainState,
    gradients: Tensors,
    rest: Tensors,
    optimizer: optax.GradientTransformation,
    optim_config: OptimConfig,
) -> tuple[TrainState, Metrics]:
    """The end of a micro-step, whatever is trained.

    Args:
        state: before the micro-step.
        gradients: of `state.trained`.
        rest: the new `state.rest`.
        optimizer, optim_config: as in `make_train_step`.

    Returns:
        The new state, and the metrics "gradient_norm" before clipping and "learning_rate".
    """
    updates, opt_state = optimizer.update(gradients, state.opt_state, state.trained)
    trained = cast(Tensors, optax.apply_updates(state.trained, updates))
    ema, step = state.ema, state.micro_step // optim_config.accumulate
    if ema is not None and optim_config.ema_decay is not None:
        decay = optim_config.ema_decay
        if optim_config.ema_warmup:
            decay = jnp.minimum(decay, (2.0 + step) / (11.0 + step))
        # Only the last micro-step of a step changes the parameters.
        updated = (state.micro_step + 1) % optim_config.accumulate == 0
        averaged = update_ema(ema, trained, decay)
        ema = jax.tree.map(lambda new, old: jnp.where(updated, new, old), averaged, ema)
    metrics = {"gradient_norm": optax.tree.norm(gradients), "learning_rate": learning_rate(optim_config)(step)}
    return TrainState(state.micro_step + 1, trained, rest, opt_state, ema), metrics


def compile_step(
    train_step: Callable[..., tuple[TrainState, Metrics]], mesh: Mesh | None, *arguments: Any
) -> TrainStep:
    """The compiled program of a micro-step, which donates the state.

    Args:
        train_step: a function of a state, a batch, a key and `arguments`.
        mesh: the mesh of the state and the batches; None for one device.
    """
    if mesh is None:
        program = jax.jit(train_step, donate_argnums=0)
        return (lambda *changing: program(*changing, *arguments)) if arguments else program
    compiled: list[TrainStep] = []

    def run(state: TrainState, batch: Any, key: PRNGKeyArray) -> tuple[TrainState, Metrics]:
        if not compiled:
            # The new state has the sharding of the old one.
            sharding = jax.tree.map(lambda leaf: leaf.sharding, state)
            compiled.append(jax.jit(train_step, donate_argnums=0, out_shardings=(sharding, replicated(mesh))))
        return compiled[0](state, batch, key, *arguments)

    return run
