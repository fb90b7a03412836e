"""From the detector's logits and boxes to objects of the classes asked for, in pixels of their image; jit-able."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int, Num


class Found(NamedTuple):
    """Objects of a batch of images, the surest first; always as many, so that those below a threshold are to be cut.

    Attributes:
        boxes: x y w h in pixels of the image.
        scores: 0 to 1; 0 where nothing is left to be found.
        labels: numbers of the classes.
    """

    boxes: Float[Array, "n count 4"]
    scores: Float[Array, "n count"]
    labels: Int[Array, "n count"]


def find_objects(
    logits: Float[Array, "n queries classes"],
    boxes: Float[Array, "n queries 4"],
    sizes: Num[Array | np.ndarray, "n 2"],
    wanted: Bool[Array | np.ndarray, " classes"],
    count: int,
) -> Found:
    """The `count` surest pairs of a query and a class, among the classes wanted.

    A query may be found as several classes, as in the reference. That cuts at as many pairs as there are queries, of
    all classes, and leaves it to the caller to choose among them: here classes nobody wants take no places.

    Args:
        logits, boxes: as `RtDetr` returns them.
        sizes: height and width of each image, in pixels.
        wanted: which classes may be found.
        count: of pairs; at most those there are.
    """
    n, _, classes = logits.shape
    # Chosen by logits, which still differ where their sigmoids are both 1.
    flat = jnp.where(wanted, logits, -jnp.inf).reshape(n, -1)
    surest, index = jax.lax.top_k(flat, min(count, flat.shape[1]))
    chosen = jnp.take_along_axis(boxes, (index // classes)[..., None], axis=1)
    centre, extent = chosen[..., :2], chosen[..., 2:]
    scale = jnp.tile(sizes[:, ::-1].astype(jnp.float32), 2)
    pixels = jnp.concatenate([centre - extent / 2, extent], axis=-1) * scale[:, None]
    return Found(pixels, jax.nn.sigmoid(surest), (index % classes).astype(jnp.int32))
