"""DetectorConfig: the fields that define the shapes and the arithmetic of a detector, and no others."""

from __future__ import annotations

import dataclasses
from typing import Any, NamedTuple

from vitpose_jax.storage.text import shorten
from vitpose_jax.vitpose.config import ACTIVATIONS, is_count, is_number, normalization_problem

DETECTOR_ACTIVATIONS = (*ACTIVATIONS, "silu")
SAMPLINGS = ("bilinear", "nearest")

# The stem halves height and width twice. Each stage except the first halves them again.
STEM_STRIDE = 4
# A bottleneck block has this many times fewer channels inside.
BOTTLENECK_REDUCTION = 4

# Limit on the sides of an image, which no tensor tells: the memory grows with their product.
LARGEST_IMAGE = 8192

# Default threshold of a `Detector`: objects have a higher score.
SCORE_THRESHOLD = 0.3

# Fields that must be positive whole numbers (COUNTS) or positive numbers (MEASURES).
COUNTS = (
    "num_channels",
    "embedding_size",
    "encoder_hidden_size",
    "encoder_layers",
    "encoder_heads",
    "encoder_ffn_size",
    "hidden_size",
    "num_queries",
    "num_levels",
    "num_points",
    "decoder_layers",
    "decoder_heads",
    "decoder_ffn_size",
)
MEASURES = ("temperature", "hidden_expansion", "offset_scale", "layer_norm_eps", "batch_norm_eps", "rescale_factor")


class BlockShape(NamedTuple):
    """The shape of a residual block of the backbone.

    Attributes:
        features_in, features: input and output channels.
        stride: 2 if the block halves height and width, else 1.
        shortcut: "none" adds the unchanged input; "project" applies a 1x1 convolution of that stride to it; "pool"
            averages 2x2 pixels, then projects.
    """

    features_in: int
    features: int
    stride: int
    shortcut: str


