"""From image to crop as the original does it with OpenCV."""

import cv2
import numpy as np


def udp_matrix(angle: float, center: np.ndarray, scale: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """Image to crop: turn about the centre, stretch the region to the crop's outermost pixel centres."""
    cos, sin = np.cos(np.deg2rad(angle)), np.sin(np.deg2rad(angle))
    stretch = np.diag((np.array(size[::-1]) - 1) / scale)
    linear = stretch @ np.array([[cos, -sin], [sin, cos]])
    return np.column_stack([linear, stretch @ (scale / 2) - linear @ center])


def three_point_matrix(angle: float, center: np.ndarray, scale: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """Image to crop without UDP: OpenCV's affine through three points, as the original builds it."""
    height, width = size
    up = scale[0] / 2 * np.array([-np.sin(np.deg2rad(angle)), -np.cos(np.deg2rad(angle))])
    side = scale[0] / 2 * np.array([-np.cos(np.deg2rad(angle)), np.sin(np.deg2rad(angle))])
    middle = np.array([width / 2, height / 2])
    source = np.array([center, center + up, center + side], np.float32)
    target = np.array([middle, middle + [0, -width / 2], middle + [-width / 2, 0]], np.float32)
    return cv2.getAffineTransform(source, target)
