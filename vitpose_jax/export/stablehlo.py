"""Models as StableHLO programs, by `jax.export`; program.py reads them and draws the file."""

import hashlib
import pathlib
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.export
import jax.numpy as jnp
import numpy as np
from flax import nnx

from vitpose_jax import __version__
from vitpose_jax.export.metadata import KEY, Metadata, array_spec
from vitpose_jax.export.program import PROGRAM
from vitpose_jax.pipeline.packing import PackedImages
from vitpose_jax.pipeline.predict import predict
from vitpose_jax.storage import parameters
from vitpose_jax.storage.tensors import write_safetensors
from vitpose_jax.vitpose.modeling import VitPose, abstract_vitpose

PLATFORMS = ("cpu", "cuda", "rocm", "tpu")


class Program(NamedTuple):
    """A model as a program and its weights.

    Attributes:
        serialized: of `jax.export`.
        weights: by flat name, in the order in which the program takes them.
        metadata: without the checksum.
    """

    serialized: bytes
    weights: dict[str, np.ndarray]
    metadata: Metadata


def check_platforms(platforms: Sequence[str]) -> None:
    """Check names of platforms.

    Raises:
        ValueError: for none, an unknown one, or one that is named twice.
    """
    if not platforms or set(platforms) - set(PLATFORMS) or len(set(platforms)) < len(platforms):
        raise ValueError(
            f"platforms: expected one or more of {', '.join(PLATFORMS)}, each once, "
            f"got {', '.join(platforms) or 'none'}"
        )


def build_program(
    model: VitPose, part: str, *, platforms: Sequence[str], batch: int | None, options: dict[str, Any]
) -> Program:
    """Trace and lower a model; nothing is computed.

    Args:
        model: with one head and no experts: see `VitPose.specialize`.
        part: "network" or "path".
        platforms: on which the program shall run.
        batch: the number of crops, or None for any.
        options: of the path, for `predict`.
    """
    check_platforms(platforms)
    config = model.config
    graphdef, state = nnx.split(model)
    leaves, structure = jax.tree.flatten(state)
    names = {id(leaf): name for name, leaf in parameters.flatten(model).items()}
    any_batch, any_pixels = jax.export.symbolic_shape("n, p")
    count = any_batch if batch is None else batch

    def network(leaves, crops):
        return nnx.merge(graphdef, jax.tree.unflatten(structure, leaves))(crops).astype(jnp.float32)

    def path(leaves, pixels, shapes, boxes):
        model = nnx.merge(graphdef, jax.tree.unflatten(structure, leaves))
        return predict(model, PackedImages(pixels, shapes), boxes, **options)

    if part == "network":
        function, inputs = network, {"crops": ((count, *config.image_size, config.num_channels), "float32")}
        outputs = ("heatmaps",)
    else:
        function, outputs = path, ("keypoints", "scores", "covariances")
        inputs = {
            "pixels": ((any_pixels, 3), "uint8"),
            "shapes": ((count, 3), "int32"),
            "boxes": ((count, 4), "float32"),
        }
    exported = jax.export.export(jax.jit(function), platforms=list(platforms))(
        [jax.ShapeDtypeStruct(leaf.shape, leaf.dtype) for leaf in leaves],
        *(jax.ShapeDtypeStruct(shape, dtype) for shape, dtype in inputs.values()),
    )
    stored = _stored_dtypes(model)
    weights = {
        name: np.asarray(leaf).astype(stored[name]) for name, leaf in ((names[id(leaf)], leaf) for leaf in leaves)
    }
    metadata = Metadata(
        part=part,
        config=config.to_dict(),
        dtype=jnp.dtype(model.backbone.dtype).name,
        inputs=[array_spec(name, _sides(shape), dtype) for name, (shape, dtype) in inputs.items()],
        outputs=[
            array_spec(name, _sides(out.shape), out.dtype.name)
            for name, out in zip(outputs, exported.out_avals, strict=True)
        ],
        options=options if part == "path" else {},
        platforms=list(platforms),
        versions={"vitpose_jax": __version__, "jax": jax.__version__},
        weights=list(weights),
    )
    return Program(bytes(exported.serialize()), weights, metadata)


def write_program(program: Program, path: pathlib.Path) -> Metadata:
    """Write a StableHLO file, and return its metadata with the checksum. The file must not exist."""
    digest = hashlib.sha256(program.serialized)
    for array in program.weights.values():
        digest.update(array.reshape(-1).view(np.uint8).data)
    values = {**vars(program.metadata), "sha256": digest.hexdigest()}
    metadata = Metadata(**values)
    tensors = {PROGRAM: np.frombuffer(program.serialized, np.uint8), **program.weights}
    write_safetensors(path, tensors, metadata={KEY: metadata.to_json()})
    return metadata


def _stored_dtypes(model: VitPose) -> dict[str, Any]:
    """The dtype in which each weight is stored: that of the computation where the network rounds it to that anyway.

    Integers stay integers. On CPUs a bfloat16 model holds float32 parameters, because they are faster; the file needs
    only half of the bytes.
    """
    dtype = model.backbone.dtype
    narrow = parameters.flatten(
        abstract_vitpose(model.config, dtype=dtype, param_dtype=dtype, quantization=model.quantization)
    )
    return {
        name: min(np.dtype(leaf.dtype), np.dtype(narrow[name].dtype), key=lambda kind: kind.itemsize)
        for name, leaf in parameters.flatten(model).items()
    }


def _sides(shape: tuple[Any, ...]) -> tuple[int | str, ...]:
    return tuple(side if isinstance(side, int) else str(side) for side in shape)
