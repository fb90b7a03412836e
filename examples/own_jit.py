"""Your own jax.jit, and gradients through the network: where in the image does the score of a keypoint come from?

    python examples/own_jit.py

A model is a Flax NNX module. `nnx.split` takes it apart into a static part and arrays; `nnx.merge` puts it together
inside of a compiled function. So jit, grad and vmap see only arrays. `crop_boxes` and `decode_heatmaps` are pure
functions as well: the whole way from image to keypoints is one program.
"""

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from PIL import Image

from vitpose_jax import crop_boxes, decode_heatmaps, from_pretrained, load_image
from vitpose_jax.bundled import DEMO_BOX, DEMO_IMAGE

KEYPOINT = "nose"
DRAWING = "saliency.png"

model = from_pretrained()
graphdef, state = nnx.split(model)
image = load_image(DEMO_IMAGE)  # uint8 (height, width, 3)
boxes = np.asarray([DEMO_BOX], np.float32)  # (n, 4), x y width height in pixels of the image


@jax.jit
def predict(state, image, boxes):
    """Image and boxes to keypoints (n, K, 2) in pixels of the image, and scores (n, K)."""
    crops = crop_boxes(image, boxes, model.config.image_size)
    heatmaps = nnx.merge(graphdef, state)(crops)
    return decode_heatmaps(heatmaps, boxes)


@jax.jit
def saliency(state, crops, index):
    """Size of the gradient of a keypoint's score at each pixel of the crops, (n, height, width)."""

    def score(crops):
        heatmaps = nnx.merge(graphdef, state)(crops)  # (n, rows, columns, K)
        return heatmaps[..., index].max(axis=(1, 2)).sum()

    return jnp.abs(jax.grad(score)(crops)).sum(-1)


keypoints, scores = predict(state, image, boxes)
index = model.config.skeletons[0].keypoints.index(KEYPOINT)
print(f"{KEYPOINT}: {np.round(keypoints[0, index], 1)}, score {scores[0, index]:.2f}")

crops = crop_boxes(image, boxes, model.config.image_size)
gradient = np.asarray(saliency(state, crops, index))[0]
row, column = np.unravel_index(gradient.argmax(), gradient.shape)
print(f"the score depends most on row {row}, column {column} of the crop of {gradient.shape}")
# The crops are normalised pixels: undo that to see the crop beside its gradient.
pixels = np.asarray(crops[0]) * model.config.image_std + model.config.image_mean
brightness = np.clip(gradient / np.quantile(gradient, 0.995), 0, 1)[..., None]
drawing = np.concatenate([pixels, np.broadcast_to(brightness, pixels.shape)], axis=1)
Image.fromarray((255 * np.clip(drawing, 0, 1)).astype(np.uint8)).save(DRAWING)
print(DRAWING)
