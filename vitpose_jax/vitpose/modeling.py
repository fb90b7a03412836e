"""The pose network, from normalised crops to heatmaps. Read it top to bottom.

    crops (n, 256, 192, 3)
      PatchEmbed      tokens (n, 192, dim), one for each patch of 16 x 16 pixels, with its position added
      Block x depth   tokens += Attention(LayerNorm(tokens)); tokens += Mlp(LayerNorm(tokens))
      LayerNorm
      decoder         heatmaps (n, 64, 48, K), one channel for each keypoint

ViTPose++ adds experts and heads. In each block, the last `part_features` output channels of the MLP come from the
expert of the crop's dataset (`MoeMlp`). Each dataset also has its own decoder, its head.

Arrays are channels last. `Backbone.blocks` is a single `Block`: each of its parameters has a leading axis of length
depth, and `jax.lax.scan` runs over that axis. This form compiles and dispatches fastest; for programs on CPUs each
block gets arrays of its own (prepared.py). For large crops, attention can be restricted to windows
(windowed_attention.py).

The network computes in `dtype` and stores its parameters in `param_dtype`. Softmax, and the statistics and parameters
of norms, are always float32.

A new model is ready to predict. For training, pass `drop_path` and a key, and let BatchNorm use the statistics of the
batch: `nnx.view(model, use_running_average=False, raise_if_not_found=False)` (the simple decoder has no BatchNorm).

"The original" is the original ViTPose repository, https://github.com/ViTAE-Transformer/ViTPose.
"""

import math
import operator
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple, TypeAlias

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.core import Tracer
from jax.typing import DTypeLike
from jaxtyping import Array, Float, Int, Key

from vitpose_jax.storage import parameters
from vitpose_jax.vitpose import ops, products, windowed_attention
from vitpose_jax.vitpose.adapters import AdaptedKernel, Lora, check_no_adapters, with_adapted_kernels
from vitpose_jax.vitpose.config import PATCH_PADDING, VitPoseConfig
from vitpose_jax.vitpose.positions import resize_positions
from vitpose_jax.vitpose.quantized import Quantization, QuantizedKernel, with_quantized_kernels

# The expert to use: one index for all crops, or one index for each crop.
DatasetIndex: TypeAlias = int | Int[Array, ""] | Int[Array, " n"] | Int[np.ndarray, " n"]

# Stochastic depth in one block: the rate at which residual branches are dropped, and a key for each of the two.
DropPath: TypeAlias = tuple[Float[Array, ""], Key[Array, "2"]]

# Datasets by name or index, in the order of `VitPoseConfig.datasets`: one for all crops, or one for each crop.
Datasets: TypeAlias = str | int | Sequence[str | int] | Int[Array, "..."] | Int[np.ndarray, "..."]

DECONV_FEATURES = 256
HEAD_INIT = nnx.initializers.normal(0.001)


