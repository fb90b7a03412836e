"""A function of modules, compiled once for each shape: split, flatten, jit, merge."""

import contextlib
from collections.abc import Callable, Sequence
from typing import Any

import jax
from flax import nnx

from vitpose_jax.storage.forks import check_not_forked
from vitpose_jax.vitpose.prepared import prepare_for_cpu


class Program:
    """A function whose first argument is a module (or a tuple of them), compiled by `jax.jit`.

    The module is split and flattened once; bare arrays cross into the program, and the module is merged inside it.
    That dispatches much faster than handing over a module, and a hundred times faster than `nnx.jit`
    (benchmarks/variants.py). On CPUs the blocks of a backbone are taken apart (vitpose/prepared.py). Later changes to
    the module are not seen.

    Args:
        modules: an `nnx.Module`, or a tuple of them.
        function: called as `function(modules, *arrays, **options)`, with arrays or pytrees of them.
        options: names of keyword arguments that are static: each value compiles a program of its own.
        sharding: where the parameters lie; None for JAX's default device.
    """

    def __init__(
        self,
        modules: Any,
        function: Callable[..., Any],
        *,
        options: Sequence[str] = (),
        sharding: jax.sharding.Sharding | None = None,
    ):
        check_not_forked()
        arrays = [leaf for leaf in jax.tree.leaves(nnx.split(modules)[1]) if isinstance(leaf, jax.Array)]
        devices = {device for array in arrays for device in array.devices()}
        if sharding is None and len(devices) > 1:
            # Loaded where the caller had set a mesh.
            sharding = jax.sharding.SingleDeviceSharding(jax.local_devices()[0])
        devices |= set() if sharding is None else sharding.device_set
        if all(device.platform == "cpu" for device in devices) and all(array.is_fully_addressable for array in arrays):
            modules = prepare_for_cpu(modules)
        graphdef, state = nnx.split(modules)
        leaves, structure = jax.tree.flatten(state)
        self._leaves = jax.device_put(leaves, sharding)
        # The caller may have set a mesh of another kind, with axes of the type Explicit.
        self._mesh: Any = sharding.mesh if isinstance(sharding, jax.sharding.NamedSharding) else None

        def run(leaves, *arrays, **options):
            return function(nnx.merge(graphdef, jax.tree.unflatten(structure, leaves)), *arrays, **options)

        self._run: Any = jax.jit(run, static_argnames=tuple(options))

    def __call__(self, *arrays: Any, **options: Any) -> Any:
        """Start the program; its results are arrays that JAX may still be computing."""
        check_not_forked()
        with contextlib.nullcontext() if self._mesh is None else jax.set_mesh(self._mesh):
            return self._run(self._leaves, *arrays, **options)

    @property
    def device_kind(self) -> str:
        """The kind of the first device: "cpu", "NVIDIA H100 80GB HBM3", "TPU v5 lite", ..."""
        return self._leaves[0].devices().pop().device_kind

    @property
    def num_compiled(self) -> int:
        """The number of programs compiled so far."""
        return self._run._cache_size()
