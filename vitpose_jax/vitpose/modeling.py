"""The network, from normalised crops to heatmaps; read it top to bottom.

    crops (n, 256, 192, 3)
      PatchEmbed      tokens (n, 192, dim), one for each patch of 16 x 16 pixels, positions added
      Block x depth   tokens += Attention(LayerNorm(tokens)); tokens += Mlp(LayerNorm(tokens))
      LayerNorm
      decoder         heatmaps (n, 64, 48, K), one channel for each keypoint

ViTPose++ differs in one place: the last `part_features` channels that a block's MLP puts out come from an
expert of the crop's data set (`MoeMlp`); and it has one decoder for each data set.

Arrays are channels last. The blocks are one `Block` whose parameters carry a leading axis of length depth,
scanned over: that compiles, dispatches and runs fastest (benchmarks/README.md has the figures).
For large crops attention can be cut into windows (windowed_attention.py).
`dtype` computes and `param_dtype` stores. Softmax, and the statistics and parameters of norms, are float32
whatever the two say.

A new model is ready to predict. For training, call with `drop_path` and a key, and let BatchNorm use the batch:
`nnx.view(model, use_running_average=False, raise_if_not_found=False)` (the simple decoder has no BatchNorm).
"""

import math
from collections.abc import Sequence
from typing import NamedTuple, TypeAlias

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.typing import DTypeLike
from jaxtyping import Array, Float, Int, Key

from vitpose_jax.storage import parameters
from vitpose_jax.vitpose import ops, windowed_attention
from vitpose_jax.vitpose.config import PATCH_PADDING, VitPoseConfig
from vitpose_jax.vitpose.positions import resize_positions

DatasetIndex: TypeAlias = int | Int[Array, ""] | Int[Array, " n"] | Int[np.ndarray, " n"]

# Of a block's two residual branches: the rate at which they are left out, and a key for each.
DropPath: TypeAlias = tuple[Float[Array, ""], Key[Array, "2"]]

DECONV_FEATURES = 256
HEAD_INIT = nnx.initializers.normal(0.001)


class PatchEmbed(nnx.Module):
    """Cuts crops into patches, projects each to a token and adds its position.

    The convolution pads two pixels on every side, so every patch is seen two pixels up and to the left of its
    place. Row 0 of `pos_embed` belonged to a class token; it is added to every patch.
    """

    def __init__(self, config: VitPoseConfig, *, dtype: DTypeLike, param_dtype: DTypeLike, rngs: nnx.Rngs):
        init = nnx.initializers.truncated_normal(config.initializer_range)
        self.proj = nnx.Conv(
            config.num_channels,
            config.hidden_size,
            config.patch_size,
            kernel_init=init,
            dtype=dtype,
            param_dtype=param_dtype,
            rngs=rngs,
        )
        self.pos_embed = nnx.Param(init(rngs.params(), (1 + config.num_patches, config.hidden_size), param_dtype))
        self.grid_size = config.grid_size
        self.dtype = dtype

    def __call__(self, crops: Float[Array, "n height width channels"]) -> Float[Array, "n tokens dim"]:
        kernel, bias, pos_embed = (
            leaf[...].astype(self.dtype) for leaf in (self.proj.kernel, self.proj.bias, self.pos_embed)
        )
        # The convolution as the product that it is: compilers make little of the gradient of one with such strides.
        patches = ops.cut_patches(crops, self.proj.kernel_size, self.grid_size, PATCH_PADDING)
        return patches @ jax.lax.collapse(kernel, 0, 3) + bias + pos_embed[1:] + pos_embed[:1]


