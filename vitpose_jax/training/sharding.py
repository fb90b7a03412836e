"""Training on several devices and several machines.

The mesh has two axes. Crops of a batch are shared out over both. Parameters, with what the optimiser keeps of them,
are whole on every device of "data" and shared out over "fsdp" (fully sharded data parallelism): with fsdp=1, plain
data parallelism, every device holds all of them. XLA puts in the communication.

BatchNorm uses the whole batch, whatever the number of devices.
"""

from collections.abc import Sequence
from typing import Any, TypeVar

import jax
import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from vitpose_jax.training.name_rules import match_rules

AXES = ("data", "fsdp")
Tree = TypeVar("Tree")

# The first axis that may be shared out; None for none. Blocks are scanned over along their axis 0.
FSDP = (
    (r".+[._]bias|.+\.scale|.+\.mean|.+\.var|.+\.token", None),
    (r"backbone\.blocks\..+", 1),
    (r".+", 0),
)


def make_mesh(data: int | None = None, fsdp: int = 1, *, devices: Sequence[jax.Device] | None = None) -> Mesh:
    """A mesh of devices.

    Args:
        data: devices, or groups of `fsdp` devices, that each hold the whole state; None for all there are.
        fsdp: devices that share one state.
        devices: None for all, those of other processes included.

    Raises:
        ValueError: where data x fsdp is not the number of devices.
    """
    # Process by process: each has a stretch of every batch to itself.
    devices = sorted(
        jax.devices() if devices is None else devices, key=lambda device: (device.process_index, device.id)
    )
    if fsdp < 1 or len(devices) % fsdp:
        raise ValueError(f"mesh: fsdp: expected a divisor of the {len(devices)} devices, got {fsdp}")
    data = len(devices) // fsdp if data is None else data
    if data * fsdp != len(devices):
        raise ValueError(f"mesh: data x fsdp: expected {len(devices)}, the number of devices, got {data} x {fsdp}")
    return Mesh(np.asarray(devices).reshape(data, fsdp), AXES, axis_types=(AxisType.Auto, AxisType.Auto))


def replicated(mesh: Mesh) -> NamedSharding:
    """Whole on every device."""
    return NamedSharding(mesh, PartitionSpec())


def batch_sharding(mesh: Mesh) -> NamedSharding:
    """Axis 0 is shared out over all devices."""
    return NamedSharding(mesh, PartitionSpec(AXES))


def parameter_specs(shapes: dict[str, tuple[int, ...]], fsdp: int) -> dict[str, PartitionSpec]:
    """For each parameter, which of its axes is shared out over "fsdp".

    Args:
        shapes: by flat name.
        fsdp: number of devices that share.

    Returns:
        By name: the largest of the axes that `FSDP` allows and whose length `fsdp` divides; of equal ones the last.
        Parameters without such an axis are whole everywhere.
    """
    specs = {}
    for name, first in match_rules(FSDP, shapes).items():
        shape = shapes[name]
        axes = [] if first is None else [axis for axis in range(first, len(shape)) if shape[axis] % fsdp == 0]
        specs[name] = PartitionSpec()
        if axes and fsdp > 1:
            largest = max(axes, key=lambda axis: (shape[axis], axis))
            specs[name] = PartitionSpec(*(None,) * largest, "fsdp")
    return specs


def state_sharding(state: Tree, mesh: Mesh) -> Tree:
    """How a `TrainState` lies on a mesh: what belongs to a parameter, as that parameter; all else whole everywhere.

    Args:
        state: or its shapes; anything in which parameters, their moments and averages stand under flat names.
    """
    leaves = jax.tree_util.tree_leaves_with_path(state)
    shapes = {_name(path): leaf.shape for path, leaf in leaves if leaf.ndim and _name(path)}
    specs = parameter_specs(shapes, mesh.shape["fsdp"])
    return jax.tree_util.tree_map_with_path(
        lambda path, leaf: NamedSharding(mesh, specs.get(_name(path), PartitionSpec())), state
    )


def _name(path: tuple[Any, ...]) -> str | None:
    """The flat name a leaf stands under."""
    last = path[-1] if path else None
    return last.key if isinstance(last, jax.tree_util.DictKey) and isinstance(last.key, str) else None


def put_batch(batch: Tree, mesh: Mesh) -> Tree:
    """A batch on the devices of a mesh; in several processes, the batch of all.

    Args:
        batch: a `TrainingBatch` of host arrays, in each process its own share of the crops, all of one number, with
            the images of these.

    Raises:
        ValueError: where the devices of this process do not divide the number of crops.
    """
    n, devices = len(batch.shapes), mesh.local_mesh.size
    if n % devices:
        raise ValueError(f"batch: expected a multiple of the {devices} devices of a process, got {n} crops")
    rows = len(batch.pixels)
    if jax.process_count() > 1:
        rows = int(np.max(multihost_utils.process_allgather(np.asarray([rows]))))
    rows = -(-rows // devices) * devices
    pixels = np.pad(batch.pixels, ((0, rows - len(batch.pixels)), (0, 0)))
    # Images of this process begin behind those of the processes before it.
    starts = np.array([jax.process_index() * rows, 0, 0], batch.shapes.dtype)
    batch = batch._replace(pixels=pixels, shapes=batch.shapes + starts)
    sharding = batch_sharding(mesh)
    return jax.tree.map(lambda leaf: jax.make_array_from_process_local_data(sharding, np.asarray(leaf)), batch)


def put_parameters(tensors: dict[str, Any], mesh: Mesh) -> dict[str, jax.Array]:
    """Parameters by flat name on the devices of a mesh, as those of a state lie there."""
    tensors = {name: np.asarray(leaf) for name, leaf in tensors.items()}
    specs = parameter_specs({name: leaf.shape for name, leaf in tensors.items()}, mesh.shape["fsdp"])
    return {name: jax.device_put(leaf, NamedSharding(mesh, specs[name])) for name, leaf in tensors.items()}


def to_host(tree: Tree) -> Tree:
    """Whole arrays in the memory of the host, of every process."""
    if jax.process_count() > 1:
        return jax.tree.map(lambda leaf: np.asarray(multihost_utils.process_allgather(leaf, tiled=True)), tree)
    return jax.device_get(tree)
