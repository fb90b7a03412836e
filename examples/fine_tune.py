"""Fine-tune a model on a few crops, and load the result.

    python examples/fine_tune.py

The settings are in fine_tune.toml; `vitpose-jax train examples/fine_tune.toml` trains the same. Your own data needs
annotations in COCO's format and a folder of images. Needs `pip install "vitpose-jax[train]"`.
"""

import json
import pathlib

from vitpose_jax import PoseEstimator
from vitpose_jax.bundled import DEMO_BOX, DEMO_IMAGE
from vitpose_jax.training import fit, read_config

HERE = pathlib.Path(__file__).parent
OUTPUT = "fine_tuned"

# key=value replaces a setting of the file, as on the command line.
config = read_config(
    HERE / "fine_tune.toml",
    [f"output={OUTPUT}", f"data.0.annotations={HERE / 'astronaut.json'}", f"data.0.images={DEMO_IMAGE.parent}"],
)
result = fit(config)
print(f"{result.step} steps; the model is in {result.model}")

for line in (pathlib.Path(OUTPUT) / "metrics.jsonl").read_text().splitlines():
    metrics = json.loads(line)
    print(f"step {metrics['step']}: loss {metrics['loss']:.5f}")

# The folder is a native checkpoint: from_pretrained and the command line read it.
estimator = PoseEstimator.from_pretrained(result.model)
poses = estimator(DEMO_IMAGE, [DEMO_BOX])
print(f"mean score after fine-tuning: {poses.scores.mean():.2f}")
