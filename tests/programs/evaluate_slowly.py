"""An evaluation of the small dataset, with a pause before every image: slow enough to be killed.

Arguments: the folder of the dataset and its model, the output folder.
"""

import pathlib
import sys
import time

from tests.support.evaluation import small_dataset, small_estimator
from vitpose_jax.evaluation import evaluate
from vitpose_jax.images import load_image

small, output = map(pathlib.Path, sys.argv[1:])


def load_slowly(image, **options):
    time.sleep(0.05)
    return load_image(image, **options)


# Wherever images are read.
for name, module in list(sys.modules.items()):
    if name.startswith("vitpose_jax.") and getattr(module, "load_image", None) is load_image:
        module.load_image = load_slowly
evaluate(small_estimator(small), small_dataset(small), output=output, model_name="tiny")
