"""The same with JAX and safetensors alone, as docs/guides/export.md shows it."""

import json
import sys

import jax
import jax.export
import jax.numpy as jnp
import numpy as np
from safetensors import safe_open

source, crops, dest = sys.argv[1:]
with safe_open(source, "numpy") as file:
    metadata = json.loads(file.metadata()["vitpose_jax.export"])
    program = jax.export.deserialize(bytearray(file.get_tensor("program").tobytes()))
    weights = [file.get_tensor(name) for name in metadata["weights"]]
weights = [jnp.asarray(array, aval.dtype) for array, aval in zip(weights, program.in_avals, strict=False)]
np.save(dest, jax.jit(program.call)(weights, np.load(crops)))
loaded = {name for name in sys.modules if name.split(".")[0] in ("flax", "vitpose_jax")}
assert not loaded, f"running an exported program brings {loaded}"
