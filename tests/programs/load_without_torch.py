"""A folder of the Hub (argument) with safetensors is described and loaded without torch."""

import sys

from vitpose_jax import pretrained

(folder,) = sys.argv[1:]
pretrained.from_pretrained(folder)
pretrained.describe(folder)
loaded = {"torch", "transformers", "orbax"} & set(sys.modules)
assert not loaded, f"reading safetensors brings {loaded}"
