"""Distillation: a small model, the student, learns from a large one that is trained, the teacher.

Two ways, alone or together (ViTPose, arXiv:2204.12484):

    output    the loss gains weight x the mean squared difference between the heatmaps of student and teacher
    token     the teacher, all of it frozen, learns a token that is appended to its patches; the student gets that
              token, frozen, beside its own patches (`VitPoseConfig.knowledge_token`)

The teacher is computed inside the compiled step, on the student's crops, and predicts. Its parameters are an argument
of the program: they are neither constants of it nor part of the state.
"""

from collections.abc import Iterable
from pathlib import Path
from typing import NamedTuple

import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.sharding import Mesh
from jaxtyping import Array, Float, Int

from vitpose_jax.convert.backbones import load_vitpose
from vitpose_jax.storage import parameters
from vitpose_jax.training.optim import Tensors, merge
from vitpose_jax.training.sharding import put_parameters
from vitpose_jax.vitpose.config import VitPoseConfig
from vitpose_jax.vitpose.modeling import VitPose, abstract_vitpose

TOKEN = "backbone.knowledge_token.token"


class Teacher(NamedTuple):
    """A teacher made ready for a student; from `make_teacher`.

    Attributes:
        graphdef: of the teacher, set to predict.
        tensors: its parameters, by flat name.
        weight: of the heatmaps' difference in the loss.
        numbers: the teacher's number for each data set of the student; an int for a student with one head.
        num_keypoints: channels of the student's heatmaps.
    """

    graphdef: nnx.GraphDef
    tensors: Tensors
    weight: float
    numbers: int | Int[np.ndarray, " datasets"]
    num_keypoints: int

    def heatmaps(
        self, tensors: Tensors, crops: Float[Array, "n height width channels"], dataset_index: Int[Array, " n"]
    ) -> Float[Array, "n rows columns K"]:
        """What the student is to give for crops; `tensors` are the teacher's, as an argument of the program."""
        index = self.numbers if isinstance(self.numbers, int) else jnp.asarray(self.numbers)[dataset_index]
        return merge(self.graphdef, tensors)(crops, index)[..., : self.num_keypoints]


def make_teacher(
    model: VitPose,
    student: VitPoseConfig,
    *,
    weight: float = 1.0,
    mesh: Mesh | None = None,
    source: str | Path = "the teacher",
) -> Teacher:
    """A teacher for a student.

    Args:
        model: of any width and depth, in any dtype.
        student: its configuration.
        weight: of the heatmaps' difference in the loss.
        mesh: of the training; the teacher's parameters are laid out as the student's.
        source: where the teacher comes from, for the error.

    Raises:
        ValueError: where the two do not see the same crops or do not give the same heatmaps; all of that at once.
    """
    theirs = model.config
    parameters.raise_problems(_disagreements(theirs, student), source=str(source))
    model = nnx.view(model, use_running_average=True, raise_if_not_found=False)
    tensors = parameters.flatten(model)
    heads = [skeleton.name for skeleton in student.skeletons]
    numbers = [theirs.dataset_index(name) if name in heads else 0 for name in student.datasets]
    return Teacher(
        graphdef=nnx.graphdef(model),
        tensors=tensors if mesh is None else put_parameters(tensors, mesh),
        weight=weight,
        numbers=theirs.dataset_index(heads[0]) if len(heads) == 1 else np.array(numbers, np.int32),
        num_keypoints=max(skeleton.num_keypoints for skeleton in student.skeletons),
    )


def with_token(model: VitPose, source: str | Path | VitPose) -> VitPose:
    """A student with the knowledge token of another model, in the place of its own.

    Args:
        model: with a `knowledge_token` as wide as the other's.
        source: a ViTPose that has learnt a token: a model, or whatever `from_pretrained` reads.

    Raises:
        ValueError: where the source has no token or one of another width, or the model has none.
    """
    given = source if isinstance(source, VitPose) else load_vitpose(source)
    where = "the token's model" if isinstance(source, VitPose) else str(source)
    width = 0 if given is None else given.config.knowledge_token
    if not width:
        raise ValueError(f"{where}: expected a ViTPose that has learnt a knowledge token, got one without")
    if width != model.config.knowledge_token:
        raise ValueError(f"{where}: expected a knowledge token of width {model.config.knowledge_token}, got {width}")
    abstract = abstract_vitpose(model.config, dtype=model.backbone.dtype, param_dtype=model.backbone.param_dtype)
    return parameters.fill(abstract, parameters.flatten(model) | {TOKEN: parameters.flatten(given)[TOKEN]})


def _disagreements(teacher: VitPoseConfig, student: VitPoseConfig) -> Iterable[str]:
    for name in ("image_size", "num_channels", "image_mean", "image_std", "heatmap_size"):
        if getattr(teacher, name) != getattr(student, name):
            yield f"{name}: expected {getattr(student, name)}, as the student's, got {getattr(teacher, name)}"
    held = {skeleton.name: skeleton.keypoints for skeleton in teacher.skeletons}
    for skeleton in student.skeletons:
        if skeleton.name not in held:
            yield f"expected a head for {skeleton.name}, got heads for {', '.join(held)}"
        elif held[skeleton.name] != skeleton.keypoints:
            yield (
                f"head {skeleton.name}: expected the student's {skeleton.num_keypoints} keypoints, "
                f"got {len(held[skeleton.name])} others"
            )
