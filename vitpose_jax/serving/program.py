"""A function of modules, compiled once for each shape: split, flatten, jit, merge."""

from collections.abc import Callable, Sequence
from typing import Any

import jax
from flax import nnx


class Program:
    """A function whose first argument is a module (or a tuple of them), compiled by `jax.jit`.

    The module is split and flattened once; bare arrays cross into the program, and the module is merged inside it.
    That dispatches much faster than handing over a module, and a hundred times faster than `nnx.jit`
    (benchmarks/variants.py). Later changes to the module are not seen.

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
        graphdef, state = nnx.split(modules)
        leaves, structure = jax.tree.flatten(state)
        self._leaves = jax.device_put(leaves, sharding)

        def run(leaves, *arrays, **options):
            return function(nnx.merge(graphdef, jax.tree.unflatten(structure, leaves)), *arrays, **options)

        self._run: Any = jax.jit(run, static_argnames=tuple(options))

    def __call__(self, *arrays: Any, **options: Any) -> Any:
        """Start the program; its results are arrays that JAX may still be computing."""
        return self._run(self._leaves, *arrays, **options)

    @property
    def device_kind(self) -> str:
        """The kind of the first device: "cpu", "NVIDIA H100 80GB HBM3", "TPU v5 lite", ..."""
        return self._leaves[0].devices().pop().device_kind

    @property
    def num_compiled(self) -> int:
        """The number of programs compiled so far."""
        return self._run._cache_size()
