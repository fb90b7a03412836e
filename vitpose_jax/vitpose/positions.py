"""Position embeddings resized to another grid of patches."""

import numpy as np
from jaxtyping import Float


def resize_positions(
    pos_embed: Float[np.ndarray, "positions dim"], old_grid: tuple[int, int], new_grid: tuple[int, int]
) -> Float[np.ndarray, "new_positions dim"]:
    """Resize position embeddings to another grid of patches, by bicubic interpolation.

    Args:
        pos_embed: row 0 belongs to no patch and stays as it is; then one row for each patch, row by row.
        old_grid, new_grid: rows and columns of patches.

    Returns:
        Like pos_embed, for the new grid. Equal to torch's `interpolate(mode="bicubic", align_corners=False)`, which
        the original uses.
    """
    if old_grid == new_grid:
        return pos_embed
    grid = np.asarray(pos_embed[1:], np.float64).reshape(*old_grid, -1)
    rows, columns = (_bicubic_matrix(old, new) for old, new in zip(old_grid, new_grid, strict=True))
    resized = np.einsum("yr,xc,rcd->yxd", rows, columns, grid, optimize=True)
    return np.concatenate([pos_embed[:1], resized.reshape(-1, grid.shape[-1]).astype(pos_embed.dtype)])


def _bicubic_matrix(old: int, new: int) -> Float[np.ndarray, "new old"]:
    # Cubic convolution (Keys 1981) with a = -0.75, half-pixel centres, edge values repeated.
    a = -0.75
    positions = (np.arange(new) + 0.5) * old / new - 0.5
    base = np.floor(positions).astype(int)
    matrix = np.zeros((new, old))
    for tap in (-1, 0, 1, 2):
        distance = np.abs(positions - base - tap)
        near = (a + 2) * distance**3 - (a + 3) * distance**2 + 1
        far = a * (distance**3 - 5 * distance**2 + 8 * distance - 4)
        np.add.at(matrix, (np.arange(new), np.clip(base + tap, 0, old - 1)), np.where(distance <= 1, near, far))
    return matrix
