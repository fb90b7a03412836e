"""Another head on the backbone: a layer that reads coordinates directly from the tokens, without heatmaps.

    python examples/new_head.py

The backbone stays frozen, so its tokens are computed once; only the new layer is trained. Here it learns to repeat what
the heatmaps say about shifted boxes around one person. Replace `boxes` and `targets` by your own data. To train the
backbone as well, call the whole model inside of `loss` and give the optimizer all parameters.
"""

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx

from vitpose_jax import VitPose, crop_boxes, decode_heatmaps, from_pretrained, load_image
from vitpose_jax.bundled import DEMO_BOX, DEMO_IMAGE

STEPS = 400
PEOPLE = 4


class Regressor(nnx.Module):
    """Crops to K points, as fractions of the box."""

    def __init__(self, pretrained: VitPose, num_keypoints: int, *, rngs: nnx.Rngs):
        self.backbone = pretrained.backbone
        zeros = nnx.initializers.zeros
        self.head = nnx.Linear(pretrained.config.hidden_size, 2 * num_keypoints, kernel_init=zeros, rngs=rngs)

    def features(self, crops):
        """(n, height, width, 3) to (n, dim): the mean of the tokens that the heatmap decoder reads."""
        return self.backbone(crops).tokens.mean(axis=1)

    def __call__(self, crops):
        """(n, height, width, 3) to (n, K, 2)."""
        return self.head(self.features(crops)).reshape(len(crops), -1, 2)


teacher = from_pretrained()
image = load_image(DEMO_IMAGE)
boxes = np.asarray(DEMO_BOX, np.float32) + np.random.default_rng(0).uniform(-20, 20, (PEOPLE, 4)).astype(np.float32)
crops = crop_boxes(image, boxes, teacher.config.image_size)
keypoints, _ = decode_heatmaps(jax.jit(VitPose.__call__)(teacher, crops), boxes)
targets = (keypoints - boxes[:, None, :2]) / boxes[:, None, 2:]

model = Regressor(teacher, targets.shape[1], rngs=nnx.Rngs(0))
features = jax.jit(Regressor.features)(model, crops)

# Only the parameters of the head are trained: gradients and optimizer state exist for them alone.
graphdef, parameters = nnx.split(model.head)
optimizer = optax.adam(1e-3)


@jax.jit
def step(parameters, opt_state, features, targets):
    """One update: new parameters of the head, optimizer state, and the loss."""

    def loss(parameters):
        points = nnx.merge(graphdef, parameters)(features).reshape(targets.shape)
        return jnp.mean((points - targets) ** 2)

    value, gradients = jax.value_and_grad(loss)(parameters)
    updates, opt_state = optimizer.update(gradients, opt_state, parameters)
    return optax.apply_updates(parameters, updates), opt_state, value


opt_state = optimizer.init(parameters)
losses = []
for _ in range(STEPS):
    parameters, opt_state, loss = step(parameters, opt_state, features, targets)
    losses.append(float(loss))
print(f"mean squared error: {losses[0]:.1e} at first, {losses[-1]:.1e} after {STEPS} steps")

# Write the trained parameters into the model, and use it from crops on.
nnx.update(model.head, parameters)
points = boxes[:, None, :2] + jax.jit(Regressor.__call__)(model, crops) * boxes[:, None, 2:]
error = np.linalg.norm(points - keypoints, axis=-1).mean()
print(f"mean distance to the keypoints of the heatmaps: {error:.1f} pixels")
