"""NanoDet-g in PyTorch, with BatchNorm folded in: what the person finder is compared with."""

import numpy as np
import torch
from torch.nn import functional

from vitpose_jax.finder.config import FinderConfig


def random_weights(config: FinderConfig, seed: int = 0) -> dict[str, np.ndarray]:
    """A file of NanoDet-g with random numbers, by its own names: kernels (height, width, in, out) and biases."""
    rng = np.random.default_rng(seed)
    weights = {}

    def add(name: str, size: int, features_in: int, features: int) -> None:
        scale = (size * size * features_in) ** -0.5
        weights[f"{name}.kernel"] = rng.normal(0, 1.3 * scale, (size, size, features_in, features)).astype(np.float32)
        weights[f"{name}.bias"] = rng.normal(0, 0.2, features).astype(np.float32)

    add("stem", 3, 3, config.stem_features)
    features = config.stem_features
    for index, (width, depth) in enumerate(zip(config.widths, config.depths, strict=True)):
        add(f"stage{index + 1}.in", 3, features, width)
        for block in range(depth):
            add(f"stage{index + 1}.block{block}.0", 3, width, width // 2)
            add(f"stage{index + 1}.block{block}.1", 3, width // 2, width // 2)
        add(f"stage{index + 1}.out", 3, width, width)
        features = 2 * width
        if index:
            add(f"lateral.{index - 1}", 1, features, config.hidden_size)
    for index in range(3):
        add(f"head.{index}.in", 3, config.hidden_size, config.hidden_size)
        add(f"head.{index}.out", 1, config.hidden_size, len(config.labels) + 4 * config.num_bins)
    return weights


def run(
    weights: dict[str, np.ndarray], config: FinderConfig, images: np.ndarray
) -> tuple[np.ndarray, np.ndarray, list[np.ndarray]]:
    """Logits (n, cells, classes), boxes (n, cells, 4) and feature maps (n, rows, columns, features).

    Args:
        images: (n, height, width, 3), R G B, normalised.
    """

    def conv(name: str, x: torch.Tensor, act: bool = True) -> torch.Tensor:
        kernel = torch.from_numpy(weights[f"{name}.kernel"]).permute(3, 2, 0, 1)
        stride = 2 if name == "stem" or name in ("stage2.in", "stage3.in", "stage4.in") else 1
        x = functional.conv2d(x, kernel, torch.from_numpy(weights[f"{name}.bias"]), stride, kernel.shape[-1] // 2)
        return functional.leaky_relu(x, 0.1) if act else x

    def resized(x: torch.Tensor, like: torch.Tensor) -> torch.Tensor:
        return functional.interpolate(x, size=like.shape[-2:], mode="bilinear", align_corners=False)

    # The weights are for B, G, R.
    x = torch.from_numpy(np.ascontiguousarray(images[..., ::-1].transpose(0, 3, 1, 2)))
    x = functional.max_pool2d(conv("stem", x), 3, 2, 1)
    maps = []
    for index, depth in enumerate(config.depths, 1):
        entered = x = conv(f"stage{index}.in", x)
        for block in range(depth):
            half = conv(f"stage{index}.block{block}.0", x)
            x = torch.cat([conv(f"stage{index}.block{block}.1", half), half], 1)
        x = torch.cat([conv(f"stage{index}.out", x), entered], 1)
        maps.append(x)
    fine, middle, coarse = (conv(f"lateral.{index}", x, act=False) for index, x in enumerate(maps[1:]))
    middle = middle + resized(coarse, middle)
    fine = fine + resized(middle, fine)
    middle = middle + resized(fine, middle)
    coarse = coarse + resized(middle, coarse)
    logits, boxes = [], []
    for index, (stride, x) in enumerate(zip((8, 16, 32), (fine, middle, coarse), strict=True)):
        out = conv(f"head.{index}.out", conv(f"head.{index}.in", x), act=False).permute(0, 2, 3, 1)
        n, rows, columns, _ = out.shape
        classes = len(config.labels)
        bins = out[..., classes:].reshape(n, rows, columns, 4, config.num_bins).softmax(-1)
        left, top, right, bottom = ((bins * torch.arange(config.num_bins)).sum(-1) * stride).unbind(-1)
        x_centre = (torch.arange(columns) + 0.5) * stride
        y_centre = ((torch.arange(rows) + 0.5) * stride)[:, None]
        corners = torch.stack([x_centre - left, y_centre - top, x_centre + right, y_centre + bottom], -1)
        logits.append(out[..., :classes].reshape(n, -1, classes))
        boxes.append(corners.reshape(n, -1, 4))
    feature_maps = [x.permute(0, 2, 3, 1).numpy() for x in (fine, middle, coarse)]
    return torch.cat(logits, 1).numpy(), torch.cat(boxes, 1).numpy(), feature_maps
