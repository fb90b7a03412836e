"""The help of the command line, or of one command (arguments), is printed without importing JAX."""

import contextlib
import sys

from vitpose_jax import cli

with contextlib.suppress(SystemExit):
    cli.main([*sys.argv[1:], "--help"])
loaded = {"torch", "jax", "flax"} & set(sys.modules)
assert not loaded, f"--help brings {loaded}"
