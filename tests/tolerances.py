"""How close is close enough, once for all tests: float32 here against float32 in the reference.

No test loosens its own; a looser need is a bug.
"""

# One block, or any single layer: absolute, for activations of the order of 1.
BLOCK = 1e-5
# Heatmaps after the whole network: absolute.
HEATMAPS = 1e-4
# Keypoints in pixels of the image.
KEYPOINTS = 1e-2
# Crops: this share of the pixels may differ by more than one grey level from the reference's.
CROP_OUTLIERS = 1e-3
# bfloat16 against float32: heatmaps, as a share of their largest value.
BFLOAT16 = 5e-2
# The same for keypoints in pixels of the image, people some 200 pixels high: the median, and nineteen of twenty.
BFLOAT16_MEDIAN = 0.1
BFLOAT16_MOST = 0.5
# A detector's logits, boxes as shares of the image, and feature maps on the way: absolute.
DETECTOR = 1e-4
# Boxes in pixels of the image, given the same logits.
BOXES = 1e-2
