"""A training from a file, resumed if there is one, with a pause before every step: slow enough to be killed.

Arguments: the training's file, the pause in seconds, and for one of two processes also the coordinator's address and
this process's number.
"""

import sys
import time

import jax

from vitpose_jax.training import loop, setup
from vitpose_jax.training.config import read_config

path, pause, *process = sys.argv[1:]
if process:
    address, number = process
    jax.config.update("jax_cpu_collectives_implementation", "gloo")
    jax.distributed.initialize(address, 2, int(number))

make_train_step = setup.make_train_step


def make_slow_step(*arguments, **options):
    step = make_train_step(*arguments, **options)

    def run(*values):
        time.sleep(float(pause))
        return step(*values)

    return run


setup.make_train_step = make_slow_step
loop.fit(read_config(path), resume=True)
