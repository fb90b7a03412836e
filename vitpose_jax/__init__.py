"""ViTPose and ViTPose++ in JAX: from an image and boxes to keypoints in one XLA program."""