class PatchEmbed(nnx.Module):
    """Cuts crops into patches, projects each patch to a token and adds its position embedding.

    The convolution pads two pixels on each side, so it reads each patch two pixels further up and to the left.
    Row 0 of `pos_embed` was the position of a class token; as in the original, it is added to all patches.
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
        self.patch_size = config.patch_size
        self.grid_size = config.grid_size
        self.dtype = dtype

    def __call__(self, crops: Float[Array, "n height width channels"]) -> Float[Array, "n tokens dim"]:
        kernel, bias, pos_embed = (
            leaf[...].astype(self.dtype)  # pyright: ignore[reportOptionalSubscript]: this convolution has a bias
            for leaf in (self.proj.kernel, self.proj.bias, self.pos_embed)
        )
        # A convolution whose stride is its kernel size is a matrix product. XLA compiles the gradient of the product
        # much better.
        patches = ops.cut_patches(crops, self.patch_size, self.grid_size, PATCH_PADDING)
        return products.matmul(patches, jax.lax.collapse(kernel, 0, 3)) + bias + pos_embed[1:] + pos_embed[:1]


class Attention(nnx.Module):
    """Multi-head self-attention among all tokens, or inside windows. One projection makes queries, keys and values."""

    def __init__(self, config: VitPoseConfig, *, dtype: DTypeLike, param_dtype: DTypeLike, rngs: nnx.Rngs):
        dim = config.hidden_size
        kwargs = {
            "kernel_init": nnx.initializers.truncated_normal(config.initializer_range),
            "dtype": dtype,
            "param_dtype": param_dtype,
            "rngs": rngs,
        }
        self.qkv = products.Linear(dim, 3 * dim, use_bias=config.qkv_bias, **kwargs)
        self.proj = products.Linear(dim, dim, **kwargs)
        self.num_heads = config.num_heads
        self.windows = windowed_attention.make_windows(config)

    def __call__(
        self, tokens: Float[Array, "n tokens dim"], shift: windowed_attention.Shift | None = None
    ) -> tuple[Float[Array, "n tokens dim"], Float[Array, "n heads tokens tokens"] | None]:
        n, length, dim = tokens.shape
        head_dim = dim // self.num_heads
        qkv = self.qkv(tokens)
        if self.windows is not None:
            qkv = qkv.reshape(n, length, 3, self.num_heads, head_dim)
            return self.proj(windowed_attention.attend(qkv, self.windows, shift).reshape(n, length, dim)), None
        # Split before the reshape, heads before tokens, keys transposed: matrix products run fastest on these layouts
        # (benchmarks/README.md).
        query, key, value = (part.reshape(n, length, self.num_heads, head_dim) for part in jnp.split(qkv, 3, axis=-1))
        query, key, value = query.transpose(0, 2, 1, 3), key.transpose(0, 2, 3, 1), value.transpose(0, 2, 1, 3)
        logits = products.matmul(query, key, jnp.float32)
        weights = jax.nn.softmax(logits * head_dim**-0.5).astype(tokens.dtype)
        mixed = products.matmul(weights, value).transpose(0, 2, 1, 3).reshape(n, length, dim)
        return self.proj(mixed), weights


class Mlp(nnx.Module):
    """Two linear layers with an activation between them."""

    def __init__(self, config: VitPoseConfig, *, dtype: DTypeLike, param_dtype: DTypeLike, rngs: nnx.Rngs):
        kwargs = {
            "kernel_init": nnx.initializers.truncated_normal(config.initializer_range),
            "dtype": dtype,
            "param_dtype": param_dtype,
            "rngs": rngs,
        }
        # With experts, the last part_features output channels come from them.
        self.fc1 = products.Linear(config.hidden_size, config.mlp_features, **kwargs)
        self.fc2 = products.Linear(config.mlp_features, config.hidden_size - config.part_features, **kwargs)
        self.act = ops.activation(config.hidden_act)

    def __call__(
        self, tokens: Float[Array, "n tokens dim"], dataset_index: DatasetIndex
    ) -> Float[Array, "n tokens dim"]:
        return self.fc2(self.act(self.fc1(tokens)))


class MoeMlp(Mlp):
    """An `Mlp` whose last `part_features` output channels come from the expert of the crop's dataset.

    Each expert is a second linear layer. All experts read the same hidden layer. Only the crop's own expert is
    computed.
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
        if isinstance(self.experts_kernel, QuantizedKernel | AdaptedKernel):
            part = self.experts_kernel.product(hidden, dataset_index)
        else:
            part = products.matmul(hidden, self.experts_kernel[...][dataset_index].astype(self.dtype))
        bias = self.experts_bias[...][dataset_index].astype(self.dtype)
        part = part + (bias if bias.ndim == 1 else bias[:, None])
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


def _drop(branch: Float[Array, "n tokens dim"], drop_path: DropPath | None, index: int) -> Float[Array, "n tokens dim"]:
    # Stochastic depth (Huang et al. 2016), as in timm: drop the branch for some crops, and scale it up for the others,
    # so that the expected value stays the same.
    if drop_path is None:
        return branch
    rate, keys = drop_path
    mask = jax.random.bernoulli(keys[index], 1 - rate, (branch.shape[0], 1, 1))
    return jnp.where(mask, branch / (1 - rate), 0).astype(branch.dtype)


def _layer_norm(config: VitPoseConfig, *, dtype: DTypeLike, rngs: nnx.Rngs) -> nnx.LayerNorm:
    # The fast variance, E[x^2] - E[x]^2, loses three digits when the mean is large.
    return nnx.LayerNorm(
        config.hidden_size, epsilon=config.layer_norm_eps, use_fast_variance=False, dtype=dtype, rngs=rngs
    )


