"""`python -m vitpose_jax`: the same as `vitpose-jax`."""

from vitpose_jax.cli import main

if __name__ == "__main__":
    main()
