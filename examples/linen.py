"""Inside a Flax Linen model: `flax.nnx.bridge.to_linen` turns the network into a Linen module.

    python examples/linen.py

Parameters are then a dictionary that you pass to `apply`, as everywhere in Linen.
"""

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn
from flax import nnx

from vitpose_jax import VitPose, from_pretrained

pretrained = from_pretrained()
config = pretrained.config


class MeanScore(nn.Module):
    """A Linen model with ViTPose inside: the mean heatmap peak of each crop."""

    @nn.compact
    def __call__(self, crops):
        """(n, height, width, 3) to (n,)."""
        heatmaps = nnx.bridge.to_linen(VitPose, config, name="vitpose")(crops)
        return heatmaps.max(axis=(1, 2)).mean(axis=-1)


crops = jax.random.normal(jax.random.key(0), (2, *config.image_size, 3))
model = MeanScore()
# The shapes of all variables, without computing random ones.
variables = jax.eval_shape(model.init, jax.random.key(0), crops)


def fill(variables, module):
    """Linen variables with the arrays of an NNX module: the same paths, below the collections "params" and others."""
    arrays = {path: variable[...] for path, variable in nnx.to_flat_state(nnx.state(module))}

    def value(path, leaf):
        names = tuple(key.key for key in path if isinstance(key, jax.tree_util.DictKey))[2:]
        array = arrays[names]
        if array.shape != leaf.shape:
            raise ValueError(f"{names}: expected {leaf.shape}, got {array.shape}")
        return array

    return jax.tree_util.tree_map_with_path(value, variables)


variables = fill(variables, pretrained)
print(f"collections: {', '.join(sorted(name for name in variables if name != 'nnx'))}")
scores = jax.jit(model.apply)(variables, crops)
expected = pretrained(crops).max(axis=(1, 2)).mean(axis=-1)
print(f"mean peaks {np.round(scores, 4)}; difference from the NNX model {jnp.abs(scores - expected).max():.1e}")