class BackboneOutput(NamedTuple):
    """The output of a `Backbone`. Optional parts that were not requested are None or empty.

    Attributes:
        tokens: (n, tokens, dim), the input of the decoder: the output of the last of `out_indices`, normalised.
        hidden_states: (1 + depth, n, tokens, dim), the embedding and the output of each block, not normalised.
        attentions: (depth, n, heads, tokens, tokens), the attention weights of each block. A knowledge token is the
            last token here; the other parts leave it out.
        feature_maps: the outputs of the requested blocks, normalised, each (n, rows, columns, dim).
    """

    tokens: Float[Array, "n tokens dim"]
    hidden_states: Float[Array, "states n tokens dim"] | None = None
    attentions: Float[Array, "depth n heads all_tokens all_tokens"] | None = None
    feature_maps: tuple[Float[Array, "n rows columns dim"], ...] = ()


class KnowledgeToken(nnx.Module):
    """Appends one learnt token to the patch tokens. A teacher learns it, a student reads it (training/distill.py).

    The token has the width of the teacher. If the model has another width, a linear layer projects the token to it.
    """

    def __init__(self, config: VitPoseConfig, *, dtype: DTypeLike, param_dtype: DTypeLike, rngs: nnx.Rngs):
        init = nnx.initializers.truncated_normal(config.initializer_range)
        width, dim = config.knowledge_token, config.hidden_size
        self.token = nnx.Param(init(rngs.params(), (width,), param_dtype))
        self.projected = width != dim
        if self.projected:
            self.proj = nnx.Linear(width, dim, kernel_init=init, dtype=dtype, param_dtype=param_dtype, rngs=rngs)
        self.dtype = dtype

    def __call__(self, tokens: Float[Array, "n tokens dim"]) -> Float[Array, "n tokens+1 dim"]:
        token = self.token[...].astype(self.dtype)
        token = self.proj(token) if self.projected else token
        return jnp.concatenate([tokens, jnp.broadcast_to(token, (tokens.shape[0], 1, token.shape[0]))], axis=1)