class Attention(nnx.Module):
    """Multi-head self-attention with queries, keys and values in one projection; among all tokens, or in windows."""

    def __init__(self, config: VitPoseConfig, *, dtype: DTypeLike, param_dtype: DTypeLike, rngs: nnx.Rngs):
        dim = config.hidden_size
        kwargs = {
            "kernel_init": nnx.initializers.truncated_normal(config.initializer_range),
            "dtype": dtype,
            "param_dtype": param_dtype,
            "rngs": rngs,
        }
        self.qkv = nnx.Linear(dim, 3 * dim, use_bias=config.qkv_bias, **kwargs)
        self.proj = nnx.Linear(dim, dim, **kwargs)
        self.num_heads = config.num_heads
        self.windows = windowed_attention.windows_of(config)

    def __call__(
        self, tokens: Float[Array, "n tokens dim"], shift: windowed_attention.Shift | None = None
    ) -> tuple[Float[Array, "n tokens dim"], Float[Array, "n heads tokens tokens"] | None]:
        n, length, dim = tokens.shape
        head_dim = dim // self.num_heads
        qkv = self.qkv(tokens)
        if self.windows is not None:
            qkv = qkv.reshape(n, length, 3, self.num_heads, head_dim)
            return self.proj(windowed_attention.attend(qkv, self.windows, shift).reshape(n, length, dim)), None
        # Cut into three before the heads are told apart, heads before tokens, and the keys transposed: the layouts
        # that matrix products want (benchmarks/README.md).
        query, key, value = (part.reshape(n, length, self.num_heads, head_dim) for part in jnp.split(qkv, 3, axis=-1))
        query, key, value = query.transpose(0, 2, 1, 3), key.transpose(0, 2, 3, 1), value.transpose(0, 2, 1, 3)
        logits = jnp.matmul(query, key, preferred_element_type=jnp.float32)
        weights = jax.nn.softmax(logits * head_dim**-0.5).astype(tokens.dtype)
        mixed = (weights @ value).transpose(0, 2, 1, 3).reshape(n, length, dim)
        return self.proj(mixed), weights


class Mlp(nnx.Module):
    """Two layers with the activation between them."""

    def __init__(self, config: VitPoseConfig, *, dtype: DTypeLike, param_dtype: DTypeLike, rngs: nnx.Rngs):
        kwargs = {
            "kernel_init": nnx.initializers.truncated_normal(config.initializer_range),
            "dtype": dtype,
            "param_dtype": param_dtype,
            "rngs": rngs,
        }
        # With experts, the last part_features channels of the output are theirs.
        self.fc1 = nnx.Linear(config.hidden_size, config.mlp_features, **kwargs)
        self.fc2 = nnx.Linear(config.mlp_features, config.hidden_size - config.part_features, **kwargs)
        self.act = ops.ACTIVATIONS[config.hidden_act]

    def __call__(
        self, tokens: Float[Array, "n tokens dim"], dataset_index: DatasetIndex
    ) -> Float[Array, "n tokens dim"]:
        return self.fc2(self.act(self.fc1(tokens)))


class MoeMlp(Mlp):
    """An `Mlp` whose last `part_features` output channels come from the expert of the crop's data set.

    The experts are second layers that read the hidden layer all data sets share. Each crop is multiplied with
    its own expert alone.
    """

    def __init__(self, config: VitPoseConfig, *, dtype: DTypeLike, param_dtype: DTypeLike, rngs: nnx.Rngs):
        super().__init__(config, dtype=dtype, param_dtype=param_dtype, rngs=rngs)
        init = nnx.initializers.truncated_normal(config.initializer_range)
        shape = (config.num_experts, config.mlp_features, config.part_features)
        self.experts_kernel = nnx.Param(init(rngs.params(), shape, param_dtype))
        self.experts_bias = nnx.Param(jnp.zeros((config.num_experts, config.part_features), param_dtype))
        self.dtype = dtype

    def __call__(
        self, tokens: Float[Array, "n tokens dim"], dataset_index: DatasetIndex
    ) -> Float[Array, "n tokens dim"]:
        hidden = self.act(self.fc1(tokens))
        kernel = self.experts_kernel[...][dataset_index].astype(self.dtype)
        bias = self.experts_bias[...][dataset_index].astype(self.dtype)
        part = hidden @ kernel + (bias if bias.ndim == 1 else bias[:, None])
        return jnp.concatenate([self.fc2(hidden), part], axis=-1)


