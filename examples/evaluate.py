"""Measure a model: average precision on images with annotations in COCO's format.

    python examples/evaluate.py

Here one image with annotations made by hand. The command line does the same for whole datasets, and resumes:
`vitpose-jax evaluate --help`. Needs `pip install "vitpose-jax[eval]"`.
"""

import pathlib

from vitpose_jax import PoseEstimator
from vitpose_jax.bundled import DEMO_IMAGE
from vitpose_jax.evaluation import evaluate, read_dataset

ANNOTATIONS = pathlib.Path(__file__).parent / "astronaut.json"

# border="opencv" crops as the original ViTPose repository does; published figures are measured with it.
estimator = PoseEstimator.from_pretrained(border="opencv")
# detections=None: in the annotated boxes. Published figures use the boxes of a detector.
dataset = read_dataset("coco", ANNOTATIONS, DEMO_IMAGE.parent, detections=None)
result = evaluate(estimator, dataset, flip_test=True)

for name, value in result.metrics.items():
    print(f"{name:6} {value:.3f}")
for row in result.per_keypoint:
    if row["labelled"]:
        print(row)
print("not as in the published protocol:", "; ".join(result.deviations))
