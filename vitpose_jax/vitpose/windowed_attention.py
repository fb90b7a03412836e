"""Attention inside windows, for grids with too many patches for attention among all of them.

The grid is cut into windows of a few rows and columns, starting at the top left corner. Windows at the bottom and right
border can be smaller. Each patch attends to the patches of its own window. Two options connect the windows:

    shift    in every second block the windows are moved down and to the right by half a window, as in Swin (Liu et al.
             2021, arXiv:2103.14030); the patches above and to the left of the moved windows form windows of their own
    pool     each window also attends to the mean of every window, its own included; the means are always taken over
             the windows that are not shifted

There are no extra parameters. All blocks have the same shapes, so one scan runs over them: the grid is padded to whole
windows, a shift rolls patches from one border to the opposite one, and a mask separates padding and rolled patches from
the others.
"""

import dataclasses
import math
from typing import TypeAlias

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int

from vitpose_jax.vitpose import products
from vitpose_jax.vitpose.config import VitPoseConfig

# Rows and columns by which a block's windows are moved.
Shift: TypeAlias = Int[Array, "2"]


@dataclasses.dataclass(frozen=True)
class Windows:
    """How a grid of patches is cut into windows.

    Attributes:
        grid: rows and columns of patches.
        size: rows and columns of patches in a window; at most the grid's.
        shift: the rows and columns by which the windows of every second block are moved; None for no shift.
        pool: whether windows also attend to the means of all windows.
    """

    grid: tuple[int, int]
    size: tuple[int, int]
    shift: tuple[int, int] | None
    pool: bool

    @property
    def counts(self) -> tuple[int, int]:
        """Rows and columns of windows."""
        return (-(-self.grid[0] // self.size[0]), -(-self.grid[1] // self.size[1]))

    @property
    def padded_grid(self) -> tuple[int, int]:
        """Rows and columns of the grid, padded to whole windows."""
        return (self.counts[0] * self.size[0], self.counts[1] * self.size[1])


def make_windows(config: VitPoseConfig) -> Windows | None:
    """The windows of a model; None for attention among all patches."""
    if config.window_size is None:
        return None
    size = (min(config.window_size[0], config.grid_size[0]), min(config.window_size[1], config.grid_size[1]))
    # Windows as long as the grid are not shifted along it.
    down, across = (side // 2 if side < length else 0 for side, length in zip(size, config.grid_size, strict=True))
    shift = (down, across) if config.window_shift and (down or across) else None
    return Windows(config.grid_size, size, shift, config.window_pool)


def block_shifts(windows: Windows, depth: int) -> Int[Array, "depth 2"] | None:
    """The shift of each block: zero for the first, half a window for the second, and so on. None without shifts."""
    if windows.shift is None:
        return None
    return jnp.arange(depth)[:, None] % 2 * jnp.asarray(windows.shift)


def attend(
    qkv: Float[Array, "n tokens 3 heads head_dim"], windows: Windows, shift: Shift | None = None
) -> Float[Array, "n tokens heads head_dim"]:
    """Multi-head attention inside windows.

    Args:
        qkv: query, key and value of each patch, row by row.
        windows: how the grid is cut.
        shift: the shift of this block, from `block_shifts`.
    """
    inside = partition(qkv, windows, shift)
    query = inside[:, :, :, 0].transpose(0, 1, 3, 2, 4)
    key = inside[:, :, :, 1].transpose(0, 1, 3, 4, 2)
    value = inside[:, :, :, 2].transpose(0, 1, 3, 2, 4)
    visible = mask(windows, shift)
    if windows.pool:
        # The projection is linear, so the mean of the keys is the key of the mean token.
        means = window_means(qkv[:, :, 1:], windows)
        means = jnp.broadcast_to(means[:, None], (*inside.shape[:2], *means.shape[1:]))
        key = jnp.concatenate([key, means[:, :, :, 0].transpose(0, 1, 3, 4, 2)], axis=-1)
        value = jnp.concatenate([value, means[:, :, :, 1].transpose(0, 1, 3, 2, 4)], axis=-2)
        visible = jnp.pad(visible, ((0, 0), (0, 0), (0, means.shape[2])), constant_values=True)
    logits = products.matmul(query, key, jnp.float32) * qkv.shape[-1] ** -0.5
    # Each position attends at least to itself, so no row of the softmax is empty.
    weights = jax.nn.softmax(jnp.where(visible[:, None], logits, -jnp.inf)).astype(qkv.dtype)
    return join(products.matmul(weights, value).transpose(0, 1, 3, 2, 4), windows, shift)


def partition(
    x: Float[Array, "n tokens *features"], windows: Windows, shift: Shift | None = None
) -> Float[Array, "n windows positions *features"]:
    """The patches of each window, row by row. Positions outside the grid are 0."""
    n, _, *features = x.shape
    x = x.reshape(n, *windows.grid, *features)
    x = jnp.pad(x, [(0, 0), *_padding(windows), *[(0, 0)] * len(features)])
    x = x if shift is None else jnp.roll(x, -shift, axis=(1, 2))
    return _cut(x, windows)


def join(
    x: Float[Array, "n windows positions *features"], windows: Windows, shift: Shift | None = None
) -> Float[Array, "n tokens *features"]:
    """The inverse of `partition`."""
    (down, across), (height, width) = windows.counts, windows.size
    n, _, _, *features = x.shape
    x = jnp.swapaxes(x.reshape(n, down, across, height, width, *features), 2, 3)
    x = x.reshape(n, *windows.padded_grid, *features)
    x = x if shift is None else jnp.roll(x, shift, axis=(1, 2))
    rows, columns = windows.grid
    return x[:, :rows, :columns].reshape(n, rows * columns, *features)


def mask(windows: Windows, shift: Shift | None = None) -> Bool[Array, "windows positions positions"]:
    """Which positions of a window attend to each other: positions inside the grid, on the same side of its borders."""
    part = jnp.zeros(windows.padded_grid, jnp.int32)
    outside = jnp.zeros(windows.padded_grid, bool)
    for axis in (0, 1):
        index = jnp.arange(windows.padded_grid[axis]) + (0 if shift is None else shift[axis])
        rolled = index >= windows.padded_grid[axis]
        padding = index % windows.padded_grid[axis] >= windows.grid[axis]
        part = 2 * part + jnp.expand_dims(rolled, 1 - axis)
        outside |= jnp.expand_dims(padding, 1 - axis)
    parts = _cut(jnp.where(outside, -1, part)[None], windows)[0]
    return parts[:, :, None] == parts[:, None, :]


def window_means(x: Float[Array, "n tokens *features"], windows: Windows) -> Float[Array, "n windows *features"]:
    """The mean of the patches of each window, without shift."""
    ones = np.ones(windows.grid, np.float32)
    counts = jnp.sum(_cut(jnp.pad(ones, _padding(windows))[None], windows)[0], axis=-1)
    sums = jnp.sum(partition(x, windows), axis=2, dtype=jnp.float32)
    return (sums / counts.reshape(-1, *[1] * (x.ndim - 2))).astype(x.dtype)


def _padding(windows: Windows) -> list[tuple[int, int]]:
    """For `jnp.pad`: the rows and columns that the last windows lack."""
    return [(0, padded - side) for padded, side in zip(windows.padded_grid, windows.grid, strict=True)]


def _cut(x: Array, windows: Windows) -> Array:
    """A padded grid, (n, rows, columns, ...), as (n, windows, positions, ...)."""
    (down, across), (height, width) = windows.counts, windows.size
    n, _, _, *features = x.shape
    x = jnp.swapaxes(x.reshape(n, down, height, across, width, *features), 2, 3)
    return x.reshape(n, down * across, math.prod(windows.size), *features)
