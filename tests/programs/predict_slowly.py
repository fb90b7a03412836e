"""`vitpose-jax`, with a pause before every image: slow enough to be ended in the middle."""

import sys
import time

import vitpose_jax.estimator
from vitpose_jax.bulk import results
from vitpose_jax.cli import main
from vitpose_jax.images import load_image

results.WRITE_SECONDS = 0.2


def load_slowly(image, **options):
    time.sleep(0.05)
    return load_image(image, **options)


vitpose_jax.estimator.load_image = load_slowly
main(sys.argv[1:])
