"""One micro-step of a training of the person finder, as one compiled program.

batch: augmented images, boxes (data.py)
  PersonFinder          scores and boxes of all cells, in the model's dtype; parameters stay float32
  assign_cells          the cells that learn each person
  detection_losses      losses, gradients
  apply_gradients       as for poses (training/step.py)
"""

import jax
import optax
from flax import nnx
from jax.sharding import Mesh
from jaxtyping import PRNGKeyArray

from vitpose_jax.finder.config import FinderConfig
from vitpose_jax.finder.modeling import PersonFinder, make_cells
from vitpose_jax.finder.preprocess import prepare
from vitpose_jax.training.detection.data import BoxBatch
from vitpose_jax.training.detection.losses import detection_losses
from vitpose_jax.training.optim import OptimConfig, merge
from vitpose_jax.training.sharding import gather_parameters, split_gradients
from vitpose_jax.training.step import Metrics, TrainState, TrainStep, apply_gradients, compile_step


def make_detection_step(
    config: FinderConfig,
    graphdef: nnx.GraphDef[PersonFinder],
    optimizer: optax.GradientTransformation,
    *,
    optim_config: OptimConfig,
    mesh: Mesh | None = None,
) -> TrainStep:
    """The compiled program of a micro-step.

    Args:
        config: configuration of the model.
        graphdef, optimizer: from `init_state`. The graph holds the dtype in which the model computes.
        optim_config: settings of the optimiser.
        mesh: the mesh of the state and the batches; None for one device.

    Returns:
        A function (state, batch, key) -> (new state, metrics). The state is donated, and the key is not used: images
        are augmented before. Metrics: "loss", its parts "loss/score", "loss/box" and "loss/distances", "gradient_norm"
        before clipping, "learning_rate".
    """

    def objective(trained, rest, batch):
        model = merge(graphdef, trained, gather_parameters(rest, mesh))
        output = model(prepare(batch.images, config))
        cells = make_cells(*batch.images.shape[1:3])
        losses = detection_losses(output, batch.boxes, batch.is_person, batch.is_ignored, *cells)
        return sum(losses), losses

    def train_step(state: TrainState, batch: BoxBatch, key: PRNGKeyArray) -> tuple[TrainState, Metrics]:
        trained = gather_parameters(state.trained, mesh)
        (value, losses), gradients = jax.value_and_grad(objective, has_aux=True)(trained, state.rest, batch)
        gradients = split_gradients(gradients, mesh)
        state, metrics = apply_gradients(state, gradients, state.rest, optimizer, optim_config)
        parts = {f"loss/{name}": loss for name, loss in losses._asdict().items()}
        return state, {"loss": value, **parts, **metrics}

    return compile_step(train_step, mesh)
