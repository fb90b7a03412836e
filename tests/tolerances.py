"""How close is close enough, for all tests: each number with its reason.

"Measured" is the largest error in the tests that use the number, on an x86-64 processor. No test loosens its own; a
looser need is a bug. `tests/test_structure.py` lets no test write a number as its tolerance.
"""

# Arithmetic.

# Double precision in another order, also numbers published with 16 digits (measured: 1.4e-14, in per cent).
FLOAT64 = 1e-12
# Published numbers with seven decimals: half a unit of the last one, and some room.
SEVEN_DECIMALS = 1e-7
# A formula in float32 in another order, or against double precision: relative, or as a fraction of the largest value.
# A unit in the last place is up to 1.2e-7 (measured: 4e-7).
FLOAT32 = 1e-6
# A number rounded once to float32, where the reference computes in double precision: relative.
ROUNDED_ONCE = 2e-7
# Half a unit in the last place of bfloat16 (8 bits) and float16 (11 bits): relative.
BFLOAT16_ROUNDING = 2**-8
FLOAT16_ROUNDING = 2**-11
# Half a scale of int8 weights, computed in float32: relative, 127 units in the last place.
HALF_A_SCALE = 5e-5
# Numbers in JSON have five decimals: half a unit of the last one, and some room.
FIVE_DECIMALS = 6e-6
# Fractions of an image with six decimals, in pixels of an image of 100: half a unit of the last one, and some room.
SIX_DECIMALS = 6e-5

# The network, float32 here against float32 in the reference.

# One block, one layer or one formula: absolute, for values of the order of 1 (measured: 2e-6).
BLOCK = 1e-5
# Heatmaps after the whole network: absolute.
HEATMAPS = 1e-4
# Keypoints in pixels of the image.
KEYPOINTS = 1e-2
# The variances of a Gaussian peak that pixels sample, of which the nearest nine are fitted: relative to the largest
# (measured: 3e-3).
PEAK_WIDTH = 1e-2
# Crops: this fraction of the pixel values may differ by more than one from the reference's.
CROP_OUTLIERS = 1e-3
# bfloat16 against float32: heatmaps, as a fraction of their largest value.
BFLOAT16 = 5e-2
# The same for keypoints in pixels of the image, people some 200 pixels high: the median, and nineteen of twenty.
BFLOAT16_MEDIAN = 0.1
BFLOAT16_MOST = 0.5
# The same of untrained models, whose heatmaps have no clear peaks, in OpenVINO: pixels of the image (measured: 0.052 at
# most for eight models with both decoders; the largest pixel of a heatmap is mostly the same one).
OPENVINO_BFLOAT16_MEDIAN = 0.2
# The same for losses: relative, a mean over all pixels (measured: 2e-3).
BFLOAT16_LOSSES = 1e-2
# A detector's logits, boxes as fractions of the image, and feature maps on the way: absolute.
DETECTOR = 1e-4
# Boxes in pixels of the image, given the same logits.
BOXES = 1e-2
# Scores of random weights, where two programs cut the same crops: a sample that lies half-way between two pixel values
# may be rounded to either, which moves a heatmap by some 4e-4 (measured: 4.2e-4 at most).
ROUNDED_PIXELS = 2e-3
# Scores of a fitted model for the same reason (measured: 2e-4), and what is nearly all of them and of its keypoints,
# which agree as if nothing had been rounded.
ROUNDED_SCORES = 5e-4
NEARLY_ALL = 0.95
# The same for the highest pixels of these heatmaps, which have no clear peaks: this fraction must be the same one.
ROUNDED_PEAKS = 0.98
# The same after refinement, which such a heatmap without clear peaks makes sensitive: pixels of the image, and the
# fraction of the keypoints that must be as near (measured: 0.09 at most for UDP, 0.004 for the others).
REFINED = 0.1
REFINED_MOST = 0.9

# Training, float32 here against float32 in torch, or two programs of the same step.

# Losses, which are means over the heatmaps of a whole network: relative (measured: 7e-6, after two steps).
LOSSES = 1e-5
# The norm of all gradients: relative (measured: 2e-5, after two steps).
GRADIENTS = 1e-4
# Parameters after some updates by given gradients, or their moving average: absolute (measured: 3e-7).
UPDATES = 1e-6
# Parameters after some steps of a network, a hundredth of a step with the learning rate 1e-3: absolute. Adam divides a
# gradient by its own size, also where it is small and inexact (measured: 4e-6).
PARAMETERS = 1e-5
# A smooth kernel for patches of another size, on a smooth patch: relative (measured: 3e-4).
RESAMPLED = 1e-3

# Geometry, in pixels.

# A position after one sum in float32: half a unit in the last place is 3e-5 up to 1000 pixels.
PLACES = 1e-4
# A position after an affine map (measured: 3e-4 in crops of boxes up to 600 pixels from the corner), or the middle of a
# Gaussian found by decoding (measured: 2e-4).
POSITIONS = 1e-3
# The centroid of a spot in a crop, whose pixel values are rounded (measured: 7e-3).
CENTROIDS = 2e-2
# The middle of a drawn line, which covers whole pixels, and the mean of many (measured: 0.31 and 0.024).
LINES = 0.5
LINES_MEAN = 0.05
# Pixel values from 0 to 255 after arithmetic in float32 (measured: 4e-5).
PIXEL_VALUES = 1e-3
# Crops of noise, whose pixel values differ by up to 255 from one to the next: this fraction may be rounded the other
# way. Float32 positions near 900 are exact to 6e-5 pixels.
NOISE_OUTLIERS = 1e-2

# Random numbers, with fixed seeds.

# Fractions, means and correlations: within so many of their standard errors.
STANDARD_DEVIATIONS = 3
# The largest of a thousand uniform numbers or more, against their limit: relative (the mean gap is 1e-3).
LIMIT = 5e-3

# Seconds of processor time, which other programs on the machine do not lengthen as they do those of a clock.
# `vitpose-jax --help`: 0.1 on a core of a server; importing JAX alone takes 0.8.
HELP_SECONDS = 0.5
# OKS-NMS of 1000 people: 0.1. All pairs in Python would take a minute.
NMS_SECONDS = 2.0
# Box AP and AR against pycocotools: absolute, means of some thousand numbers in double precision, in another order.
BOX_AVERAGE_PRECISION = 1e-12
# A box in an augmented image against the edges of its rectangle there: pixels.
AUGMENTED_BOXES = 1.0
# A rectangle that a finder of some thousand parameters has learnt to find: intersection over union.
LEARNT_IOU = 0.6
# The losses of the first seven steps of a finder on eight devices against one: relative. A cell that two orders of
# summation assign to different people moves them.
SHARDED_LOSSES = 1e-3

# Normalised crops of the finder's second stage, and scores of boxes: sums in another order, and a sigmoid and back.
SECOND_STAGE = 1e-3
# Pixel values of a crop against Pillow's, which rounds to whole numbers twice.
SHRUNK_CROP = 1.5
# Weights of a logistic regression on 20,000 random labels: some five standard deviations.
REGRESSION = 0.1
# Means of losses that are printed with four digits behind the point.
PRINTED = 2e-4

# AP after fine-tuning on a few photographs, on others: it must not fall by more.
FINE_TUNED = 0.01

# Videos.

# Times in seconds, in units of a container: a millisecond in Matroska (half of it, and some room).
VIDEO_TIME = 6e-4

# Pixels by which a video that was ended and resumed may differ: it continues from keypoints that were rounded to five
# decimals, which move the boxes of the next frame by as much, and a few pixel values of a crop round otherwise.
RESUMED_VIDEO = 0.05
