"""Training on several devices and several machines.

The mesh has two axes, "data" and "fsdp". The crops of a batch are split over both. Parameters and the optimiser's
moments are replicated over "data" and split over "fsdp" (fully sharded data parallelism). With fsdp=1 every device
holds all of them: plain data parallelism. XLA inserts the communication.

BatchNorm uses the whole batch on any number of devices.
"""

from collections.abc import Sequence
from typing import Any, TypeVar

import jax
import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from vitpose_jax.pipeline.packing import PackedImages
from vitpose_jax.training.data import TrainingBatch
from vitpose_jax.training.name_rules import match_rules

AXES = ("data", "fsdp")
Tree = TypeVar("Tree")

# Whether a parameter may be split.
FSDP = ((r".+[._]bias|.+\.scale|.+\.mean|.+\.var|.+\.token", False), (r".+", True))
# Axis 0 of these is the block. It is scanned over, and never split.
STACKED = "backbone.blocks."


def make_mesh(data: int | None = None, fsdp: int = 1, *, devices: Sequence[jax.Device] | None = None) -> Mesh:
    """A mesh of devices.

    Args:
        data: number of groups; each holds the whole state. None for as many as there are devices for.
        fsdp: devices in a group.
        devices: None for all devices of all processes.

    Raises:
        ValueError: if data x fsdp is not the number of devices.
    """
    # Sorted by process: each process has a contiguous part of every batch.
    devices = sorted(
        jax.devices() if devices is None else devices, key=lambda device: (device.process_index, device.id)
    )
    if fsdp < 1 or len(devices) % fsdp:
        raise ValueError(f"mesh: fsdp: expected a divisor of the {len(devices)} devices, got {fsdp}")
    data = len(devices) // fsdp if data is None else data
    if data * fsdp != len(devices):
        raise ValueError(f"mesh: data x fsdp: expected {len(devices)}, the number of devices, got {data} x {fsdp}")
    return Mesh(np.asarray(devices).reshape(data, fsdp), AXES, axis_types=(AxisType.Auto, AxisType.Auto))


def check_mesh(mesh: Mesh) -> Mesh:
    """A mesh as `make_mesh` makes it; `jax.make_mesh` makes axes of the type Explicit, which needs other programs.

    Raises:
        ValueError: for other axes, or axes of another type.
    """
    if mesh.axis_names != AXES or set(mesh.axis_types) != {AxisType.Auto}:
        axes = ", ".join(f"{name} {kind.name}" for name, kind in zip(mesh.axis_names, mesh.axis_types, strict=True))
        raise ValueError(
            "mesh: expected the axes data and fsdp of the type Auto, as from vitpose_jax.training.make_mesh, "
            f"got {axes}"
        )
    return mesh


def replicated(mesh: Mesh) -> NamedSharding:
    """The sharding that puts whole arrays on every device."""
    return NamedSharding(mesh, PartitionSpec())


def batch_sharding(mesh: Mesh) -> NamedSharding:
    """The sharding that splits axis 0 over all devices."""
    return NamedSharding(mesh, PartitionSpec(AXES))


def parameter_specs(shapes: dict[str, tuple[int, ...]], fsdp: int) -> dict[str, PartitionSpec]:
    """The axis of each parameter that is split over "fsdp".

    Args:
        shapes: by flat name.
        fsdp: devices in a group.

    Returns:
        By flat name: the longest of the axes that `FSDP` allows and whose length is a multiple of `fsdp`; of equal ones
        the last. Parameters without such an axis are replicated.
    """
    specs = {}
    for name, splits in match_rules(FSDP, shapes).items():
        shape, first = shapes[name], 1 if name.startswith(STACKED) else 0
        axes = [axis for axis in range(first, len(shape)) if splits and shape[axis] % fsdp == 0]
        specs[name] = PartitionSpec()
        if axes and fsdp > 1:
            largest = max(axes, key=lambda axis: (shape[axis], axis))
            specs[name] = PartitionSpec(*(None,) * largest, "fsdp")
    return specs


