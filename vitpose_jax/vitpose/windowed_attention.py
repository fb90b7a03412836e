"""Attention inside windows: for grids of so many patches that all of them cannot attend to all.

The grid is cut into windows of some rows and columns, from its top left corner; those at the lower and right border
may be cut off. A patch attends to the patches of its window. Two ways let windows hear of each other:

    shift    in every second block the borders are moved down and to the right by half a window, as in Swin (Liu et
             al. 2021, arXiv:2103.14030): what moves in at the top and left are windows of their own
    pool     every window also attends to the mean of each window, itself included; shifted or not, these are the
             windows that begin in the corner

None of this has parameters. What a shift moves over one border comes back at the other and is kept apart by the mask,
as is what fills up the last windows: so all blocks have the same shapes and are scanned over.
"""

import dataclasses
import math

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int

from vitpose_jax.vitpose.config import VitPoseConfig

Shift = Int[Array, "2"]


@dataclasses.dataclass(frozen=True)
class Windows:
    """How a grid is cut.

    Attributes:
        grid: its rows and columns.
        size: those of a window; not more than the grid's.
        shift: by how many rows and columns the windows of every second block are moved; None for not at all.
        pool: whether windows also attend to the means.
    """

    grid: tuple[int, int]
    size: tuple[int, int]
    shift: tuple[int, int] | None
    pool: bool

    @property
    def numbers(self) -> tuple[int, int]:
        """Rows and columns of windows."""
        return (-(-self.grid[0] // self.size[0]), -(-self.grid[1] // self.size[1]))

    @property
    def filled(self) -> tuple[int, int]:
        """Rows and columns of the grid, filled up so that all windows are whole."""
        return (self.numbers[0] * self.size[0], self.numbers[1] * self.size[1])


def windows_of(config: VitPoseConfig) -> Windows | None:
    """The windows of a model; None for attention among all patches."""
    if config.window_size is None:
        return None
    size = (min(config.window_size[0], config.grid_size[0]), min(config.window_size[1], config.grid_size[1]))
    # A window as long as the grid has nowhere to go.
    halves = tuple(side // 2 if side < whole else 0 for side, whole in zip(size, config.grid_size, strict=True))
    shift = halves if config.window_shift and any(halves) else None
    return Windows(config.grid_size, size, shift, config.window_pool)


def block_shifts(windows: Windows, depth: int) -> Int[Array, "depth 2"] | None:
    """The shift of each block: none for the first, half a window for the second, and so on."""
    if windows.shift is None:
        return None
    return jnp.arange(depth)[:, None] % 2 * jnp.asarray(windows.shift)


def attend(
    qkv: Float[Array, "n tokens 3 heads head_dim"], windows: Windows, shift: Shift | None = None
) -> Float[Array, "n tokens heads head_dim"]:
    """Multi-head attention inside windows.

    Args:
        qkv: query, key and value of every patch, row by row.
        windows: of the grid.
        shift: of this block, from `block_shifts`.
    """
    inside = partition(qkv, windows, shift)
    query = inside[:, :, :, 0].transpose(0, 1, 3, 2, 4)
    key = inside[:, :, :, 1].transpose(0, 1, 3, 4, 2)
    value = inside[:, :, :, 2].transpose(0, 1, 3, 2, 4)
    visible = mask(windows, shift)
    if windows.pool:
        # The projection is linear: the mean of the keys is the key of the mean token.
        means = window_means(qkv[:, :, 1:], windows)
        means = jnp.broadcast_to(means[:, None], (*inside.shape[:2], *means.shape[1:]))
        key = jnp.concatenate([key, means[:, :, :, 0].transpose(0, 1, 3, 4, 2)], axis=-1)
        value = jnp.concatenate([value, means[:, :, :, 1].transpose(0, 1, 3, 2, 4)], axis=-2)
        visible = jnp.pad(visible, ((0, 0), (0, 0), (0, means.shape[2])), constant_values=True)
    logits = jnp.matmul(query, key, preferred_element_type=jnp.float32) * qkv.shape[-1] ** -0.5
    # A place always sees itself: no row of the softmax is empty.
    weights = jax.nn.softmax(jnp.where(visible[:, None], logits, -jnp.inf)).astype(qkv.dtype)
    return join((weights @ value).transpose(0, 1, 3, 2, 4), windows, shift)


def partition(
    x: Float[Array, "n tokens *features"], windows: Windows, shift: Shift | None = None
) -> Float[Array, "n windows places *features"]:
    """The patches of each window; places outside the grid are 0."""
    n, _, *features = x.shape
    x = x.reshape(n, *windows.grid, *features)
    missing = [(0, whole - side) for whole, side in zip(windows.filled, windows.grid, strict=True)]
    x = jnp.pad(x, [(0, 0), *missing, *[(0, 0)] * len(features)])
    x = x if shift is None else jnp.roll(x, -shift, axis=(1, 2))
    return _cut(x, windows)


def join(
    x: Float[Array, "n windows places *features"], windows: Windows, shift: Shift | None = None
) -> Float[Array, "n tokens *features"]:
    """The inverse of `partition`."""
    (down, across), (height, width) = windows.numbers, windows.size
    n, _, _, *features = x.shape
    x = jnp.swapaxes(x.reshape(n, down, across, height, width, *features), 2, 3)
    x = x.reshape(n, *windows.filled, *features)
    x = x if shift is None else jnp.roll(x, shift, axis=(1, 2))
    rows, columns = windows.grid
    return x[:, :rows, :columns].reshape(n, rows * columns, *features)


def mask(windows: Windows, shift: Shift | None = None) -> Bool[Array, "windows places places"]:
    """Which places of a window see each other: those of the grid that no border parts."""
    part = jnp.zeros(windows.filled, jnp.int32)
    outside = jnp.zeros(windows.filled, bool)
    for axis in (0, 1):
        index = jnp.arange(windows.filled[axis]) + (0 if shift is None else shift[axis])
        returned = index >= windows.filled[axis]
        beyond = index % windows.filled[axis] >= windows.grid[axis]
        part = 2 * part + jnp.expand_dims(returned, 1 - axis)
        outside |= jnp.expand_dims(beyond, 1 - axis)
    parts = _cut(jnp.where(outside, -1, part)[None], windows)[0]
    return parts[:, :, None] == parts[:, None, :]


def window_means(x: Float[Array, "n tokens *features"], windows: Windows) -> Float[Array, "n windows *features"]:
    """The mean of the patches of each window, not shifted."""
    ones = np.ones(windows.grid, np.float32)
    missing = [(0, whole - side) for whole, side in zip(windows.filled, windows.grid, strict=True)]
    counts = jnp.sum(_cut(jnp.pad(ones, missing)[None], windows)[0], axis=-1)
    sums = jnp.sum(partition(x, windows), axis=2, dtype=jnp.float32)
    return (sums / counts.reshape(-1, *[1] * (x.ndim - 2))).astype(x.dtype)


def _cut(x: Array, windows: Windows) -> Array:
    """A filled grid, (n, rows, columns, ...), as (n, windows, places, ...)."""
    (down, across), (height, width) = windows.numbers, windows.size
    n, _, _, *features = x.shape
    x = jnp.swapaxes(x.reshape(n, down, height, across, width, *features), 2, 3)
    return x.reshape(n, down * across, math.prod(windows.size), *features)