class Block(nnx.Module):
    """A pre-norm transformer block."""

    def __init__(self, config: VitPoseConfig, *, dtype: DTypeLike, param_dtype: DTypeLike, rngs: nnx.Rngs):
        kwargs = {"dtype": dtype, "param_dtype": param_dtype, "rngs": rngs}
        self.norm1 = _layer_norm(config, dtype=dtype, rngs=rngs)
        self.attention = Attention(config, **kwargs)
        self.norm2 = _layer_norm(config, dtype=dtype, rngs=rngs)
        self.mlp = (MoeMlp if config.experts else Mlp)(config, **kwargs)

    def __call__(
        self,
        tokens: Float[Array, "n tokens dim"],
        dataset_index: DatasetIndex = 0,
        drop_path: DropPath | None = None,
        shift: windowed_attention.Shift | None = None,
    ) -> tuple[Float[Array, "n tokens dim"], Float[Array, "n heads tokens tokens"] | None]:
        attended, weights = self.attention(self.norm1(tokens), shift)
        tokens = tokens + _drop(attended, drop_path, 0)
        return tokens + _drop(self.mlp(self.norm2(tokens), dataset_index), drop_path, 1), weights


def _drop(branch: Float[Array, "n tokens dim"], drop_path: DropPath | None, which: int) -> Float[Array, "n tokens dim"]:
    # Stochastic depth (Huang et al. 2016), as in timm: for each crop the branch is there or not, and the mean stays.
    if drop_path is None:
        return branch
    rate, keys = drop_path
    kept = jax.random.bernoulli(keys[which], 1 - rate, (len(branch), 1, 1))
    return jnp.where(kept, branch / (1 - rate), 0).astype(branch.dtype)


def _layer_norm(config: VitPoseConfig, *, dtype: DTypeLike, rngs: nnx.Rngs) -> nnx.LayerNorm:
    # The fast variance, E[x^2] - E[x]^2, loses three digits where the mean is large.
    return nnx.LayerNorm(
        config.hidden_size, epsilon=config.layer_norm_eps, use_fast_variance=False, dtype=dtype, rngs=rngs
    )


class BackboneOutput(NamedTuple):
    """What a `Backbone` computes; the parts not asked for are None or empty.

    Attributes:
        tokens: (n, tokens, dim), what the decoder reads: the last of `out_indices`, normalised.
        hidden_states: (1 + depth, n, tokens, dim), the embedding and every block's output, not normalised.
        attentions: (depth, n, heads, tokens, tokens), every block's attention weights; a knowledge token is the
            last of the tokens here, and in the other parts left out.
        feature_maps: for each block asked for, its output, normalised, as (n, rows, columns, dim).
    """

    tokens: Float[Array, "n tokens dim"]
    hidden_states: Float[Array, "states n tokens dim"] | None = None
    attentions: Float[Array, "depth n heads all_tokens all_tokens"] | None = None
    feature_maps: tuple[Float[Array, "n rows columns dim"], ...] = ()


class KnowledgeToken(nnx.Module):
    """Appends one token to those of the patches: what a teacher has learnt, for a student (training/distill.py).

    It is stored in the teacher's width. Where that is not the model's, a linear layer brings it there.
    """

    def __init__(self, config: VitPoseConfig, *, dtype: DTypeLike, param_dtype: DTypeLike, rngs: nnx.Rngs):
        init = nnx.initializers.truncated_normal(config.initializer_range)
        width, dim = config.knowledge_token, config.hidden_size
        self.token = nnx.Param(init(rngs.params(), (width,), param_dtype))
        self.fits = width == dim
        if not self.fits:
            self.proj = nnx.Linear(width, dim, kernel_init=init, dtype=dtype, param_dtype=param_dtype, rngs=rngs)
        self.dtype = dtype

    def __call__(self, tokens: Float[Array, "n tokens dim"]) -> Float[Array, "n tokens+1 dim"]:
        token = self.token[...].astype(self.dtype)
        token = token if self.fits else self.proj(token)
        return jnp.concatenate([tokens, jnp.broadcast_to(token, (len(tokens), 1, len(token)))], axis=1)


