"""`python -m vitpose_jax.convert SOURCE DEST` does the same as `vitpose-jax convert`."""

import sys

from vitpose_jax.cli import main

if __name__ == "__main__":
    main(["convert", *sys.argv[1:]])
