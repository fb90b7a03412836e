"""VitPoseConfig: the fields that define the shapes and the arithmetic of a ViTPose, and no others."""

from __future__ import annotations

import dataclasses
import math
import numbers
from typing import Any

from vitpose_jax.skeletons import COCO, DATASETS, Skeleton, canonical_name
from vitpose_jax.storage.text import join, shorten

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)

# The patch convolution pads two pixels on each side, in the original and in all checkpoints.
PATCH_PADDING = 2

ACTIVATIONS = ("gelu", "gelu_tanh", "relu")
DECODERS = ("classic", "simple")

# Fields that were added later. If a file does not have them, they take their defaults.
NEW_FIELDS = ("window_size", "window_shift", "window_pool", "knowledge_token")

# Sizes of arrays and lists are below this number everywhere.
_LARGEST = 2**31


def is_count(value: object, least: int = 1) -> bool:
    """Whether a value is a whole number that can be a size: `least` or more, and of 32 bits."""
    return isinstance(value, int) and not isinstance(value, bool) and least <= value < _LARGEST


def is_number(value: object) -> bool:
    """Whether a value is a finite number. The whole numbers of a file may be too large for a float."""
    return (
        isinstance(value, int | float)
        and not isinstance(value, bool)
        and (abs(value) < _LARGEST if isinstance(value, int) else math.isfinite(value))
    )


def normalization_problem(mean: Any, std: Any, channels: int) -> str | None:
    """What is wrong with the mean and the standard deviation of pixel values; None if nothing is."""
    for name, values in (("image_mean", mean), ("image_std", std)):
        if not isinstance(values, list | tuple) or len(values) != channels or not all(map(is_number, values)):
            return f"image_mean, image_std: expected {channels} numbers each, got {name} {shorten(values)}"
    if not all(value > 0 for value in std):
        return f"image_std: expected numbers above 0, got {shorten(std)}"
    return None


def read_skeleton(values: Any) -> Skeleton:
    """The skeleton in a config.json, the inverse of `Skeleton.to_dict`.

    Raises:
        ValueError: naming the field, if one is missing, unknown, of a wrong type or inconsistent.
    """
    if not isinstance(values, dict):
        raise ValueError(f"skeleton: expected a table, got {shorten(values)}")
    if not isinstance(values.get("name"), str):
        raise ValueError(f"skeleton: name: expected a text, got {shorten(values.get('name'))}")
    checks: dict[str, tuple[str, Any]] = {
        "keypoints": ("texts", lambda item: isinstance(item, str)),
        "flip_pairs": ("pairs of indices", _is_pair),
        "edges": ("pairs of indices", _is_pair),
        "sigmas": ("positive numbers", lambda item: is_number(item) and item > 0),
        "upper_body": ("indices", lambda item: is_count(item, 0)),
    }
    for field, (kind, check) in checks.items():
        items = values.get(field, [])
        if not isinstance(items, list | tuple):
            raise ValueError(f"skeleton: {field}: expected a list of {kind}, got {shorten(items)}")
        for item in items:
            if not check(item):
                raise ValueError(f"skeleton: {field}: expected {kind}, got {shorten(item)}")
    return Skeleton.from_dict(values)


def _is_pair(value: object) -> bool:
    return isinstance(value, list | tuple) and len(value) == 2 and all(is_count(index, 0) for index in value)