class Backbone(nnx.Module):
    """A plain vision transformer with, for ViTPose++, an expert for each data set in every block."""

    def __init__(
        self,
        config: VitPoseConfig,
        *,
        dtype: DTypeLike = jnp.float32,
        param_dtype: DTypeLike = jnp.float32,
        rngs: nnx.Rngs,
    ):
        kwargs = {"dtype": dtype, "param_dtype": param_dtype}
        self.patch_embed = PatchEmbed(config, **kwargs, rngs=rngs)
        if config.knowledge_token:
            self.knowledge_token = KnowledgeToken(config, **kwargs, rngs=rngs)
        self.blocks = nnx.vmap(lambda rngs: Block(config, **kwargs, rngs=rngs))(rngs.split(config.num_layers))
        self.norm = _layer_norm(config, dtype=dtype, rngs=rngs)
        self.config = config
        self.dtype = dtype
        self.param_dtype = param_dtype

    def __call__(
        self,
        crops: Float[Array, "n height width channels"],
        dataset_index: DatasetIndex = 0,
        *,
        drop_path: float = 0.0,
        key: Key[Array, ""] | None = None,
        remat: bool = False,
        output_hidden_states: bool = False,
        output_attentions: bool = False,
        feature_blocks: Sequence[int] = (),
    ) -> BackboneOutput:
        """Run the transformer.

        Args:
            crops: normalised, of the size the configuration names.
            dataset_index: the expert, one number for all crops or an array with one for each; a plain
                backbone ignores it. From 0 to the number of experts - 1: nobody checks that here.
            drop_path: for training: the rate at which the last block's residual branches are left out, for each
                crop on its own; it rises linearly from 0 in the first block. Branches kept are scaled up.
            key: of the random choice; needed with `drop_path`.
            remat: keep only the blocks' inputs for the gradient and compute the rest of them again; without it the
                products of their linear layers are kept, too.
            output_hidden_states: also return the embedding and every block's output.
            output_attentions: also return every block's attention weights; not with windows.
            feature_blocks: also return the normalised outputs of these blocks: 1 to depth, or 0 for the
                embedding; the reference returns those of `config.out_indices`.

        Raises:
            ValueError: where the crops are not of the configured size, a block number is out of range,
                `drop_path` is not from 0 to less than 1 or comes without a key, or attention weights are asked
                for that windows do not have.
        """
        config = self.config
        expected = (*config.image_size, config.num_channels)
        if crops.shape[1:] != expected:
            raise ValueError(f"crops: expected (n, {', '.join(map(str, expected))}), got {crops.shape}")
        if not all(0 <= index <= config.num_layers for index in feature_blocks):
            raise ValueError(f"feature_blocks: expected numbers from 0 to {config.num_layers}, got {feature_blocks}")
        if not 0 <= drop_path < 1:
            raise ValueError(f"drop_path: expected a rate from 0 to less than 1, got {drop_path}")
        if drop_path and key is None:
            raise ValueError(f"drop_path {drop_path}: expected a key for the random choice, got none")
        cut = windowed_attention.windows_of(config)
        if output_attentions and cut is not None:
            raise ValueError("output_attentions: expected attention among all patches, got windows of them")

        def step(tokens, layer):
            block, drop, shift = layer
            tokens, weights = block(tokens, dataset_index, drop, shift)
            return tokens, (tokens if inside else None, weights if output_attentions else None)

        # The decoder reads the last of out_indices: blocks after it run only for those who look inside.
        inside = output_hidden_states or output_attentions or bool(feature_blocks)
        last = config.out_indices[-1]
        depth = config.num_layers if inside else last
        drops = None
        if drop_path:
            rates = jnp.linspace(0, drop_path, config.num_layers)
            drops = rates, jax.random.split(key, (config.num_layers, 2))
        layers = self.blocks, drops, None if cut is None else windowed_attention.block_shifts(cut, config.num_layers)
        if depth < config.num_layers:
            layers = jax.tree.map(lambda leaf: leaf[:depth], layers)
        embedded = self.patch_embed(crops.astype(self.dtype))
        if config.knowledge_token:
            embedded = self.knowledge_token(embedded)
        # For the gradient, what linear layers put out is kept. To compute the rest again takes no longer than to keep
        # it, in a third to a half of the memory. In a loop the compiler cannot merge the second computation with the
        # first: no barrier is needed.
        kept = None if remat else jax.checkpoint_policies.dots_with_no_batch_dims_saveable
        step = jax.checkpoint(step, prevent_cse=False, policy=kept)
        tokens, (states, attentions) = jax.lax.scan(step, embedded, layers)
        if not inside:
            return BackboneOutput(tokens=self.norm(_patches(tokens, config)))
        states = _patches(jnp.concatenate([embedded[None], states]), config)
        shape = (len(crops), *config.grid_size, config.hidden_size)
        return BackboneOutput(
            tokens=self.norm(states[last]),
            hidden_states=states if output_hidden_states else None,
            attentions=attentions,
            feature_maps=tuple(self.norm(states[index]).reshape(shape) for index in feature_blocks),
        )


