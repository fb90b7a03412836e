"""`vitpose-jax predict` as one of two processes.

Arguments: the coordinator's address, this process's number, and the command line.
"""

import sys

import jax

from vitpose_jax.cli import main

address, number, *arguments = sys.argv[1:]
jax.config.update("jax_cpu_collectives_implementation", "gloo")
initialize = jax.distributed.initialize
# On a TPU, on SLURM and under Open MPI JAX finds the others by itself.
jax.distributed.initialize = lambda: initialize(address, 2, int(number))
main(arguments)
