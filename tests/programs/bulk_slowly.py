"""`predict_dataset` on two workers of a cluster, with a pause before every image; prints the summary as JSON.

Arguments: the folder of the images, the output folder, the address of the cluster, the images of a partition.
"""

import dataclasses
import json
import os
import pathlib
import sys

from tests.support.bulk import OPTIONS, slow_estimator
from vitpose_jax.distributed import predict_dataset

images, output, address, size = sys.argv[1:]
os.environ["PYTHONPATH"] = str(pathlib.Path(__file__).parents[2])
summary = predict_dataset(
    images,
    output,
    model=slow_estimator(0.1),
    concurrency=2,
    num_cpus=1,
    address=address,
    images_per_partition=int(size),
    **OPTIONS,
)
print(json.dumps(dataclasses.asdict(summary)))