def _patches(tokens: Float[Array, "*n tokens dim"], config: VitPoseConfig) -> Float[Array, "*n patches dim"]:
    return tokens[..., : config.num_patches, :] if config.knowledge_token else tokens


class Deconv(nnx.Module):
    """A transposed convolution, 4x4, stride 2, padding 1, without bias: it doubles height and width.

    `kernel` is stored mirrored, as a convolution over the dilated input uses it.
    """

    def __init__(self, features_in: int, features: int, *, dtype: DTypeLike, param_dtype: DTypeLike, rngs: nnx.Rngs):
        self.kernel = nnx.Param(HEAD_INIT(rngs.params(), (4, 4, features_in, features), param_dtype))
        self.dtype = dtype

    def __call__(self, x: Float[Array, "n height width features_in"]) -> Float[Array, "n 2*height 2*width features"]:
        return ops.deconv(x, self.kernel[...].astype(self.dtype))


class BatchNorm(nnx.BatchNorm):
    """As torch's: the running variance follows the unbiased variance of the batch, which flax's does not.

    The batch is normalised with the biased one, by both. Set to use the batch (`nnx.view`), a call updates the
    running mean and variance in place: `nnx.merge` with `copy=True` inside a loss, and read them afterwards.
    """

    def __init__(self, features: int, *, dtype: DTypeLike, rngs: nnx.Rngs):
        super().__init__(
            features,
            use_running_average=True,
            momentum=0.9,
            epsilon=1e-5,
            use_fast_variance=False,
            dtype=dtype,
            rngs=rngs,
        )

    def __call__(self, x: Float[Array, "n height width features"]) -> Float[Array, "n height width features"]:
        if self.use_running_average:
            return super().__call__(x)
        old = self.momentum * self.var[...]
        normalised = super().__call__(x)
        # What was added is (1 - momentum) x the biased variance; n / (n - 1) of that is wanted.
        self.var[...] += (self.var[...] - old) / max(1, math.prod(x.shape[:-1]) - 1)
        return normalised


class ClassicDecoder(nnx.Module):
    """Twice: transposed convolution, BatchNorm, ReLU; then a 1x1 convolution to K channels."""

    def __init__(
        self, config: VitPoseConfig, num_keypoints: int, *, dtype: DTypeLike, param_dtype: DTypeLike, rngs: nnx.Rngs
    ):
        kwargs = {"dtype": dtype, "param_dtype": param_dtype, "rngs": rngs}
        self.deconv1 = Deconv(config.hidden_size, DECONV_FEATURES, **kwargs)
        self.norm1 = BatchNorm(DECONV_FEATURES, dtype=dtype, rngs=rngs)
        self.deconv2 = Deconv(DECONV_FEATURES, DECONV_FEATURES, **kwargs)
        self.norm2 = BatchNorm(DECONV_FEATURES, dtype=dtype, rngs=rngs)
        self.conv = nnx.Conv(DECONV_FEATURES, num_keypoints, (1, 1), kernel_init=HEAD_INIT, **kwargs)

    def __call__(self, features: Float[Array, "n rows columns dim"]) -> Float[Array, "n height width K"]:
        x = jax.nn.relu(self.norm1(self.deconv1(features)))
        x = jax.nn.relu(self.norm2(self.deconv2(x)))
        return self.conv(x)


