"""The package alone brings neither JAX nor torch; all of its public names bring no optional package."""

import sys

import vitpose_jax

loaded = {"torch", "jax", "flax"} & set(sys.modules)
assert not loaded, f"import vitpose_jax brings {loaded}"
for name in (*vitpose_jax.__all__, *vitpose_jax._MODULES):
    getattr(vitpose_jax, name)
loaded = {"torch", "transformers", "scipy", "cv2", "orbax"} & set(sys.modules)
assert not loaded, f"the public names of vitpose_jax bring {loaded}"
