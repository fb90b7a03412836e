"""Quantization-aware training by qwix: the weights learn to be rounded to int4, before they are.

    python examples/quantization_aware.py

Needs `pip install qwix "vitpose-jax[train]"`; written for qwix 0.1.8. While it trains, qwix rounds the kernels of the
blocks in each product to int4, in groups of GROUP_SIZE inputs with a scale each, and passes gradients through the
rounding. The groups are those of `quantize="int4"`, which rounds the trained weights at the end. Here the model learns
to repeat its own heatmaps of three crops of one photograph, without labels. That helps there, and harms on another
photograph: replace `crops` by crops of your own, as many as you have.
"""

import sys

import jax
import jax.numpy as jnp
import numpy as np
import optax
import qwix
from flax import nnx

from vitpose_jax import PoseEstimator, VitPose, checkpoint, crop_boxes, from_pretrained, load_image
from vitpose_jax.bundled import DEMO_BOX, DEMO_IMAGE, GROUP_IMAGE
from vitpose_jax.storage import parameters
from vitpose_jax.vitpose.modeling import abstract_vitpose

STEPS = int(sys.argv[1]) if len(sys.argv) > 1 else 60
GROUP_SIZE = 128
PEOPLE = 3

teacher = from_pretrained()
heatmaps_of = jax.jit(VitPose.__call__)


def crops_of(path, boxes):
    """Crops of an image, around boxes x y w h."""
    return crop_boxes(load_image(path), np.asarray(boxes, np.float32), teacher.config.image_size)


moved = np.asarray(DEMO_BOX) + np.random.default_rng(0).uniform(-20, 20, (PEOPLE, 4))
crops, others = crops_of(DEMO_IMAGE, moved), crops_of(GROUP_IMAGE, PoseEstimator(teacher)(GROUP_IMAGE).boxes[:PEOPLE])
targets, other_targets = heatmaps_of(teacher, crops), heatmaps_of(teacher, others)

# Only the blocks: qwix 0.1.8 does not know the kernels of the decoder's transposed convolutions as parameters.
rule = qwix.QtRule(module_path="backbone/blocks/.*", weight_qtype=jnp.int4, tile_size=GROUP_SIZE)
student = qwix.quantize_model(from_pretrained(), qwix.QtProvider([rule]), crops)
graphdef, trained, rest = nnx.split(student, nnx.Param, ...)
optimizer = optax.adam(optax.cosine_decay_schedule(1e-5, STEPS))


@jax.jit
def step(trained, rest, opt_state, crops, targets):
    """One update: new parameters, optimizer state, and the loss."""

    def loss(trained):
        return jnp.mean((nnx.merge(graphdef, trained, rest)(crops) - targets) ** 2)

    value, gradients = jax.value_and_grad(loss)(trained)
    updates, opt_state = optimizer.update(gradients, opt_state, trained)
    return optax.apply_updates(trained, updates), opt_state, value


opt_state = optimizer.init(trained)
losses = []
for _ in range(STEPS):
    trained, opt_state, loss = step(trained, rest, opt_state, crops, targets)
    losses.append(float(loss))
print(f"loss with rounded weights: {losses[0]:.1e} at first, {losses[-1]:.1e} after {STEPS} steps")

# qwix changes the class of the model and keeps float32 parameters; under their names they make a model of this package.
student = nnx.merge(graphdef, trained, rest)
model = parameters.fill(abstract_vitpose(teacher.config), parameters.flatten(student))
checkpoint.save(model, "int4_aware", int4=True, group_size=GROUP_SIZE)

before = from_pretrained(quantize="int4", group_size=GROUP_SIZE)
after = from_pretrained("int4_aware", quantize="int4")
errors = {}
for name, inputs, expected in (("trained on", crops, targets), ("another photograph", others, other_targets)):
    errors[name] = [float(jnp.mean((heatmaps_of(each, inputs) - expected) ** 2)) for each in (before, after)]
    print(f"{name}: error of int4 {errors[name][0]:.1e}, after the training {errors[name][1]:.1e}")
