"""ViTPose without JAX: what comes before and after an exported network, in NumPy alone.

    image UInt8[height width 3] (RGB), boxes (n, 4) x y w h in pixels of the image
      make_crops       crops Float32[n height width 3]: the network's input
      the network      heatmaps Float32[n rows columns K], in any ONNX runtime
      read_heatmaps    keypoints Float32[n K 2], (x, y) in pixels of the image; scores Float32[n K]

    session = onnxruntime.InferenceSession("base.onnx")
    settings = read_settings(session.get_modelmeta().custom_metadata_map)
    crops = make_crops(image, boxes, settings)
    (heatmaps,) = session.run(None, {"crops": crops})
    keypoints, scores = read_heatmaps(heatmaps, boxes, settings)

`vitpose-jax export` writes this file beside every ONNX file. It needs NumPy and nothing of vitpose_jax: copy it
wherever you need it. It computes what vitpose_jax computes, and a test of that project compares the two.

Pixel centres are at whole numbers. Licence: Apache-2.0, as vitpose_jax.
"""

import json
from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np

KEY = "vitpose_jax.export"
# Pixels on a side of the Gaussian that blurs heatmaps, its standard deviation, and the range of what is logarithmed.
KERNEL_SIZE, SIGMA, LOG_RANGE = 11, 2.0, (0.001, 50.0)


class Settings(NamedTuple):
    """What the network of a file expects.

    Attributes:
        size: height and width of a crop, in pixels.
        mean, std: for each channel, of pixels scaled to 0..1.
        keypoints: their names, in the order of the heatmaps' channels.
        edges: pairs of keypoints that are joined by a line when drawn.
        flip_pairs: pairs of keypoints that swap in a mirrored image.
    """

    size: tuple[int, int]
    mean: tuple[float, ...]
    std: tuple[float, ...]
    keypoints: tuple[str, ...]
    edges: tuple[tuple[int, int], ...]
    flip_pairs: tuple[tuple[int, int], ...]


def read_settings(metadata: Mapping[str, str]) -> Settings:
    """The settings in the metadata of an ONNX file (`custom_metadata_map` of ONNX Runtime)."""
    if KEY not in metadata:
        raise ValueError(f"metadata: expected the key {KEY!r}, got {sorted(metadata)}")
    config: dict[str, Any] = json.loads(metadata[KEY])["config"]
    (skeleton,) = config["skeletons"]
    height, width = config["image_size"]
    return Settings(
        size=(height, width),
        mean=tuple(config["image_mean"]),
        std=tuple(config["image_std"]),
        keypoints=tuple(skeleton["keypoints"]),
        edges=tuple((a, b) for a, b in skeleton["edges"]),
        flip_pairs=tuple((a, b) for a, b in skeleton["flip_pairs"]),
    )


def boxes_to_regions(boxes: Any, size: tuple[int, int], padding: float = 1.25) -> tuple[np.ndarray, np.ndarray]:
    """Centres and sides (n, 2) of the regions that are cropped: boxes with the aspect of the crop, and padded."""
    boxes = np.asarray(boxes, np.float32).reshape(-1, 4)
    if not np.isfinite(boxes).all() or (boxes[:, 2:] <= 0).any():
        raise ValueError("boxes: expected rows x y w h of finite numbers, w > 0 and h > 0")
    aspect = np.float32(size[1] / size[0])
    width = np.maximum(boxes[:, 2], boxes[:, 3] * aspect)
    height = np.maximum(boxes[:, 3], boxes[:, 2] / aspect)
    return boxes[:, :2] + boxes[:, 2:] * np.float32(0.5), np.stack([width, height], axis=-1) * np.float32(padding)


def make_crops(image: np.ndarray, boxes: Any, settings: Settings, padding: float = 1.25) -> np.ndarray:
    """Normalised crops, float32 (n, height, width, 3).

    Args:
        image: uint8 (height, width, 3), RGB.
        boxes: (n, 4) x y w h in pixels of the image; they may extend beyond it.
        settings: of the network.
        padding: factor on both sides of a box, after it got the crop's aspect.
    """
    image = np.asarray(image)
    if image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] != 3 or 0 in image.shape:
        raise ValueError(f"image: expected uint8 of shape (height, width, 3), got {image.dtype} of {image.shape}")
    centers, sides = boxes_to_regions(boxes, settings.size, padding)
    crops = [_crop(image, center, side, settings.size) for center, side in zip(centers, sides, strict=True)]
    values = np.stack(crops) if crops else np.zeros((0, *settings.size, 3), np.float32)
    mean, std = np.asarray(settings.mean, np.float32), np.asarray(settings.std, np.float32)
    return (values / np.float32(255) - mean) / std


