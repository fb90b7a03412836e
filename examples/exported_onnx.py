"""An exported ONNX file without vitpose_jax and without JAX: ONNX Runtime, NumPy, and Pillow to read the image.

    vitpose-jax export vitpose-small-open --to onnx --output vitpose.onnx
    python exported_onnx.py vitpose.onnx photograph.jpg 15,10,345,502

The last argument is the box of a person: x, y, width, height in pixels. `vitpose_numpy.py`, which the export writes
beside the ONNX file, makes the crop and reads the heatmaps.
"""

import importlib.util
import sys
from pathlib import Path

import numpy as np
import onnxruntime
from PIL import Image

path, photograph, box = sys.argv[1:]
file = Path(path)
spec = importlib.util.spec_from_file_location("pose", file.with_name(f"{file.stem}_numpy.py"))
pose = importlib.util.module_from_spec(spec)
spec.loader.exec_module(pose)

session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
settings = pose.read_settings(session.get_modelmeta().custom_metadata_map)
image = np.asarray(Image.open(photograph).convert("RGB"))
boxes = [[float(number) for number in box.split(",")]]

crops = pose.make_crops(image, boxes, settings)
(heatmaps,) = session.run(None, {"crops": crops})
keypoints, scores = pose.read_heatmaps(heatmaps, boxes, settings)
for name, (x, y), score in zip(settings.keypoints, keypoints[0], scores[0], strict=True):
    print(f"{name:15} {x:7.1f} {y:7.1f} {score:.2f}")
