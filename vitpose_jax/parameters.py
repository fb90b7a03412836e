"""Parameters by flat name: "backbone.blocks.attention.qkv.kernel" -> array.

Checkpoints, conversion and everything else that speaks of parameters use these names. BatchNorm's running
mean and variance count as parameters here: a model cannot be rebuilt without them.
"""

from collections.abc import Callable, Iterable, Mapping
from typing import Any, TypeVar

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, Float

Model = TypeVar("Model", bound=nnx.Module)


def flatten(module: nnx.Module) -> dict[str, Array | jax.ShapeDtypeStruct]:
    """Every parameter and running statistic of a module by its flat name, sorted."""
    flat = nnx.to_flat_state(nnx.state(module))
    return dict(sorted((".".join(map(str, path)), variable.get_value()) for path, variable in flat))


def abstract(create: Callable[[], Model]) -> Model:
    """The module that `create` makes, with shapes in the place of arrays: nothing is computed."""
    return nnx.eval_shape(create)


def fill(module: Model, tensors: Mapping[str, Any], *, source: str = "the tensors") -> Model:
    """Put tensors into an abstract module; all of them, and into every place.

    Args:
        module: from `abstract`; its dtypes are what the tensors are cast to.
        tensors: by flat name; arrays, or anything with a `shape` that becomes one when asked (`__array__`), which
            happens to one at a time.
        source: where they come from, for the error.

    Returns:
        The module, with arrays.

    Raises:
        ValueError: listing at once every tensor that is missing, unexpected or of another shape.
    """
    graphdef, state = nnx.split(module)
    flat = {".".join(map(str, path)): variable for path, variable in nnx.to_flat_state(state)}
    refuse(differences({name: tuple(leaf.shape) for name, leaf in flat.items()}, tensors), source=source)
    for name, variable in flat.items():
        variable.set_value(jnp.asarray(tensors[name], variable.dtype))
    return nnx.merge(graphdef, state)


def refuse(problems: Iterable[str], *, source: str) -> None:
    """Raise all problems at once, if there are any.

    Raises:
        ValueError: naming the source and listing the problems, one a line.
    """
    problems = list(problems)
    if problems:
        raise ValueError(f"{source}: {len(problems)} problems\n  " + "\n  ".join(problems))


def differences(expected: Mapping[str, tuple[int, ...]], tensors: Mapping[str, Any]) -> Iterable[str]:
    """One line for every tensor that is missing, unexpected or of another shape than expected."""
    for name in sorted(set(expected) | set(tensors)):
        if name not in tensors:
            yield f"missing {name}, expected shape {expected[name]}"
        elif name not in expected:
            yield f"unexpected {name}, shape {tuple(tensors[name].shape)}"
        elif tuple(tensors[name].shape) != expected[name]:
            yield f"{name}: expected shape {expected[name]}, got {tuple(tensors[name].shape)}"


def resize_positions(
    pos_embed: Float[np.ndarray, "positions dim"], old_grid: tuple[int, int], new_grid: tuple[int, int]
) -> Float[np.ndarray, "new_positions dim"]:
    """Position embeddings for another grid of patches, by bicubic interpolation.

    Args:
        pos_embed: row 0 belongs to no patch and is kept; then one row for each patch, row by row.
        old_grid, new_grid: rows and columns of patches.

    Returns:
        As pos_embed, for the new grid. Equal to torch's `interpolate(mode="bicubic", align_corners=False)`,
        which the original uses.
    """
    if old_grid == new_grid:
        return pos_embed
    grid = np.asarray(pos_embed[1:], np.float64).reshape(*old_grid, -1)
    rows, columns = (_bicubic_matrix(old, new) for old, new in zip(old_grid, new_grid, strict=True))
    resized = np.einsum("yr,xc,rcd->yxd", rows, columns, grid, optimize=True)
    return np.concatenate([pos_embed[:1], resized.reshape(-1, grid.shape[-1]).astype(pos_embed.dtype)])


def _bicubic_matrix(old: int, new: int) -> Float[np.ndarray, "new old"]:
    # Keys' cubic convolution with a = -0.75, half-pixel centres, edge rows repeated.
    a = -0.75
    places = (np.arange(new) + 0.5) * old / new - 0.5
    base = np.floor(places).astype(int)
    matrix = np.zeros((new, old))
    for tap in (-1, 0, 1, 2):
        distance = np.abs(places - base - tap)
        near = (a + 2) * distance**3 - (a + 3) * distance**2 + 1
        far = a * (distance**3 - 5 * distance**2 + 8 * distance - 4)
        np.add.at(matrix, (np.arange(new), np.clip(base + tap, 0, old - 1)), np.where(distance <= 1, near, far))
    return matrix
