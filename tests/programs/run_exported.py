"""An exported network (first argument) is loaded and run without Flax and without the network's code.

The result for crops in an .npy file (second argument) is written to another one (third).
"""

import sys

import numpy as np

from vitpose_jax import export

source, crops, dest = sys.argv[1:]
np.save(dest, export.load(source)(np.load(crops)))
loaded = {name for name in sys.modules if name.split(".")[0] == "flax" or name.startswith("vitpose_jax.vitpose")}
assert not loaded, f"running an exported program brings {loaded}"
