"""Parameters by flat name: "backbone.blocks.attention.qkv.kernel" -> array.

Checkpoints, conversion and training use these names. BatchNorm's running mean and variance count as parameters here: a
model cannot be rebuilt without them.
"""

from collections.abc import Callable, Iterable, Mapping
from typing import Any, TypeVar

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array

from vitpose_jax.storage import text
from vitpose_jax.storage.finite import all_finite
from vitpose_jax.storage.forks import check_not_forked
from vitpose_jax.storage.tensors import LazyTensor

Model = TypeVar("Model", bound=nnx.Module)


def flatten(module: nnx.Module) -> dict[str, Array | jax.ShapeDtypeStruct]:
    """Every parameter and running statistic of a module by its flat name, sorted."""
    flat = nnx.to_flat_state(nnx.state(module))
    return dict(sorted((".".join(map(str, path)), variable.get_value()) for path, variable in flat))


def shapes(module: nnx.Module) -> dict[str, tuple[int, ...]]:
    """The shape of every parameter and running statistic of a module, by flat name."""
    return {name: tuple(leaf.shape) for name, leaf in flatten(module).items()}


def abstract(create: Callable[[], Model]) -> Model:
    """The module that `create` returns, with shapes and dtypes instead of arrays: nothing is computed."""
    return nnx.eval_shape(create)


def fill(module: Model, tensors: Mapping[str, Any], *, source: str = "the tensors") -> Model:
    """Put tensors into an abstract module. Every place is filled, and every tensor is used.

    Args:
        module: from `abstract`. Tensors are cast to its dtypes.
        tensors: by flat name; arrays, or objects with a `shape` that `__array__` turns into an array. They are read one
            at a time.
        source: where the tensors come from, for the error message.

    Returns:
        The module, with arrays.

    Raises:
        ValueError: listing at once every tensor that is missing, unexpected or of another shape.
    """
    expected = shapes(module)
    raise_problems(differences(expected, tensors), source=source)
    return fill_checked(module, tensors)


def fill_checked(module: Model, tensors: Mapping[str, Any], *, check_finite: bool = False) -> Model:
    """As `fill`, for tensors whose names and shapes were compared with the module's before.

    Args:
        module, tensors: as in `fill`.
        check_finite: raise an error for a number that the module's dtype cannot hold. That the tensors themselves are
            finite is checked where they are read (`storage/finite.py`).

    Raises:
        ValueError: naming the tensor that overflows.
        RuntimeError: in a process that was forked after JAX was used.
    """
    check_not_forked()
    graphdef, state = nnx.split(module)
    for path, variable in nnx.to_flat_state(state):
        name = ".".join(map(str, path))
        tensor = tensors[name]
        array = np.asarray(tensor)
        if check_finite and _may_overflow(array.dtype, variable.dtype):
            with np.errstate(over="ignore"):
                array = array.astype(variable.dtype)
            if not all_finite(array):
                raise ValueError(f"{name}: expected numbers that {variable.dtype} can hold, got larger ones")
        # On CPUs JAX may use the memory of a NumPy array as it is. What a caller can write to is copied; what is read
        # from a file for this place alone is not.
        copy = not isinstance(tensor, LazyTensor | jax.Array)
        variable.set_value(jnp.array(array, variable.dtype, copy=copy))
    return nnx.merge(graphdef, state)


def _may_overflow(stored: Any, dtype: Any) -> bool:
    return bool(jnp.issubdtype(stored, jnp.floating) and jnp.finfo(stored).max > jnp.finfo(dtype).max)


def raise_problems(problems: Iterable[str], *, source: str) -> None:
    """Raise all problems at once, if there are any.

    Raises:
        ValueError: naming the source and listing the first problems (`text.MOST_PROBLEMS`), one per line.
    """
    problems = list(problems)
    if problems:
        raise ValueError(f"{source}: {len(problems)} problems\n  " + text.join(problems, "\n  "))


def differences(expected: Mapping[str, tuple[int, ...]], tensors: Mapping[str, Any]) -> Iterable[str]:
    """One line for every tensor that is missing, unexpected or of another shape than expected."""
    for name in sorted(set(expected) | set(tensors)):
        if name not in tensors:
            yield f"missing {name}, expected shape {expected[name]}"
        elif name not in expected:
            yield f"unexpected {text.printable(name)}, shape {tuple(tensors[name].shape)}"
        elif tuple(tensors[name].shape) != expected[name]:
            yield f"{name}: expected shape {expected[name]}, got {tuple(tensors[name].shape)}"
