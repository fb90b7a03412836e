"""Distillation: a small model, the student, learns from a large trained model, the teacher.

Two ways, alone or together (ViTPose, arXiv:2204.12484):

    output    adds to the loss: weight x the mean squared difference between the heatmaps of student and teacher
    token     the frozen teacher learns a token that is appended to its patches; the student gets this token, frozen,
              beside its own patches (`VitPoseConfig.knowledge_token`)

The teacher runs inside the compiled micro-step, on the student's crops, in evaluation mode. Its parameters are an
argument of the program: they are neither constants in it nor part of the state.
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
from vitpose_jax.training.optim import Tensors, arrays_by_name, merge
from vitpose_jax.training.sharding import put_parameters
from vitpose_jax.vitpose.config import VitPoseConfig
from vitpose_jax.vitpose.modeling import VitPose, abstract_vitpose

TOKEN = "backbone.knowledge_token.token"


class Teacher(NamedTuple):
    """A teacher that fits a student; from `make_teacher`.

    Attributes:
        graphdef: the teacher's graph, in evaluation mode.
        tensors: its parameters, by flat name.
        weight: weight of the heatmaps' mean squared difference in the loss.
        dataset_index: the teacher's `dataset_index` for each of the student's; an int if the student has one head.
        num_keypoints: channels of the student's heatmaps.
    """

    graphdef: nnx.GraphDef
    tensors: Tensors
    weight: float
    dataset_index: int | Int[np.ndarray, " datasets"]
    num_keypoints: int

    def heatmaps(
        self,
        tensors: Tensors,
        crops: Float[Array, "n height width channels"],
        dataset_index: Int[Array | np.ndarray, " n"],
    ) -> Float[Array, "n rows columns K"]:
        """The teacher's heatmaps of crops.

        Args:
            tensors: the teacher's parameters, as an argument of the program.
            crops: the student's crops, normalised.
            dataset_index: the student's, of each crop.
        """
        index = self.dataset_index
        if not isinstance(index, int):
            index = jnp.asarray(index)[dataset_index]
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
        model: the teacher, of any width, depth and dtype.
        student: the student's configuration.
        weight: weight of the heatmaps' mean squared difference in the loss.
        mesh: the mesh of the run; the teacher's parameters are sharded like the student's.
        source: name of the teacher, for errors.

    Raises:
        ValueError: if teacher and student take different crops or return different heatmaps, listing all differences.
    """
    config = model.config
    parameters.raise_problems(_differences(config, student), source=str(source))
    model = nnx.view(model, use_running_average=True, raise_if_not_found=False)
    tensors = arrays_by_name(model)
    heads = [skeleton.name for skeleton in student.skeletons]
    indices = [config.dataset_index(name) if name in heads else 0 for name in student.datasets]
    return Teacher(
        graphdef=nnx.graphdef(model),
        tensors=tensors if mesh is None else put_parameters(tensors, mesh),
        weight=weight,
        dataset_index=config.dataset_index(heads[0]) if len(heads) == 1 else np.array(indices, np.int32),
        num_keypoints=max(skeleton.num_keypoints for skeleton in student.skeletons),
    )


def with_token(model: VitPose, source: str | Path | VitPose) -> VitPose:
    """The student with the knowledge token of another model instead of its own.

    Args:
        model: the student; its `knowledge_token` has the width of the other model's.
        source: a ViTPose that has learnt a token: a model, or anything `from_pretrained` reads.

    Raises:
        ValueError: if the source has no token, or its token has another width than the student's.
    """
    teacher = source if isinstance(source, VitPose) else load_vitpose(source)
    where = "the token's model" if isinstance(source, VitPose) else str(source)
    if teacher is None or not teacher.config.knowledge_token:
        raise ValueError(f"{where}: expected a ViTPose with a knowledge token, got one without")
    width = teacher.config.knowledge_token
    if width != model.config.knowledge_token:
        raise ValueError(f"{where}: expected a knowledge token of width {model.config.knowledge_token}, got {width}")
    abstract = abstract_vitpose(model.config, dtype=model.backbone.dtype, param_dtype=model.backbone.param_dtype)
    return parameters.fill(abstract, parameters.flatten(model) | {TOKEN: parameters.flatten(teacher)[TOKEN]})


def _differences(teacher: VitPoseConfig, student: VitPoseConfig) -> Iterable[str]:
    for name in ("image_size", "num_channels", "image_mean", "image_std", "heatmap_size"):
        if getattr(teacher, name) != getattr(student, name):
            yield f"{name}: expected {getattr(student, name)}, as the student's, got {getattr(teacher, name)}"
    heads = {skeleton.name: skeleton.keypoints for skeleton in teacher.skeletons}
    for skeleton in student.skeletons:
        if skeleton.name not in heads:
            yield f"expected a head for {skeleton.name}, got heads for {', '.join(heads)}"
        elif heads[skeleton.name] != skeleton.keypoints:
            yield (
                f"head {skeleton.name}: expected the student's {skeleton.num_keypoints} keypoints, "
                f"got {len(heads[skeleton.name])} others"
            )
