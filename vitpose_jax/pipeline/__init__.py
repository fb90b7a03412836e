"""From an image and boxes to keypoints: pure functions that run on the device."""
