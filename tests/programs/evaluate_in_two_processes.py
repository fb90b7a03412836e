"""One of two processes that evaluate the small dataset together; prints what it found.

Arguments: the folder of the dataset and its model, the output folder, the coordinator's address, this process's number.
"""

import pathlib
import sys

import jax

from tests.support.evaluation import small_dataset, small_estimator
from vitpose_jax.evaluation import evaluate

small, output, address, number = sys.argv[1:]
jax.config.update("jax_cpu_collectives_implementation", "gloo")
jax.distributed.initialize(address, 2, int(number))
folder = pathlib.Path(small)
evaluation = evaluate(small_estimator(folder), small_dataset(folder), output=pathlib.Path(output), model_name="tiny")
print(evaluation.metrics, evaluation.counts, len(evaluation.results))
