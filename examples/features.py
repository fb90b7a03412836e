"""Features of people: tokens, feature maps of any block, hidden states and attention weights.

    python examples/features.py

Everything is returned by one call of the backbone; nothing is hooked or stored in the model.
"""

import jax
import jax.numpy as jnp
import numpy as np

from vitpose_jax import crop_boxes, from_pretrained, load_image
from vitpose_jax.bundled import DEMO_BOX, DEMO_IMAGE

model = from_pretrained()
image = load_image(DEMO_IMAGE)
head = (DEMO_BOX[0] + 110, DEMO_BOX[1], 200, 200)
boxes = np.asarray([DEMO_BOX, head], np.float32)
crops = crop_boxes(image, boxes, model.config.image_size)  # (2, height, width, 3)


@jax.jit
def run(model, crops):
    """The backbone's output; blocks are numbered from 1, and 0 is the embedding."""
    return model.backbone(crops, output_hidden_states=True, output_attentions=True, feature_blocks=(6, 12))


output = run(model, crops)
print(f"tokens         {output.tokens.shape}: people, patches, width; normalised, what the decoder reads")
print(f"feature maps   {[features.shape for features in output.feature_maps]}: after blocks 6 and 12, normalised")
print(f"hidden states  {output.hidden_states.shape}: the embedding and every block, people, patches, width")
print(f"attention      {output.attentions.shape}: blocks, people, heads, from patch, to patch")

# An embedding of each person: the mean of the tokens. How similar is a portrait to its head?
embedding = output.tokens.mean(axis=1)
embedding /= jnp.linalg.norm(embedding, axis=-1, keepdims=True)
print(f"cosine similarity of person and head: {embedding[0] @ embedding[1]:.3f}")

# Which patches does the patch in the middle look at, in the last block, as a mean of the heads?
rows, columns = model.config.grid_size
middle = (rows // 2) * columns + columns // 2
weights = output.attentions[-1, 0].mean(axis=0)[middle].reshape(rows, columns)
row, column = jnp.unravel_index(weights.argmax(), weights.shape)
print(f"the middle patch attends most to row {row}, column {column} of {rows} x {columns} patches")