class Backbone(nnx.Module):
    """A plain vision transformer. In ViTPose++, each block has one expert for each dataset."""

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
        self.blocks: Block | nnx.List[Block] = nnx.vmap(lambda rngs: Block(config, **kwargs, rngs=rngs))(
            rngs.split(config.num_layers)
        )
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
            crops: normalised crops, of the configured `image_size`.
            dataset_index: the expert, from 0 to the number of experts - 1, which is not checked here: one index for
                all crops, or an array with one index for each. A plain backbone ignores it.
            drop_path: for training: the rate at which residual branches of the last block are dropped, for each crop
                independently. The rate rises linearly from 0 in the first block. The other branches are scaled up.
            key: for the random choice; required if `drop_path` is not 0.
            remat: store only the inputs of the blocks for the gradient and compute the rest again. Otherwise the
                outputs of linear layers are stored too.
            output_hidden_states: also return the embedding and the output of each block.
            output_attentions: also return the attention weights of each block; not with windows.
            feature_blocks: also return the normalised outputs of these blocks, 1 to depth, or 0 for the embedding.
                transformers returns the blocks of `config.out_indices`.

        Raises:
            ValueError: if the crops have another size, a block index is out of range, `drop_path` is not from 0 to
                less than 1 or has no key, or attention weights are requested from a model with windows.
        """
        config = self.config
        expected = (*config.image_size, config.num_channels)
        if crops.shape[1:] != expected:
            raise ValueError(f"crops: expected (n, {', '.join(map(str, expected))}), got {crops.shape}")
        if not all(0 <= index <= config.num_layers for index in feature_blocks):
            raise ValueError(
                f"feature_blocks: expected block numbers from 0 to {config.num_layers}, got {feature_blocks}"
            )
        if output_attentions and config.window_size is not None:
            raise ValueError("output_attentions: expected a model without windows, got one with windows")

        # The decoder reads the last of out_indices. Later blocks run only if intermediate outputs are requested.
        intermediates = output_hidden_states or output_attentions or bool(feature_blocks)
        last = config.out_indices[-1]
        layers = self._layers(config.num_layers if intermediates else last, drop_path, key)

        def step(tokens, layer):
            block, drop, shift = layer
            tokens, weights = block(tokens, dataset_index, drop, shift)
            return tokens, (tokens if intermediates else None, weights if output_attentions else None)

        # For the gradient, store the outputs of linear layers. Computing the rest again takes no longer than storing
        # it, and uses a third to a half of the memory. Inside a scan the compiler cannot merge the second computation
        # with the first, so prevent_cse is not needed.
        policies = jax.checkpoint_policies
        policy = policies.save_from_both_policies(
            policies.dots_with_no_batch_dims_saveable, policies.save_only_these_names(products.LINEAR)
        )
        policy = None if remat else policy
        step = jax.checkpoint(step, prevent_cse=False, policy=policy)

        embedding = self.patch_embed(crops.astype(self.dtype))
        if config.knowledge_token:
            embedding = self.knowledge_token(embedding)
        tokens, (states, attentions) = _scan(step, embedding, layers)
        if states is None:
            return BackboneOutput(tokens=self.norm(_patch_tokens(tokens, config)))
        states = _patch_tokens(jnp.concatenate([embedding[None], states]), config)
        shape = (crops.shape[0], *config.grid_size, config.hidden_size)
        return BackboneOutput(
            tokens=self.norm(states[last]),
            hidden_states=states if output_hidden_states else None,
            attentions=attentions,
            feature_maps=tuple(self.norm(states[index]).reshape(shape) for index in feature_blocks),
        )

    def _layers(self, depth: int, drop_path: float, key: Key[Array, ""] | None) -> Any:
        """What `_scan` runs over: the first `depth` blocks, and for each its `DropPath` and the shift of its windows.

        `drop_path` and `key` are as in `__call__`.
        """
        if not 0 <= drop_path < 1:
            raise ValueError(f"drop_path: expected a rate from 0 to less than 1, got {drop_path}")
        num_layers = self.config.num_layers
        drops = None
        if drop_path:
            if key is None:
                raise ValueError(f"drop_path {drop_path}: expected a key for the random choice, got none")
            drops = jnp.linspace(0, drop_path, num_layers), jax.random.split(key, (num_layers, 2))
        windows = windowed_attention.make_windows(self.config)
        shifts = None if windows is None else windowed_attention.block_shifts(windows, num_layers)
        if isinstance(self.blocks, Block):
            layers = self.blocks, drops, shifts
            return layers if depth == num_layers else jax.tree.map(lambda leaf: leaf[:depth], layers)
        return [
            (block, *jax.tree.map(operator.itemgetter(index), (drops, shifts)))
            for index, block in enumerate(self.blocks[:depth])
        ]


def _scan(step: Callable[[Array, Any], tuple[Array, Any]], tokens: Array, layers: Any) -> tuple[Array, Any]:
    """`jax.lax.scan` over the leading axis of all arrays, or over a list."""
    if not isinstance(layers, list):
        return jax.lax.scan(step, tokens, layers)
    results = []
    for layer in layers:
        tokens, result = step(tokens, layer)
        results.append(result)
    return tokens, jax.tree.map(lambda *rows: jnp.stack(rows), *results)


def _patch_tokens(tokens: Float[Array, "*n tokens dim"], config: VitPoseConfig) -> Float[Array, "*n patches dim"]:
    return tokens[..., : config.num_patches, :] if config.knowledge_token else tokens


class Deconv(nnx.Module):
    """A transposed convolution, 4x4, stride 2, padding 1, without bias. It doubles height and width.

    `kernel` is stored flipped in height and width, as a convolution over the dilated input reads it.
    """

    def __init__(self, features_in: int, features: int, *, dtype: DTypeLike, param_dtype: DTypeLike, rngs: nnx.Rngs):
        self.kernel = nnx.Param(HEAD_INIT(rngs.params(), (4, 4, features_in, features), param_dtype))
        self.dtype = dtype

    def __call__(self, x: Float[Array, "n height width features_in"]) -> Float[Array, "n 2*height 2*width features"]:
        return ops.deconv(x, self.kernel[...].astype(self.dtype))


class BatchNorm(nnx.BatchNorm):
    """BatchNorm with torch's running variance: the average of unbiased batch variances. Flax averages biased ones.

    Both normalise the batch with its biased variance. In training (`nnx.view`), a call updates the running mean and
    variance in place. Inside a loss, use `nnx.merge` with `copy=True`, and read the new values from the copy.
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
        # Flax has added (1 - momentum) x the biased variance. n / (n - 1) times that makes it unbiased.
        self.var[...] += (self.var[...] - old) / max(1, math.prod(x.shape[:-1]) - 1)
        return normalised


class ClassicDecoder(nnx.Module):
    """Twice a transposed convolution, BatchNorm and ReLU; then a 1x1 convolution to K channels."""

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
        # A 1x1 convolution is a matrix product, which CPUs compute faster.
        kernel, bias = (
            leaf[...].astype(x.dtype)  # pyright: ignore[reportOptionalSubscript]: this convolution has a bias
            for leaf in (self.conv.kernel, self.conv.bias)
        )
        return products.matmul(x, kernel[0, 0]) + bias


