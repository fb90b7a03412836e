"""Where does the time go? A trace of warm calls by jax.profiler.

    python examples/profile_trace.py

Open the file perfetto_trace.json.gz, below the folder trace/, at https://ui.perfetto.dev. Or run TensorBoard with its
profile plugin on trace/. On a GPU or TPU the trace shows every kernel.
"""

import pathlib
import time

import jax

from vitpose_jax import PoseEstimator
from vitpose_jax.bundled import DEMO_BOX, DEMO_IMAGE

FOLDER = "trace"
CALLS = 3

estimator = PoseEstimator.from_pretrained()
# The first call of a shape compiles: `warmup` does that before the first request.
start = time.perf_counter()
estimator.warmup(num_boxes=1)
print(f"compiled in {time.perf_counter() - start:.1f} s")

with jax.profiler.trace(FOLDER, create_perfetto_trace=True):
    for number in range(CALLS):
        # A name for each call on the time line.
        with jax.profiler.TraceAnnotation(f"call {number}"):
            start = time.perf_counter()
            estimator(DEMO_IMAGE, [DEMO_BOX])
            print(f"call {number}: {1e3 * (time.perf_counter() - start):.0f} ms")

for path in sorted(pathlib.Path(FOLDER).rglob("*.gz")):
    print(path)
