"""A folder of the Hub with safetensors is converted to the native format and back without torch.

Arguments: the folder, the folder of the native format, the folder to convert back to.
"""

import sys

from vitpose_jax.convert import convert

folder, native, back = sys.argv[1:]
convert(folder, native)
convert(native, back, to="huggingface")
assert "torch" not in sys.modules
