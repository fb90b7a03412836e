"""The second stage: a vision transformer judges the best boxes of the first network again, each in a crop of its own.

    images, boxes     the resized images, the best boxes of the first stage
      cut_crops       (n, K, rows, columns, 3): each box with some context, normalised
      SecondStage     tokens of a ViTPose's backbone -> for each crop a logit, and how its box should move
      move_boxes      the moved boxes

The backbone comes from a pose model, whose tokens know what a person is; a small head behind it is trained to judge
boxes (training/second_stage/), its last blocks if wanted. So few pictures are enough.
"""

from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jax.typing import DTypeLike
from jaxtyping import Array, Float, UInt8

from vitpose_jax.finder.config import SecondStageConfig
from vitpose_jax.vitpose.config import VitPoseConfig
from vitpose_jax.vitpose.modeling import Backbone

# What the head is told about the shape of a box: logarithms of its height and width in the image, and of its aspect.
SHAPE_FEATURES = 3
# The largest change of a box: of its centre in sides of the box, of the logarithms of its sides.
LARGEST_MOVE = 2.0


class SecondStage(nnx.Module):
    """Judges boxes by crops of them.

    Args:
        config: the architecture.
        dtype, param_dtype, rngs: as for the finder.
    """

    def __init__(self, config: SecondStageConfig, *, dtype: DTypeLike, param_dtype: DTypeLike, rngs: nnx.Rngs):
        kwargs: Any = {"dtype": dtype, "param_dtype": param_dtype, "rngs": rngs}
        self.backbone = Backbone(backbone_config(config), **kwargs)
        self.head = SecondStageHead(config, **kwargs)
        self.config = config

    def __call__(
        self, crops: Float[Array, "n rows columns 3"], shapes: Float[Array, "n 3"]
    ) -> tuple[Float[Array, " n"], Float[Array, "n 4"]]:
        """Judge boxes.

        Args:
            crops: from `cut_crops`.
            shapes: of the boxes, from `box_shapes`.

        Returns:
            Logits, and offsets for `move_boxes`, float32.
        """
        return self.head(self.backbone(crops).tokens, shapes)


class SecondStageHead(nnx.Module):
    """From the tokens of a crop to a logit and four offsets: two linear layers behind a smaller copy of each token."""

    def __init__(self, config: SecondStageConfig, *, dtype: DTypeLike, param_dtype: DTypeLike, rngs: nnx.Rngs):
        kwargs: Any = {"dtype": dtype, "param_dtype": param_dtype, "rngs": rngs}
        tokens = backbone_config(config).num_patches
        self.norm = nnx.LayerNorm(config.hidden_size, use_fast_variance=False, dtype=dtype, rngs=rngs)
        self.project = nnx.Linear(config.hidden_size, config.token_features, **kwargs)
        self.hidden = nnx.Linear(tokens * config.token_features + SHAPE_FEATURES, config.hidden_features, **kwargs)
        self.out = nnx.Linear(config.hidden_features, 5, **kwargs)

    def __call__(
        self,
        tokens: Float[Array, "n tokens dim"],
        shapes: Float[Array, "n 3"],
        *,
        dropout: float = 0.0,
        key: Array | None = None,
    ) -> tuple[Float[Array, " n"], Float[Array, "n 4"]]:
        """Logits and offsets.

        Args:
            tokens: of the backbone, or a stored copy of them.
            shapes: from `box_shapes`.
            dropout: for training: the rate at which features are dropped.
            key: for the random choice.
        """
        first, second = (None, None) if key is None else jax.random.split(key)
        x = nnx.gelu(self.project(self.norm(tokens)))
        x = jnp.concatenate([x.reshape(len(x), -1), shapes.astype(x.dtype)], axis=-1)
        x = nnx.gelu(self.hidden(_drop(x, dropout, first)))
        x = self.out(_drop(x, dropout, second)).astype(jnp.float32)
        return x[:, 0], x[:, 1:]