def _crop(image: np.ndarray, center: np.ndarray, side: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """One region, sampled bilinearly and rounded to whole pixel values; 0 outside the image."""
    height, width = size
    x, y = (
        np.arange(count, dtype=np.float32) * (side[axis] / np.float32(count - 1)) - side[axis] / 2 + center[axis]
        for axis, count in enumerate((width, height))
    )
    rows_inside, top, bottom, below = _neighbours(y, image.shape[0])
    columns_inside, left, right, beside = _neighbours(x, image.shape[1])
    below, beside = below[:, None, None], beside[:, None]
    taps = [image[row[:, None], column].astype(np.float32) for row in (top, bottom) for column in (left, right)]
    upper = taps[0] * (1 - beside) + taps[1] * beside
    lower = taps[2] * (1 - beside) + taps[3] * beside
    values = np.floor(upper * (1 - below) + lower * below + np.float32(0.5))
    return np.where((rows_inside[:, None] & columns_inside)[..., None], values, np.float32(0))


def _neighbours(at: np.ndarray, length: int) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """For coordinates in a line of pixels: whether they are inside, the pixels before and after, and how far beyond
    the first."""
    clipped = np.clip(at, np.float32(-2), np.float32(length + 1))
    before = np.floor(clipped)
    first = before.astype(np.int64)
    inside = (at >= 0) & (at <= length - 1)
    return inside, np.clip(first, 0, length - 1), np.clip(first + 1, 0, length - 1), clipped - before


def read_heatmaps(
    heatmaps: np.ndarray, boxes: Any, settings: Settings, padding: float = 1.25
) -> tuple[np.ndarray, np.ndarray]:
    """Keypoints (n, K, 2), (x, y) in pixels of the image, and scores (n, K), the values of the peaks.

    The peaks between pixels are found as in DARK (Zhang et al. 2020, arXiv:1910.06278): one Newton step on the
    logarithm of the blurred heatmap. A heatmap without a positive pixel is not refined.

    Args:
        heatmaps: of the network, (n, rows, columns, K).
        boxes: (n, 4), as for `make_crops`.
        settings: of the network.
        padding: as for `make_crops`.
    """
    heatmaps = np.asarray(heatmaps, np.float32)
    centers, sides = boxes_to_regions(boxes, settings.size, padding)
    if heatmaps.ndim != 4 or len(heatmaps) != len(centers):
        raise ValueError(f"heatmaps: expected ({len(centers)}, rows, columns, K), got {heatmaps.shape}")
    count, height, width, channels = heatmaps.shape
    flat = heatmaps.reshape(count, height * width, channels)
    index = flat.argmax(axis=1)
    scores = np.take_along_axis(flat, index[:, None], axis=1)[:, 0]
    column, row = index % width, index // width
    points = np.stack([column, row], axis=-1).astype(np.float32)
    step = _newton_step(np.log(np.clip(_neighbourhoods(heatmaps, column, row), *LOG_RANGE)))
    points = np.where(scores[..., None] > 0, points - step, points)
    steps = sides / np.asarray([width - 1, height - 1], np.float32)
    return points * steps[:, None] - sides[:, None] / 2 + centers[:, None], scores


def average_with_mirrored(heatmaps: np.ndarray, mirrored: np.ndarray, settings: Settings) -> np.ndarray:
    """The flip test: the mean of heatmaps and of those of the mirrored crops, `crops[:, :, ::-1]`."""
    channels = list(range(len(settings.keypoints)))
    for left, right in settings.flip_pairs:
        channels[left], channels[right] = right, left
    return (np.asarray(heatmaps, np.float32) + np.asarray(mirrored, np.float32)[:, :, ::-1][..., channels]) / 2


def _neighbourhoods(heatmaps: np.ndarray, column: np.ndarray, row: np.ndarray) -> np.ndarray:
    """The 3x3 pixels (n, K, 3, 3) around points of the blurred heatmaps; outside, the edge is repeated."""
    near = np.asarray([-1, 0, 1])
    height, width = heatmaps.shape[1:3]
    rows = _blur_matrix(height)[np.clip(row[..., None] + near, 0, height - 1)]
    columns = _blur_matrix(width)[np.clip(column[..., None] + near, 0, width - 1)]
    maps = heatmaps.transpose(0, 3, 1, 2)
    return rows @ maps @ columns.swapaxes(-1, -2)


def _blur_matrix(size: int) -> np.ndarray:
    """The matrix that blurs a line of `size` pixels with a Gaussian; at the ends the line is mirrored."""
    radius = KERNEL_SIZE // 2
    taps = np.exp(-0.5 * (np.arange(-radius, radius + 1) / SIGMA) ** 2)
    sources = np.pad(np.arange(size), radius, mode="reflect")
    matrix = np.zeros((size, size))
    for tap, weight in enumerate(taps / taps.sum()):
        np.add.at(matrix, (np.arange(size), sources[tap : tap + size]), weight)
    return matrix.astype(np.float32)


def _newton_step(patch: np.ndarray) -> np.ndarray:
    """Inverse Hessian times gradient (n, K, 2) at the middle of 3x3 patches [y, x]."""
    middle, epsilon = patch[..., 1, 1], np.finfo(np.float32).eps
    left, right, above, below = patch[..., 1, 0], patch[..., 1, 2], patch[..., 0, 1], patch[..., 2, 1]
    dx, dy = (right - left) / 2, (below - above) / 2
    dxx = right - 2 * middle + left + epsilon
    dyy = below - 2 * middle + above + epsilon
    dxy = (patch[..., 2, 2] - right - below + 2 * middle - left - above + patch[..., 0, 0]) / 2
    determinant = dxx * dyy - dxy * dxy
    step = np.stack([dyy * dx - dxy * dy, dxx * dy - dxy * dx], axis=-1)
    flat = determinant == 0
    return np.where(flat[..., None], np.float32(0), step / np.where(flat, np.float32(1), determinant)[..., None])