def state_sharding(state: Tree, mesh: Mesh) -> Tree:
    """The shardings of a `TrainState`: moments and averages as their parameter, everything else replicated.

    Args:
        state: a state or its shapes. Parameters, moments and averages are in dicts by flat name.
        mesh: from `make_mesh`.
    """
    leaves = jax.tree_util.tree_leaves_with_path(state)
    shapes = {_name(path): leaf.shape for path, leaf in leaves if leaf.ndim and _name(path)}
    specs = parameter_specs(shapes, check_mesh(mesh).shape["fsdp"])
    return jax.tree_util.tree_map_with_path(
        lambda path, leaf: NamedSharding(mesh, specs.get(_name(path), PartitionSpec())), state
    )


def _name(path: tuple[Any, ...]) -> str:
    """The flat name of a leaf; empty if it is not in a dict."""
    if path and isinstance(path[-1], jax.tree_util.DictKey) and isinstance(path[-1].key, str):
        return path[-1].key
    return ""


def gather_parameters(tensors: Tree, mesh: Mesh | None) -> Tree:
    """Parameters as a step computes with them: every device gets all of each.

    Left alone, XLA splits layers as their parameters are split, and sends activations back and forth: several times
    as much.

    Args:
        tensors: by flat name, split as `state_sharding` says.
        mesh: from `make_mesh`; None for one device, which has all.
    """
    return tensors if mesh is None else jax.lax.with_sharding_constraint(tensors, replicated(mesh))


def split_gradients(gradients: Tree, mesh: Mesh | None) -> Tree:
    """Gradients split as their parameters are: each device gets the sum of its part.

    Args:
        gradients: by flat name.
        mesh: as in `gather_parameters`.
    """
    return gradients if mesh is None else jax.lax.with_sharding_constraint(gradients, state_sharding(gradients, mesh))


def put_batch(batch: Tree, mesh: Mesh) -> Tree:
    """A batch on the devices of a mesh: the parts of all processes together.

    Args:
        batch: host arrays whose axis 0 is the sample: this process's part. The number of samples is the same in all
            processes. In a `TrainingBatch` the samples are crops, and come with their images.
        mesh: from `make_mesh`.

    Raises:
        ValueError: if the number of samples is not a multiple of this process's devices.
    """
    check_mesh(mesh)
    n, devices = len(jax.tree.leaves(batch)[-1]), mesh.local_mesh.size
    if n % devices:
        raise ValueError(f"batch: expected a multiple of the {devices} devices of a process, got {n} samples")
    if isinstance(batch, TrainingBatch):
        batch = batch._replace(images=_split_pixels(batch.images, devices))
    sharding = batch_sharding(mesh)
    return jax.tree.map(lambda leaf: jax.make_array_from_process_local_data(sharding, np.asarray(leaf)), batch)


def _split_pixels(images: PackedImages, devices: int) -> PackedImages:
    """Images in a pixel buffer that can be split, with their places in the global one."""
    pixels, shapes = map(np.asarray, images)
    rows = len(pixels)
    if jax.process_count() > 1:
        rows = int(np.max(multihost_utils.process_allgather(np.asarray([rows]))))
    rows = -(-rows // devices) * devices
    # The images of this process come after those of earlier processes in the global pixel buffer.
    starts = np.array([jax.process_index() * rows, 0, 0], shapes.dtype)
    return PackedImages(np.pad(pixels, ((0, rows - len(pixels)), (0, 0))), shapes + starts)


def put_parameters(tensors: dict[str, Any], mesh: Mesh) -> dict[str, jax.Array]:
    """Parameters by flat name on the devices of a mesh, sharded as in a state."""
    tensors = {name: np.asarray(leaf) for name, leaf in tensors.items()}
    specs = parameter_specs({name: leaf.shape for name, leaf in tensors.items()}, check_mesh(mesh).shape["fsdp"])
    return {name: jax.device_put(leaf, NamedSharding(mesh, specs[name])) for name, leaf in tensors.items()}


def to_host(tree: Tree) -> Tree:
    """Whole arrays in host memory, in every process."""
    if jax.process_count() > 1:
        return jax.tree.map(lambda leaf: np.asarray(multihost_utils.process_allgather(leaf, tiled=True)), tree)
    return jax.device_get(tree)