def backbone_config(config: SecondStageConfig) -> VitPoseConfig:
    """The configuration of the backbone; a ViTPose with it has a head, too, that is not used."""
    return VitPoseConfig(
        image_size=config.crop_size,
        hidden_size=config.hidden_size,
        num_layers=config.num_layers,
        num_heads=config.num_heads,
        layer_norm_eps=config.layer_norm_eps,
        out_indices=(config.num_layers,),
    )


def cut_crops(
    images: UInt8[Array, "n height width 3"], boxes: Float[Array, "n count 4"], config: SecondStageConfig
) -> Float[Array, "n count rows columns 3"]:
    """Normalised crops of boxes, bilinear with a filter as wide as a new pixel; black outside the image.

    Args:
        images: resized, as for the first stage.
        boxes: x1, y1, x2, y2 in their pixels.
        config: sizes, mean and standard deviation.
    """
    rows, columns = config.crop_size
    aspect = columns / rows
    centre, sides = _centre_and_sides(boxes)
    width = jnp.maximum(sides[..., 0], sides[..., 1] * aspect) * config.padding
    region = jnp.stack([width / aspect, width], axis=-1)  # height, width
    start = centre[..., ::-1] - region / 2
    scale = jnp.asarray([rows, columns], jnp.float32) / region

    def cut(image: Array, scale: Array, start: Array) -> Array:
        shape = (rows, columns, image.shape[-1])
        return jax.image.scale_and_translate(image, shape, (0, 1), scale, -start * scale, "linear", antialias=True)

    pixels = images.astype(jnp.float32)
    crops = jax.vmap(jax.vmap(cut, in_axes=(None, 0, 0)))(pixels, scale, start)
    mean, std = jnp.asarray(config.image_mean, jnp.float32), jnp.asarray(config.image_std, jnp.float32)
    return (crops / 255 - mean) / std


def box_shapes(boxes: Float[Array, "*n 4"], resized: Float[Array, "*#n 2"]) -> Float[Array, "*n 3"]:
    """What the head is told about boxes x1, y1, x2, y2 in images of these heights and widths."""
    _, sides = _centre_and_sides(boxes)
    width, height = sides[..., 0] / resized[..., 1], sides[..., 1] / resized[..., 0]
    return jnp.log(jnp.stack([height, width, sides[..., 0] / sides[..., 1]], axis=-1))


def box_offsets(boxes: Float[Array, "*n 4"], targets: Float[Array, "*n 4"]) -> Float[Array, "*n 4"]:
    """How boxes must move to be others: the centre in sides of the box, the logarithms of both sides."""
    (centre, sides), (goal, goal_sides) = map(_centre_and_sides, (boxes, targets))
    offsets = jnp.concatenate([(goal - centre) / sides, jnp.log(goal_sides / sides)], axis=-1)
    return jnp.clip(offsets, -LARGEST_MOVE, LARGEST_MOVE)


def move_boxes(boxes: Float[Array, "*n 4"], offsets: Float[Array, "*n 4"]) -> Float[Array, "*n 4"]:
    """Boxes x1, y1, x2, y2 that were moved; the inverse of `box_offsets`."""
    centre, sides = _centre_and_sides(boxes)
    offsets = jnp.clip(offsets, -LARGEST_MOVE, LARGEST_MOVE)
    centre, sides = centre + offsets[..., :2] * sides, sides * jnp.exp(offsets[..., 2:])
    return jnp.concatenate([centre - sides / 2, centre + sides / 2], axis=-1)


def _centre_and_sides(boxes: Array) -> tuple[Array, Array]:
    return (boxes[..., :2] + boxes[..., 2:]) / 2, jnp.maximum(boxes[..., 2:] - boxes[..., :2], 1)


def _drop(x: Array, rate: float, key: Array | None) -> Array:
    if key is None or not rate:
        return x
    return jnp.where(jax.random.bernoulli(key, 1 - rate, x.shape), x / (1 - rate), 0).astype(x.dtype)
