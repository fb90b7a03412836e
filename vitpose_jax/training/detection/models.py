"""The person finder before and after a training."""

import jax.numpy as jnp
import numpy as np
from flax import nnx

from vitpose_jax.convert.detectors import load_detector
from vitpose_jax.convert.hub import resolve_source
from vitpose_jax.finder.modeling import PersonFinder, abstract_finder
from vitpose_jax.storage import parameters
from vitpose_jax.training.detection.config import DetectionTrainConfig
from vitpose_jax.training.optim import Tensors, arrays_by_name
from vitpose_jax.training.sharding import to_host
from vitpose_jax.training.step import TrainState

# Scores of a random network. Nearly all cells show no person: scores of 0.5 would make the first losses huge.
FIRST_SCORE = 0.01


def create_finder(config: DetectionTrainConfig) -> PersonFinder:
    """The finder before the first step: from `config.init`, or random.

    Raises:
        ValueError: if `init` is not a person finder, or listing all tensors whose shape is not that of `config.model`.
    """
    abstract = abstract_finder(config.model, dtype=jnp.dtype(config.precision), param_dtype=jnp.float32)
    if config.init is not None:
        return parameters.fill(abstract, load_init(config.init), source=config.init)
    tensors = arrays_by_name(PersonFinder(config.model, rngs=nnx.Rngs(config.seed)))
    for name in tensors:
        if name.startswith("heads.") and name.endswith(".out.bias"):
            tensors[name] = tensors[name].at[0].set(np.log(FIRST_SCORE / (1 - FIRST_SCORE)))
    return parameters.fill(abstract, tensors)


def load_finder(source: str) -> PersonFinder:
    """A person finder, float32, without its second stage.

    Raises:
        ValueError: if it is not found, damaged, or another detector.
    """
    model = load_detector(resolve_source(source))
    if not isinstance(model, PersonFinder):
        raise ValueError(f"init: expected a person finder, got {source}, which is a {type(model).__name__}")
    if model.config.second_stage is None:
        return model
    tensors = {name: leaf for name, leaf in arrays_by_name(model).items() if not name.startswith("second_stage.")}
    return parameters.fill(abstract_finder(model.config.replace(second_stage=None)), tensors, source=source)


def load_init(source: str) -> Tensors:
    """The parameters of `load_finder`, by flat name."""
    return arrays_by_name(load_finder(source))


def trained_finder(config: DetectionTrainConfig, state: TrainState) -> PersonFinder:
    """The finder of a state, ready to be written: averaged over the steps if `ema_decay` is set, and with
    `average_with_init`. It stores its parameters in `export_dtype`.

    All processes make the same call; each gets the whole model.
    """
    tensors = to_host((state.trained if state.ema is None else state.ema) | state.rest)
    weight = config.average_with_init
    if config.init is not None and weight:
        initial = load_init(config.init)
        tensors = {name: (1 - weight) * leaf + weight * np.asarray(initial[name]) for name, leaf in tensors.items()}
    abstract = abstract_finder(config.model, param_dtype=jnp.dtype(config.export_dtype))
    return parameters.fill(abstract, tensors, source="the state of the training")