class SimpleDecoder(nnx.Module):
    """ReLU, bilinear upsampling by `scale_factor`, then a 3x3 convolution to K channels."""

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
    """ViTPose and ViTPose++: a `Backbone`, and one decoder for each skeleton of the configuration.

    Args:
        config: the architecture.
        dtype: the dtype of the computation: float32, bfloat16 or float16.
        param_dtype: the dtype of the stored parameters.
        rngs: for the initial parameters.

    Attributes:
        config: the architecture.
        backbone: the `Backbone`.
        heads: the decoders, by dataset name.
        quantization: how the kernels of the blocks are stored; None for `param_dtype`. See quantized.py.
        lora: which kernels have low-rank adapters; None for none. See adapters.py.
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
        self.quantization: Quantization | None = None
        self.lora: Lora | None = None

    def __call__(
        self,
        crops: Float[Array, "n height width channels"],
        dataset_index: Datasets | None = None,
        *,
        expert: Datasets | None = None,
        head: str | None = None,
        drop_path: float = 0.0,
        key: Key[Array, ""] | None = None,
        remat: bool = False,
    ) -> Float[Array, "n rows columns K"]:
        """Compute the heatmaps of crops.

        With one dataset for each crop, every head computes every crop, and in training each BatchNorm averages over
        the whole batch: the original was trained that way. Batches of a single dataset are cheaper.

        Args:
            crops: normalised, (n, 256, 192, 3) for the usual image size.
            dataset_index: the expert and head to use: one name or index for all crops, or a sequence or integer
                array with one for each crop. None means the first head (COCO in published checkpoints).
            expert, head: instead of `dataset_index`, an expert and another dataset's head, which were not trained
                together: the expert as in `dataset_index`, and the name of one head for all crops. Without `expert`
                the head's own, without `head` the first one.
            drop_path, key, remat: for training, see `Backbone`.

        Returns:
            (n, 64, 48, K) heatmaps. With one dataset for each crop, K is the largest number of keypoints of any head,
            and channels that a crop's head does not have are 0. Under `jax.jit` the values of an array cannot be
            checked: there, crops of a dataset without a head get NaN.

        Raises:
            ValueError: for a dataset that the model does not know or has no head for, for crops of another size, for a
                `drop_path` without a key, and for `dataset_index` together with `expert` or `head`.
            TypeError: if a sequence holds anything but names and whole numbers.
        """
        options: dict[str, Any] = {"drop_path": drop_path, "key": key, "remat": remat}
        if expert is not None or head is not None:
            if dataset_index is not None:
                raise ValueError("dataset_index chooses expert and head: expected it without expert and head")
            indices = self._checked(head if expert is None else expert, crops.shape[0], need_heads=False)
            return self.decode(self.backbone(crops, indices, **options).tokens, head)
        if dataset_index is None or isinstance(dataset_index, str | int):
            index = self.config.dataset_index(dataset_index)
            return self.decode(self.backbone(crops, index, **options).tokens, index)
        indices = self._checked(dataset_index, crops.shape[0])
        tokens = self.backbone(crops, indices, **options).tokens
        channels = max(skeleton.num_keypoints for skeleton in self.config.skeletons)
        result = jnp.full((crops.shape[0], *self.config.heatmap_size, channels), jnp.nan, tokens.dtype)
        for skeleton in self.config.skeletons:
            heatmaps = self.decode(tokens, skeleton.name)
            heatmaps = jnp.pad(heatmaps, ((0, 0), (0, 0), (0, 0), (0, channels - skeleton.num_keypoints)))
            in_dataset = jnp.broadcast_to(indices == self.config.dataset_index(skeleton.name), crops.shape[0])
            result = jnp.where(in_dataset[:, None, None, None], heatmaps, result)
        return result

    def decode(self, tokens: Float[Array, "n tokens dim"], dataset: str | int | None = None) -> Float[Array, "n h w K"]:
        """The heatmaps of tokens, `BackboneOutput.tokens`, by one head.

        Args:
            tokens: of the backbone.
            dataset: name or index of the head's dataset; None means the first head.

        Raises:
            ValueError: for a dataset that the model does not know or has no head for.
        """
        head = self.heads[self.config.skeleton(dataset).name]
        return head(tokens.reshape(tokens.shape[0], *self.config.grid_size, self.config.hidden_size))

    def _checked(self, dataset_index: Datasets | None, count: Any, *, need_heads: bool = True) -> Int[Array, "..."]:
        """One index, or one for each of `count` crops. A traced array has no values to check."""
        if isinstance(dataset_index, Tracer):
            indices = dataset_index
        else:
            items = np.asarray(dataset_index)
            numbers = [self.config.dataset_index(_as_python(item)) for item in items.ravel()]
            for number in sorted(set(numbers)) if need_heads else ():
                self.config.skeleton(number)
            indices = jnp.asarray(numbers, jnp.int32).reshape(items.shape)
        if indices.shape not in ((), (count,)):
            raise ValueError(f"dataset_index: expected one index, or {count} of them, got shape {indices.shape}")
        return indices

    def specialize(self, dataset: str | int | None = None) -> "VitPose":
        """A plain ViTPose for one dataset, with equal heatmaps. The expert becomes part of the MLP's second layer.

        Args:
            dataset: name or index; None means the first head.

        Raises:
            ValueError: for a dataset that the model does not know or has no head for; for a model with adapters.
        """
        check_no_adapters(self, "specialize")
        index, skeleton = self.config.dataset_index(dataset), self.config.skeleton(dataset)
        config = self.config.replace(experts=(), part_features=0, skeletons=(skeleton,))
        tensors: dict[str, Any] = parameters.flatten(self)
        plain = {
            name: leaf for name, leaf in tensors.items() if not name.startswith("heads.") and "experts" not in name
        }
        plain |= {name: leaf for name, leaf in tensors.items() if name.startswith(f"heads.{skeleton.name}.")}
        if self.config.experts:
            kernel = ("kernel",) if self.quantization is None else ("kernel.values", "kernel.scale")
            for kind in (*kernel, "bias"):
                shared, experts = (tensors[f"backbone.blocks.mlp.{name}{kind}"] for name in ("fc2.", "experts_"))
                plain[f"backbone.blocks.mlp.fc2.{kind}"] = jnp.concatenate([shared, experts[:, index]], axis=-1)
        return self.rebuild(config, plain)

    def resize(self, image_size: tuple[int, int]) -> "VitPose":
        """The same model for crops of another height and width, in pixels. Position embeddings are interpolated."""
        config = self.config.replace(image_size=image_size)
        tensors: dict[str, Any] = parameters.flatten(self)
        name = "backbone.patch_embed.pos_embed"
        positions = np.asarray(tensors[name].astype(jnp.float32))
        tensors[name] = resize_positions(positions, self.config.grid_size, config.grid_size)
        return self.rebuild(config, tensors)

    def with_windows(
        self, window_size: tuple[int, int] | None, *, shift: bool = False, pool: bool = False
    ) -> "VitPose":
        """The same parameters with attention inside windows, for large crops with many patches.

        Heatmaps change: the paper fine-tunes the model with windows.

        Args:
            window_size: rows and columns of patches, (8, 8) in the paper; None means attention among all patches.
            shift, pool: two ways to pass information between windows, see windowed_attention.py. The paper combines
                them.
        """
        config = self.config.replace(window_size=window_size, window_shift=shift, window_pool=pool)
        return self.rebuild(config, parameters.flatten(self))

    def rebuild(self, config: VitPoseConfig, tensors: Mapping[str, Any]) -> "VitPose":
        """A model of the same dtypes for another configuration.

        Args:
            config: of the new model.
            tensors: all of its parameters, by flat name.
        """
        dtype, param_dtype = self.backbone.dtype, self.backbone.param_dtype
        abstract = abstract_vitpose(
            config, dtype=dtype, param_dtype=param_dtype, quantization=self.quantization, lora=self.lora
        )
        return parameters.fill(abstract, tensors)


def abstract_vitpose(
    config: VitPoseConfig,
    *,
    dtype: DTypeLike = jnp.float32,
    param_dtype: DTypeLike = jnp.float32,
    quantization: Quantization | None = None,
    lora: Lora | None = None,
) -> VitPose:
    """A `VitPose` with shapes instead of arrays; `parameters.fill` puts the arrays in.

    Raises:
        ValueError: for a quantization with a group size that does not divide the inputs of a layer.
    """

    def create() -> VitPose:
        model = VitPose(config, dtype=dtype, param_dtype=param_dtype, rngs=nnx.Rngs(0))
        if quantization is not None:
            with_quantized_kernels(model.backbone.blocks, quantization)
            model.quantization = quantization
        if lora is not None:
            with_adapted_kernels(model.backbone.blocks, lora)
            model.lora = lora
        return model

    return parameters.abstract(create)


def _as_python(item: np.generic) -> str | int:
    value = item.item()
    if not isinstance(value, str | int):
        raise TypeError(f"dataset_index: expected names or whole numbers, got {value!r}")
    return value