@dataclasses.dataclass(frozen=True, kw_only=True)
class VitPoseConfig:
    """A ViTPose or ViTPose++ (Xu et al. 2022, arXiv:2204.12484 and arXiv:2212.04246).

    Attributes:
        image_size: height and width of a crop, in pixels: multiples of the patch size.
        patch_size: height and width of a patch, in pixels.
        num_channels: channels of a crop.
        hidden_size: width of a token.
        num_layers: number of blocks.
        num_heads: number of attention heads; it divides `hidden_size`.
        mlp_ratio: width of the hidden layer of a block's MLP, as a multiple of `hidden_size`.
        hidden_act: "gelu" (exact), "gelu_tanh" or "relu".
        qkv_bias: whether queries, keys and values have a bias.
        layer_norm_eps: 1e-6 in the original, 1e-12 in the checkpoints on the Hub.
        experts: names of the datasets that have an expert in each block, in the order of `dataset_index`; () for a
            plain ViTPose.
        part_features: width of an expert, the last channels of the MLP's output; 0 without experts.
        out_indices: the blocks (1 to `num_layers`, 0 for the embedding) whose outputs are feature maps. The decoder
            reads the last one. () means (num_layers,).
        decoder: "classic" (two transposed convolutions) or "simple" (bilinear upsampling, then one convolution).
        scale_factor: size of the heatmaps as a multiple of the patch grid; always 4 for "classic".
        skeletons: one head for each. With experts, each skeleton has the name of one of the `experts`.
        image_mean, image_std: mean and standard deviation of each channel, for pixel values scaled to 0..1.
        initializer_range: standard deviation of the initial weights.
        window_size: rows and columns of patches in an attention window, for large crops (windowed_attention.py).
            The last windows are smaller if the grid is not a multiple. None means attention among all patches.
        window_shift: whether the windows of every second block are shifted by half a window.
        window_pool: whether each window also attends to the means of all windows.
        knowledge_token: width of a token that a teacher has learnt, appended to the patch tokens
            (training/distill.py); 0 for no such token. Not with windows.

    Raises:
        ValueError: if fields contradict each other; one line that names each field with expected and got.
    """

    image_size: tuple[int, int] = (256, 192)
    patch_size: tuple[int, int] = (16, 16)
    num_channels: int = 3
    hidden_size: int = 768
    num_layers: int = 12
    num_heads: int = 12
    mlp_ratio: int | float = 4
    hidden_act: str = "gelu"
    qkv_bias: bool = True
    layer_norm_eps: float = 1e-6
    experts: tuple[str, ...] = ()
    part_features: int = 0
    out_indices: tuple[int, ...] = ()
    decoder: str = "classic"
    scale_factor: int = 4
    skeletons: tuple[Skeleton, ...] = (COCO,)
    image_mean: tuple[float, ...] = IMAGENET_MEAN
    image_std: tuple[float, ...] = IMAGENET_STD
    initializer_range: float = 0.02
    window_size: tuple[int, int] | None = None
    window_shift: bool = False
    window_pool: bool = False
    knowledge_token: int = 0

    def __post_init__(self) -> None:
        for name in ("image_size", "patch_size", "out_indices", "window_size"):
            if isinstance(getattr(self, name), list | tuple):
                sides = tuple(int(n) if isinstance(n, numbers.Integral) else n for n in getattr(self, name))
                object.__setattr__(self, name, sides)
        if not self.out_indices:
            object.__setattr__(self, "out_indices", (self.num_layers,))
        problems = list(self._problems())
        if problems:
            raise ValueError("VitPoseConfig: " + "; ".join(problems))

    def _problems(self):
        for name in ("num_channels", "hidden_size", "num_layers", "num_heads", "scale_factor"):
            if not is_count(getattr(self, name)):
                yield f"{name}: expected a positive whole number, got {shorten(getattr(self, name))}"
                return
        for name in ("mlp_ratio", "layer_norm_eps", "initializer_range"):
            if not is_number(getattr(self, name)) or not getattr(self, name) > 0:
                yield f"{name}: expected a positive number, got {shorten(getattr(self, name))}"
                return
        if not is_count(self.mlp_features):
            yield f"mlp_ratio: expected an MLP of 1 to {_LARGEST - 1} features, got {self.mlp_features}"
        for name in ("qkv_bias", "window_shift", "window_pool"):
            if not isinstance(getattr(self, name), bool):
                yield f"{name}: expected true or false, got {shorten(getattr(self, name))}"
        for name, kind in (("experts", str), ("skeletons", Skeleton), ("out_indices", int)):
            value = getattr(self, name)
            if not isinstance(value, tuple) or not all(isinstance(item, kind) for item in value):
                yield f"{name}: expected a tuple of {kind.__name__}, got {shorten(value)}"
                return
        if not is_count(self.part_features, 0):
            yield f"part_features: expected a whole number, got {shorten(self.part_features)}"
            return
        for name in ("image_size", "patch_size", "window_size"):
            value = getattr(self, name)
            if name == "window_size" and value is None:
                continue
            if not isinstance(value, tuple) or len(value) != 2 or not all(map(is_count, value)):
                yield f"{name}: expected two positive whole numbers (height, width), got {shorten(value)}"
                return
        if any(side % patch for side, patch in zip(self.image_size, self.patch_size, strict=True)):
            yield f"image_size: expected multiples of the patch size {self.patch_size}, got {self.image_size}"
        if min(self.patch_size) <= 2 * PATCH_PADDING:
            yield f"patch_size: expected more than {2 * PATCH_PADDING} pixels, got {self.patch_size}"
        if self.hidden_size % self.num_heads:
            yield f"num_heads: expected a divisor of hidden_size {self.hidden_size}, got {self.num_heads}"
        if self.hidden_act not in ACTIVATIONS:
            yield f"hidden_act: expected one of {', '.join(ACTIVATIONS)}, got {shorten(self.hidden_act)}"
        if self.decoder not in DECODERS:
            yield f"decoder: expected one of {', '.join(DECODERS)}, got {shorten(self.decoder)}"
        if self.decoder == "classic" and self.scale_factor != 4:
            yield f"scale_factor: the classic decoder enlarges by 4, got {self.scale_factor}"
        if self.experts and not 0 < self.part_features < self.hidden_size:
            yield f"part_features: expected 1 to {self.hidden_size - 1} with experts, got {self.part_features}"
        if not self.experts and self.part_features:
            yield f"part_features: expected 0 without experts, got {self.part_features}"
        if list(self.out_indices) != sorted(set(self.out_indices)) or not all(
            0 <= index <= self.num_layers for index in self.out_indices
        ):
            yield f"out_indices: expected rising block numbers from 0 to {self.num_layers}, got {self.out_indices}"
        names = [skeleton.name for skeleton in self.skeletons]
        if not names or len(set(names)) != len(names):
            yield f"skeletons: expected one or more with distinct names, got {names}"
        if self.experts and (len(set(self.experts)) != len(self.experts) or not set(names) <= set(self.experts)):
            yield f"skeletons: expected names among the distinct experts {self.experts}, got {names}"
        problem = normalization_problem(self.image_mean, self.image_std, self.num_channels)
        if problem:
            yield problem
        if not is_count(self.knowledge_token, 0):
            yield f"knowledge_token: expected its width, or 0 for none, got {shorten(self.knowledge_token)}"
            return
        if self.knowledge_token and self.window_size is not None:
            yield f"knowledge_token: expected none with a window_size, got width {self.knowledge_token}"
        for name in ("window_shift", "window_pool"):
            if getattr(self, name) and self.window_size is None:
                yield f"{name}: expected a window_size with it, got none"

    @property
    def num_experts(self) -> int:
        """Number of experts in each block; 1 for a plain ViTPose."""
        return max(1, len(self.experts))

    @property
    def mlp_features(self) -> int:
        """Width of the hidden layer of a block's MLP."""
        return int(self.hidden_size * self.mlp_ratio)

    @property
    def grid_size(self) -> tuple[int, int]:
        """Rows and columns of patches."""
        return (self.image_size[0] // self.patch_size[0], self.image_size[1] // self.patch_size[1])

    @property
    def num_patches(self) -> int:
        """Number of patches of a crop."""
        return math.prod(self.grid_size)

    @property
    def heatmap_size(self) -> tuple[int, int]:
        """Height and width of a heatmap, in heatmap pixels."""
        return (self.grid_size[0] * self.scale_factor, self.grid_size[1] * self.scale_factor)

    @property
    def datasets(self) -> tuple[str, ...]:
        """Names of the datasets, in the order of `dataset_index`. A dataset can have an expert but no head."""
        return self.experts or tuple(skeleton.name for skeleton in self.skeletons)

    def dataset_index(self, dataset: str | int | None = None) -> int:
        """The index of a dataset.

        Args:
            dataset: name or index; None means the dataset of the first head.

        Raises:
            ValueError: for a dataset that the model does not know.
        """
        if dataset is None:
            dataset = self.skeletons[0].name
        if isinstance(dataset, str):
            names = [canonical_name(name) for name in self.datasets]
            if canonical_name(dataset) in names:
                return names.index(canonical_name(dataset))
        elif isinstance(dataset, numbers.Integral) and 0 <= dataset < len(self.datasets):
            return int(dataset)
        known = ", ".join(f"{name} ({index})" for index, name in enumerate(self.datasets))
        raise ValueError(f"no dataset {dataset!r} in this model; it knows {known}")

    def skeleton(self, dataset: str | int | None = None) -> Skeleton:
        """The skeleton of a dataset's head.

        Args:
            dataset: name or index; None means the first head.

        Raises:
            ValueError: for an unknown dataset, and for a dataset with an expert but no head. The ViTPose++
                checkpoints on the Hub have six experts but only the COCO head.
        """
        name = self.datasets[self.dataset_index(dataset)]
        for skeleton in self.skeletons:
            if skeleton.name == name:
                return skeleton
        heads = ", ".join(skeleton.name for skeleton in self.skeletons)
        raise ValueError(
            f"this model has an expert for {name!r} but no head; its heads are: {heads}. "
            "An original ViTPose++ .pth file has all six heads"
        )

    def replace(self, **changes: Any) -> VitPoseConfig:
        """A copy with some fields changed."""
        if changes.get("num_layers", self.num_layers) != self.num_layers:
            changes.setdefault("out_indices", ())
        return dataclasses.replace(self, **changes)

    def to_dict(self) -> dict[str, Any]:
        """Numbers, strings and lists, ready for JSON. `NEW_FIELDS` are left out if they have their default values."""
        fields = dataclasses.fields(self)
        values = {field.name: getattr(self, field.name) for field in fields}
        for field in fields:
            if field.name in NEW_FIELDS and values[field.name] == field.default:
                del values[field.name]
        values["skeletons"] = [skeleton.to_dict() for skeleton in self.skeletons]
        return {name: list(value) if isinstance(value, tuple) else value for name, value in values.items()}

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> VitPoseConfig:
        """The inverse of `to_dict`.

        Raises:
            ValueError: for unknown or missing fields, or fields that contradict each other.
        """
        expected = {field.name for field in dataclasses.fields(cls)}
        missing = expected - set(NEW_FIELDS) - set(values)
        if missing or set(values) - expected:
            raise ValueError(
                f"VitPoseConfig: missing fields {sorted(missing)}, "
                f"unknown fields [{join(map(repr, sorted(set(values) - expected)))}]"
            )
        fields: dict[str, Any] = {
            name: tuple(value) if isinstance(value, list) else value for name, value in values.items()
        }
        if not isinstance(values["skeletons"], list | tuple):
            raise ValueError(f"skeletons: expected a list, got {shorten(values['skeletons'])}")
        fields["skeletons"] = tuple(read_skeleton(skeleton) for skeleton in values["skeletons"])
        return cls(**fields)

    @classmethod
    def preset(cls, name: str, **changes: Any) -> VitPoseConfig:
        """A published architecture: "base", "base-simple", "plus-base", ...; see `PRESETS`.

        Presets follow the original ViTPose repository: six heads for the "plus" models, LayerNorm eps 1e-6.

        Raises:
            ValueError: for an unknown name; the message lists the known ones.
        """
        if name not in PRESETS:
            raise ValueError(f"no preset named {name!r}; expected one of {', '.join(PRESETS)}")
        return cls(**{**PRESETS[name], **changes})


_SIZES: dict[str, dict[str, Any]] = {
    "small": {"hidden_size": 384, "num_layers": 12, "num_heads": 12},
    "base": {"hidden_size": 768, "num_layers": 12, "num_heads": 12},
    "large": {"hidden_size": 1024, "num_layers": 24, "num_heads": 16},
    "huge": {"hidden_size": 1280, "num_layers": 32, "num_heads": 16},
}
_PART_FEATURES = {"small": 96, "base": 192, "large": 256, "huge": 320}
_PLUS: dict[str, Any] = {"experts": tuple(skeleton.name for skeleton in DATASETS), "skeletons": DATASETS}

PRESETS: dict[str, dict[str, Any]] = {
    **_SIZES,
    **{f"{size}-simple": {**fields, "decoder": "simple"} for size, fields in _SIZES.items()},
    **{f"plus-{size}": {**fields, **_PLUS, "part_features": _PART_FEATURES[size]} for size, fields in _SIZES.items()},
}