@dataclasses.dataclass(frozen=True, kw_only=True)
class DetectorConfig:
    """An RT-DETR (Zhao et al. 2023, arXiv:2304.08069) or RT-DETRv2 (Lv et al. 2024, arXiv:2407.17140).

    Attributes:
        version: 1 or 2. They place the decoder's sampling points differently.
        image_size: height and width of the network's input, in pixels: multiples of the coarsest stride.
        num_channels: channels of an image.
        embedding_size: channels after the stem.
        hidden_sizes, depths: number of channels and of blocks in each stage of the backbone.
        layer_type: "basic" blocks (two 3x3 convolutions) or "bottleneck" blocks.
        hidden_act: activation of the stem and after each residual block.
        downsample_in_first_stage: whether the first stage halves height and width too.
        downsample_in_bottleneck: whether the first convolution of a bottleneck has the stride, instead of the second.
        out_indices: the stages (from 1) whose feature maps the encoder reads.
        encoder_hidden_size: channels of the encoder.
        encoder_layers, encoder_heads, encoder_ffn_size, encoder_act: the transformer inside single feature maps.
        encoder_levels: the feature maps with such a transformer, as indices into `out_indices`.
        normalize_before: whether its LayerNorms come before attention and MLP, instead of after.
        temperature: temperature of its sine position embeddings.
        fusion_act: activation of the convolutions that fuse feature maps.
        hidden_expansion: inner channels of these convolutions, as a multiple of `encoder_hidden_size`.
        hidden_size: channels of the decoder.
        num_queries: the largest number of objects in an image.
        num_levels: number of feature maps that the decoder samples. Strided convolutions make the maps that
            `out_indices` does not have.
        num_points: sampling points of each query, for each head and level.
        decoder_layers, decoder_heads, decoder_ffn_size, decoder_act: the decoder.
        offset_scale: distance of sampling points from the centre of a box, as a multiple of its size.
        sampling: "bilinear", or "nearest" pixel for the discrete sampling of version 2.
        layer_norm_eps: eps of all LayerNorms.
        batch_norm_eps: eps of the BatchNorms in encoder and decoder; the backbone has 1e-5.
        labels: names of the classes.
        rescale_factor: factor for pixel values 0 to 255.
        image_mean, image_std: mean and standard deviation of each channel after rescaling; zeros and ones for no
            normalisation.

    Raises:
        ValueError: if fields contradict each other; one line that names each field with expected and got.
    """

    version: int = 1
    image_size: tuple[int, int] = (640, 640)
    num_channels: int = 3
    embedding_size: int = 64
    hidden_sizes: tuple[int, ...] = (256, 512, 1024, 2048)
    depths: tuple[int, ...] = (3, 4, 6, 3)
    layer_type: str = "bottleneck"
    hidden_act: str = "relu"
    downsample_in_first_stage: bool = False
    downsample_in_bottleneck: bool = False
    out_indices: tuple[int, ...] = (2, 3, 4)
    encoder_hidden_size: int = 256
    encoder_layers: int = 1
    encoder_heads: int = 8
    encoder_ffn_size: int = 1024
    encoder_levels: tuple[int, ...] = (2,)
    encoder_act: str = "gelu"
    normalize_before: bool = False
    temperature: int | float = 10000.0
    fusion_act: str = "silu"
    hidden_expansion: int | float = 1.0
    hidden_size: int = 256
    num_queries: int = 300
    num_levels: int = 3
    num_points: int = 4
    decoder_layers: int = 6
    decoder_heads: int = 8
    decoder_ffn_size: int = 1024
    decoder_act: str = "relu"
    offset_scale: int | float = 0.5
    sampling: str = "bilinear"
    layer_norm_eps: int | float = 1e-5
    batch_norm_eps: int | float = 1e-5
    labels: tuple[str, ...] = ("person",)
    rescale_factor: int | float = 1 / 255
    image_mean: tuple[float, ...] = (0.0, 0.0, 0.0)
    image_std: tuple[float, ...] = (1.0, 1.0, 1.0)

    def __post_init__(self) -> None:
        problems = list(self._problems())
        if problems:
            raise ValueError("DetectorConfig: " + "; ".join(problems))

    def _problems(self):
        for name in COUNTS:
            if not is_count(getattr(self, name)):
                yield f"{name}: expected a positive whole number, got {shorten(getattr(self, name))}"
                return
        for name in MEASURES:
            if not is_number(getattr(self, name)) or not getattr(self, name) > 0:
                yield f"{name}: expected a positive number, got {shorten(getattr(self, name))}"
                return
        for name in ("image_size", "hidden_sizes", "depths", "out_indices"):
            value = getattr(self, name)
            if not value or not isinstance(value, tuple) or not all(map(is_count, value)):
                yield f"{name}: expected positive whole numbers, got {shorten(value)}"
                return
        for name, kind in (("encoder_levels", int), ("labels", str)):
            value = getattr(self, name)
            if not isinstance(value, tuple) or not all(isinstance(item, kind) for item in value):
                yield f"{name}: expected a tuple of {kind.__name__}, got {shorten(value)}"
                return
        for name in ("downsample_in_first_stage", "downsample_in_bottleneck", "normalize_before"):
            if not isinstance(getattr(self, name), bool):
                yield f"{name}: expected true or false, got {shorten(getattr(self, name))}"
                return
        if max(self.image_size) > LARGEST_IMAGE:
            yield f"image_size: expected at most {LARGEST_IMAGE} pixels on a side, got {shorten(self.image_size)}"
        for name in ("hidden_act", "encoder_act", "fusion_act", "decoder_act"):
            if getattr(self, name) not in DETECTOR_ACTIVATIONS:
                yield f"{name}: expected one of {', '.join(DETECTOR_ACTIVATIONS)}, got {shorten(getattr(self, name))}"
        for name, known in (("version", (1, 2)), ("layer_type", ("basic", "bottleneck")), ("sampling", SAMPLINGS)):
            if getattr(self, name) not in known:
                yield f"{name}: expected one of {known}, got {shorten(getattr(self, name))}"
        if self.version == 1 and (self.offset_scale, self.sampling) != (0.5, "bilinear"):
            yield f"offset_scale, sampling: version 1 has 0.5 and bilinear, got {self.offset_scale}, {self.sampling}"
        if len(self.hidden_sizes) != len(self.depths):
            yield f"depths: expected one for each of {len(self.hidden_sizes)} hidden_sizes, got {self.depths}"
            return
        last = len(self.depths)
        if list(self.out_indices) != sorted(set(self.out_indices)) or self.out_indices[-1] > last:
            yield f"out_indices: expected rising stage numbers from 1 to {last}, got {self.out_indices}"
            return
        if self.out_indices != tuple(range(self.out_indices[0], self.out_indices[-1] + 1)):
            yield f"out_indices: expected consecutive stages, got {self.out_indices}"
        if len(self.image_size) != 2 or any(side % self.strides[-1] for side in self.image_size):
            yield f"image_size: expected height and width, multiples of {self.strides[-1]}, got {self.image_size}"
        if not set(self.encoder_levels) <= set(range(len(self.out_indices))):
            yield f"encoder_levels: expected numbers below {len(self.out_indices)}, got {self.encoder_levels}"
        if len(set(self.encoder_levels)) != len(self.encoder_levels):
            yield f"encoder_levels: expected distinct numbers, got {self.encoder_levels}"
        if self.num_levels < len(self.out_indices):
            yield f"num_levels: expected at least {len(self.out_indices)}, as in out_indices, got {self.num_levels}"
        if self.num_levels > len(self.out_indices) + 1 and self.hidden_size != self.encoder_hidden_size:
            yield (
                f"hidden_size: expected {self.encoder_hidden_size}, as encoder_hidden_size, with num_levels "
                f"{self.num_levels}; got {self.hidden_size}"
            )
        for size, heads in (("hidden_size", "decoder_heads"), ("encoder_hidden_size", "encoder_heads")):
            if getattr(self, size) % getattr(self, heads):
                yield f"{heads}: expected a divisor of {size} {getattr(self, size)}, got {getattr(self, heads)}"
        if self.encoder_hidden_size % 4:
            yield f"encoder_hidden_size: expected a multiple of 4, got {self.encoder_hidden_size}"
        if self.layer_type == "bottleneck" and any(size % BOTTLENECK_REDUCTION for size in self.hidden_sizes):
            yield f"hidden_sizes: expected multiples of {BOTTLENECK_REDUCTION} for bottlenecks, got {self.hidden_sizes}"
        elif any(block.shortcut == "pool" and block.stride == 1 for stage in self.stages for block in stage):
            yield f"embedding_size: expected {self.hidden_sizes[0]}, as in the first stage, got {self.embedding_size}"
        if not self.labels or len(set(self.labels)) != len(self.labels):
            yield f"labels: expected one or more distinct names, got {shorten(self.labels)}"
        problem = normalization_problem(self.image_mean, self.image_std, self.num_channels)
        if problem:
            yield problem
        tokens = sum(height * width for height, width in self.level_sizes) if len(self.image_size) == 2 else 0
        if self.num_queries > tokens:
            yield f"num_queries: expected at most {tokens}, all positions of the feature maps, got {self.num_queries}"

    @property
    def max_objects(self) -> int:
        """The largest number of objects in an image."""
        return self.num_queries

    @property
    def score_threshold(self) -> float:
        """Default threshold of a `Detector`."""
        return SCORE_THRESHOLD

    @property
    def strides(self) -> tuple[int, ...]:
        """Pixels of the image from one position of a feature map to the next, for each of `out_indices`."""
        return tuple(STEM_STRIDE * 2 ** (index - 1 + self.downsample_in_first_stage) for index in self.out_indices)

    @property
    def level_sizes(self) -> tuple[tuple[int, int], ...]:
        """Height and width of each feature map that the decoder samples."""
        height, width = self.image_size
        sizes = [(height // stride, width // stride) for stride in self.strides]
        # Each further level comes from the last feature map, by one convolution of stride 2.
        height, width = sizes[-1]
        return (*sizes, *[((height + 1) // 2, (width + 1) // 2)] * (self.num_levels - len(sizes)))

    @property
    def expanded_size(self) -> int:
        """Inner channels of the convolutions that fuse feature maps."""
        return int(self.encoder_hidden_size * self.hidden_expansion)

    @property
    def stages(self) -> tuple[tuple[BlockShape, ...], ...]:
        """The blocks of each stage of the backbone."""
        result = []
        features_in = self.embedding_size
        for index, (features, depth) in enumerate(zip(self.hidden_sizes, self.depths, strict=True)):
            stride = 2 if index or self.downsample_in_first_stage else 1
            first = BlockShape(features_in, features, stride, self._shortcut(features_in, features, stride))
            result.append((first, *[BlockShape(features, features, 1, "none")] * (depth - 1)))
            features_in = features
        return tuple(result)

    def _shortcut(self, features_in: int, features: int, stride: int) -> str:
        # The first block of a stage. A basic block always projects, and pools if the number of channels changes.
        if self.layer_type == "basic":
            return "pool" if features_in != features else "project"
        if stride == 2:
            return "pool"
        return "project" if features_in != features else "none"

    def replace(self, **changes: Any) -> DetectorConfig:
        """A copy with some fields changed."""
        return dataclasses.replace(self, **changes)
