"""Between the array layouts of PyTorch and of Flax: each transform by name, with its inverse.

PyTorch has channels first: linear (out, in), convolution (out, in, height, width), transposed convolution
(in, out, height, width). Here channels are last: (in, out) and (height, width, in, out). Transforms only move numbers,
so a round trip returns the same bits. Most return views.
"""

from collections.abc import Callable

import numpy as np

Transform = Callable[[np.ndarray], np.ndarray]

# name: (PyTorch to Flax, Flax to PyTorch)
_TRANSFORMS: dict[str, tuple[Transform, Transform]] = {
    "same": (lambda x: x, lambda x: x),
    "linear": (lambda x: x.transpose(1, 0), lambda x: x.transpose(1, 0)),
    "conv": (lambda x: x.transpose(2, 3, 1, 0), lambda x: x.transpose(3, 2, 0, 1)),
    # Here the transposed convolution stores the kernel mirrored, as a plain convolution needs it.
    "deconv": (
        lambda x: x[:, :, ::-1, ::-1].transpose(2, 3, 0, 1),
        lambda x: x.transpose(2, 3, 0, 1)[:, :, ::-1, ::-1],
    ),
    # The kernel of a first layer that reads B, G, R, with the array's layout of Flax.
    "bgr": (lambda x: x[:, :, ::-1], lambda x: x[:, :, ::-1]),
    # (1, 1 + patches, dim) in PyTorch.
    "positions": (lambda x: x[0], lambda x: x[None]),
    # (1, patches, dim) in PyTorch. Here the row of a class token, which is added to every patch, comes first.
    "patch_positions": (lambda x: np.concatenate([np.zeros_like(x[0, :1]), x[0]]), lambda x: (x[1:] + x[:1])[None]),
}


def to_flax(transform: str, tensor: np.ndarray) -> np.ndarray:
    """A PyTorch tensor in the layout of Flax; a view."""
    return _TRANSFORMS[transform][0](tensor)


def to_torch(transform: str, tensor: np.ndarray) -> np.ndarray:
    """A Flax tensor in the layout of PyTorch; a view. The inverse of `to_flax`."""
    return _TRANSFORMS[transform][1](tensor)