class SimpleDecoder(nnx.Module):
    """ReLU, bilinear enlargement by `scale_factor`, then a 3x3 convolution to K channels."""

    def __init__(
        self, config: VitPoseConfig, num_keypoints: int, *, dtype: DTypeLike, param_dtype: DTypeLike, rngs: nnx.Rngs
    ):
        self.conv = nnx.Conv(
            config.hidden_size,
            num_keypoints,
            (3, 3),
            kernel_init=HEAD_INIT,
            dtype=dtype,
            param_dtype=param_dtype,
            rngs=rngs,
        )
        self.heatmap_size = config.heatmap_size

    def __call__(self, features: Float[Array, "n rows columns dim"]) -> Float[Array, "n height width K"]:
        n, _, _, dim = features.shape
        return self.conv(jax.image.resize(jax.nn.relu(features), (n, *self.heatmap_size, dim), "bilinear"))


class VitPose(nnx.Module):
    """ViTPose and ViTPose++: a `Backbone` and one decoder for each skeleton of the configuration.

    Args:
        config: the architecture.
        dtype: in which to compute: float32, bfloat16 or float16.
        param_dtype: in which to store the parameters.
        rngs: for the initial parameters.

    Attributes:
        config: as given.
        backbone: the `Backbone`.
        heads: the decoders, by the name of their data set.
    """

    def __init__(
        self,
        config: VitPoseConfig,
        *,
        dtype: DTypeLike = jnp.float32,
        param_dtype: DTypeLike = jnp.float32,
        rngs: nnx.Rngs,
    ):
        kwargs = {"dtype": dtype, "param_dtype": param_dtype, "rngs": rngs}
        decoder = ClassicDecoder if config.decoder == "classic" else SimpleDecoder
        self.backbone = Backbone(config, **kwargs)
        self.heads = nnx.Dict(
            {skeleton.name: decoder(config, skeleton.num_keypoints, **kwargs) for skeleton in config.skeletons}
        )
        self.config = config

    def __call__(
        self,
        crops: Float[Array, "n height width channels"],
        dataset_index: str | int | Sequence[str | int] | Int[Array, "..."] | Int[np.ndarray, "..."] | None = None,
        *,
        drop_path: float = 0.0,
        key: Key[Array, ""] | None = None,
        remat: bool = False,
    ) -> Float[Array, "n rows columns K"]:
        """Heatmaps of crops.

        Every head sees every crop and BatchNorm, in training, the whole batch, whatever data sets its crops are
        of: that is how the original was trained. Batches of one data set at a time would cost less.

        Args:
            crops: normalised, (n, 256, 192, 3) for the usual image size.
            dataset_index: which expert and head to use: one name or number for all crops, or a sequence or
                integer array with one for each; None for the first head (COCO in published checkpoints).
            drop_path, key, remat: for training, as of `Backbone`.

        Returns:
            (n, 64, 48, K) heatmaps. With one data set for each crop, K is the largest of the heads': the
            channels a crop's head does not have are 0. Under `jax.jit`, where an array of numbers cannot be
            checked, crops of a data set without a head get NaN.

        Raises:
            ValueError: for a data set the model does not know or has no head for, for crops of another size,
                and for a `drop_path` without a key.
        """
        options = {"drop_path": drop_path, "key": key, "remat": remat}
        if dataset_index is None or isinstance(dataset_index, str | int):
            index = self.config.dataset_index(dataset_index)
            return self._decode(self.config.skeleton(index).name, self.backbone(crops, index, **options).tokens)
        if not isinstance(dataset_index, jax.core.Tracer):
            numbers = [self.config.dataset_index(_plain(item)) for item in np.ravel(np.asarray(dataset_index))]
            for number in sorted(set(numbers)):
                self.config.skeleton(number)
            dataset_index = jnp.asarray(numbers, jnp.int32).reshape(np.shape(dataset_index))
        if dataset_index.shape not in ((), (len(crops),)):
            raise ValueError(f"dataset_index: expected one, or {len(crops)} in a row, got shape {dataset_index.shape}")
        tokens = self.backbone(crops, dataset_index, **options).tokens
        channels = max(skeleton.num_keypoints for skeleton in self.config.skeletons)
        result = jnp.full((len(crops), *self.config.heatmap_size, channels), jnp.nan, tokens.dtype)
        for skeleton in self.config.skeletons:
            heatmaps = self._decode(skeleton.name, tokens)
            heatmaps = jnp.pad(heatmaps, ((0, 0), (0, 0), (0, 0), (0, channels - skeleton.num_keypoints)))
            mine = jnp.broadcast_to(dataset_index == self.config.dataset_index(skeleton.name), len(crops))
            result = jnp.where(mine[:, None, None, None], heatmaps, result)
        return result

    def specialize(self, dataset: str | int | None = None) -> "VitPose":
        """A plain ViTPose for one data set, with equal heatmaps: its expert is folded into the second layer.

        Args:
            dataset: name or number; None for the first head.

        Raises:
            ValueError: for a data set the model does not know or has no head for.
        """
        index, skeleton = self.config.dataset_index(dataset), self.config.skeleton(dataset)
        config = self.config.replace(experts=(), part_features=0, skeletons=(skeleton,))
        tensors = parameters.flatten(self)
        kept = {name: leaf for name, leaf in tensors.items() if not name.startswith("heads.") and "experts" not in name}
        kept |= {name: leaf for name, leaf in tensors.items() if name.startswith(f"heads.{skeleton.name}.")}
        if self.config.experts:
            for kind in ("kernel", "bias"):
                shared, experts = (tensors[f"backbone.blocks.mlp.{name}{kind}"] for name in ("fc2.", "experts_"))
                kept[f"backbone.blocks.mlp.fc2.{kind}"] = jnp.concatenate([shared, experts[:, index]], axis=-1)
        return self._rebuild(config, kept)

    def resize(self, image_size: tuple[int, int]) -> "VitPose":
        """The same model for crops of another height and width: its position embeddings are interpolated."""
        config = self.config.replace(image_size=image_size)
        tensors = parameters.flatten(self)
        name = "backbone.patch_embed.pos_embed"
        positions = np.asarray(tensors[name].astype(jnp.float32))
        tensors[name] = resize_positions(positions, self.config.grid_size, config.grid_size)
        return self._rebuild(config, tensors)

    def with_windows(
        self, window_size: tuple[int, int] | None, *, shift: bool = False, pool: bool = False
    ) -> "VitPose":
        """The same parameters with attention inside windows, for crops that were resized to many patches.

        Heatmaps differ from those of attention among all patches: the paper fine-tunes with the windows.

        Args:
            window_size: rows and columns of patches, (8, 8) in the paper; None for attention among all.
            shift, pool: how windows hear of each other, see windowed_attention.py; the paper combines them.
        """
        config = self.config.replace(window_size=window_size, window_shift=shift, window_pool=pool)
        return self._rebuild(config, parameters.flatten(self))

    def _rebuild(self, config: VitPoseConfig, tensors: dict[str, Array]) -> "VitPose":
        kwargs = {"dtype": self.backbone.dtype, "param_dtype": self.backbone.param_dtype}
        return parameters.fill(abstract_vitpose(config, **kwargs), tensors)

    def _decode(self, name: str, tokens: Float[Array, "n tokens dim"]) -> Float[Array, "n rows columns K"]:
        return self.heads[name](tokens.reshape(len(tokens), *self.config.grid_size, self.config.hidden_size))


def abstract_vitpose(
    config: VitPoseConfig, *, dtype: DTypeLike = jnp.float32, param_dtype: DTypeLike = jnp.float32
) -> VitPose:
    """A `VitPose` with shapes in the place of arrays, to be filled by `parameters.fill`."""
    return parameters.abstract(lambda: VitPose(config, dtype=dtype, param_dtype=param_dtype, rngs=nnx.Rngs(0)))


def _plain(item: np.generic) -> str | int:
    value = item.item()
    if not isinstance(value, str | int):
        raise TypeError(f"dataset_index: expected names or whole numbers, got {value!r}")
    return value
