"""How close is close enough, once for all tests: float32 here against float32 in the reference.

No test loosens its own; a looser need is a bug.
"""

# One block, or any single layer: absolute, for activations of the order of 1.
BLOCK = 1e-5
# Heatmaps after the whole network: absolute.
HEATMAPS = 1e-4
# Keypoints in pixels of the image.
KEYPOINTS = 1e-2
# Crops: this fraction of the pixel values may differ by more than one from the reference's.
CROP_OUTLIERS = 1e-3
# bfloat16 against float32: heatmaps, as a fraction of their largest value.
BFLOAT16 = 5e-2
# The same for keypoints in pixels of the image, people some 200 pixels high: the median, and nineteen of twenty.
BFLOAT16_MEDIAN = 0.1
BFLOAT16_MOST = 0.5
# A detector's logits, boxes as fractions of the image, and feature maps on the way: absolute.
DETECTOR = 1e-4
# Boxes in pixels of the image, given the same logits.
BOXES = 1e-2
# Scores of random weights, where two programs cut the same crops: a sample that lies half-way between two pixel values
# may be rounded to either, which moves a heatmap by some 4e-4 (measured: 4.2e-4 at most).
ROUNDED_PIXELS = 2e-3
# The same for the highest pixels of these heatmaps, which have no clear peaks: this fraction must be the same one.
ROUNDED_PEAKS = 0.98
# The same after refinement, which such a heatmap without clear peaks makes sensitive: pixels of the image, and the
# fraction of the keypoints that must be as near (measured: 0.09 at most for UDP, 0.004 for the others).
REFINED = 0.1
REFINED_MOST = 0.9

# Seconds of processor time, which other programs on the machine do not lengthen as they do those of a clock.
# `vitpose-jax --help`: 0.1 on a core of a server; importing JAX alone takes 0.8.
HELP_SECONDS = 0.5
# Drawing 300 people: 0.1. A loop over the image's pixels in Python would take minutes.
DRAWING_SECONDS = 1.5
# OKS-NMS of 1000 people: 0.1. All pairs in Python would take a minute.
NMS_SECONDS = 2.0
# The person finder's losses in float32 against float64: relative.
LOSSES = 1e-5
# A box in an augmented image against the edges of its rectangle there: pixels.
AUGMENTED_BOXES = 1.0
# A rectangle that a finder of some thousand parameters has learnt to find: intersection over union.
LEARNT_IOU = 0.6
# The losses of the first seven steps of a finder on eight devices against one: relative. A cell that two orders of
# summation assign to different people moves them.
SHARDED_LOSSES = 1e-3
