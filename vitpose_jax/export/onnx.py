"""The network as an ONNX graph, written node by node from the parameters.

    crops float32 (n, height, width, 3)
      patch embedding   Conv, then the position of each patch
      block x depth     LayerNormalization, MatMul, Softmax, Gelu
      decoder           ConvTranspose with its BatchNorm folded in, or Resize; Conv
    heatmaps float32 (n, rows, columns, K)

The graph is small, so writing it directly is simple and gives each runtime the operators that it knows best. (jax2onnx
0.17 does not translate this network for a batch of any size, nor its decoders, and needs an orbax-checkpoint that is
older than the one of the training.)

Weights keep their flat names, with the number of the block in them. Kernels that are int8 or int4 in the model are so
in the file, with DequantizeLinear before their product.
"""

import dataclasses
import hashlib
from typing import Any

import jax.numpy as jnp
import numpy as np

from vitpose_jax import __version__
from vitpose_jax.export.metadata import Metadata, array_spec, onnx_property
from vitpose_jax.storage import int4, parameters
from vitpose_jax.vitpose import windowed_attention
from vitpose_jax.vitpose.config import PATCH_PADDING, VitPoseConfig
from vitpose_jax.vitpose.modeling import VitPose
from vitpose_jax.vitpose.quantized import VALUES

try:
    import onnx
    from onnx import TensorProto, helper, numpy_helper
except ImportError as error:
    raise ImportError('writing ONNX needs the package onnx: pip install "vitpose-jax[onnx]"') from error

# Gelu came with opset 20, LayerNormalization with 17. ONNX Runtime 1.17 and OpenVINO 2024 read it.
OPSET = 20
IR_VERSION = 9
# int4, and scales for groups, came with opset 21. ONNX Runtime 1.20 and OpenVINO 2025 read it.
INT4_OPSET = 21
INT4_IR_VERSION = 10
# A .onnx file is one protocol buffer, which has at most 2 GiB.
LARGEST_FILE = 2**31 - 2**20
BATCH_NORM_EPS = 1e-5


class _Graph:
    """Nodes and constants of a graph; each method adds something and returns the name of its result."""

    def __init__(self) -> None:
        self.nodes: list[Any] = []
        self.constants: dict[str, Any] = {}

    def node(self, operator: str, *inputs: str, name: str | None = None, **attributes: Any) -> str:
        output = name or f"{operator.lower()}_{len(self.nodes)}"
        self.nodes.append(helper.make_node(operator, list(inputs), [output], name=output, **attributes))
        return output

    def constant(self, name: str, array: Any) -> str:
        self.constants[name] = np.ascontiguousarray(array)
        return name

    def shape(self, *sides: int) -> str:
        """A shape for Reshape, in which 0 is a side that stays as it is."""
        return self.constant("shape_" + "_".join(map(str, sides)), np.asarray(sides, np.int64))

    def dequantized(self, name: str, values: np.ndarray, scale: np.ndarray) -> str:
        """A kernel (in, out) of int8 values, or of int4 values in the packing of storage/int4.py."""
        if values.dtype == np.int8:
            scale = scale[0]  # for each output channel
            return self.node(
                "DequantizeLinear", self.constant(name, values), self.constant(f"{name}.scale", scale), axis=1
            )
        # ONNX packs neighbours on the last axis, here neighbours are inputs.
        values = int4.unpack(values)
        pairs = values.reshape(-1, 2).astype(np.uint8) & 15
        packed = (pairs[:, 0] | (pairs[:, 1] << 4)).tobytes()
        self.constants[name] = helper.make_tensor(name, TensorProto.INT4, values.shape, packed, raw=True)
        groups = {"axis": 0, "block_size": values.shape[0] // scale.shape[0]}
        return self.node("DequantizeLinear", name, self.constant(f"{name}.scale", scale), **groups)

    def linear(self, x: str, name: str, weights: dict[str, np.ndarray]) -> str:
        kernel, bias = f"{name}.kernel", weights.get(f"{name}.bias")
        if kernel in weights:
            kernel = self.constant(kernel, weights[kernel])
        else:
            kernel = self.dequantized(kernel, weights[f"{kernel}.values"], weights[f"{kernel}.scale"])
        x = self.node("MatMul", x, kernel)
        return x if bias is None else self.node("Add", x, self.constant(f"{name}.bias", bias))


def build_graph(model: VitPose, batch: int | None = None) -> tuple[bytes, bytes]:
    """The ONNX model of a network that computes in float32.

    Args:
        model: with one head and no experts: see `VitPose.specialize`.
        batch: the number of crops, or None for any.

    Raises:
        ValueError: for a network above 2 GiB.
    """
    config = model.config
    weights = {
        name: np.asarray(leaf, None if name.endswith(VALUES) else np.float32)
        for name, leaf in parameters.flatten(model).items()
    }
    int4_kernels = model.quantization is not None and model.quantization.kind == "int4"
    opset, ir_version = (INT4_OPSET, INT4_IR_VERSION) if int4_kernels else (OPSET, IR_VERSION)
    size = sum(array.nbytes for array in weights.values())
    if size > LARGEST_FILE:
        raise ValueError(
            f"ONNX: expected a model of at most 2 GiB, got {size / 2**30:.1f}; quantize it, or "
            "use the runtime jax or the format stablehlo"
        )
    graph = _Graph()
    tokens = _embed(graph, config, weights)
    for index in range(config.out_indices[-1]):
        tokens = _block(graph, config, weights, index, tokens)
    if config.knowledge_token:
        bounds = (graph.constant(name, np.asarray([at])) for name, at in (("zero", 0), ("patches", config.num_patches)))
        tokens = graph.node("Slice", tokens, *bounds, graph.constant("axis", np.asarray([1])))
    tokens = _layer_norm(graph, config, tokens, "backbone.norm", weights)
    features = graph.node("Transpose", tokens, perm=[0, 2, 1])
    features = graph.node("Reshape", features, graph.shape(0, 0, *config.grid_size))
    (skeleton,) = config.skeletons
    prefix = f"heads.{skeleton.name}."
    head = {name.removeprefix(prefix): array for name, array in weights.items() if name.startswith(prefix)}
    decode = _classic if config.decoder == "classic" else _simple
    heatmaps = decode(graph, config, head, features)
    graph.node("Transpose", heatmaps, name="heatmaps", perm=[0, 2, 3, 1])

    count = "n" if batch is None else batch
    crops = (count, *config.image_size, config.num_channels)
    maps = (count, *config.heatmap_size, skeleton.num_keypoints)
    metadata = Metadata(
        part="network",
        config=config.to_dict(),
        dtype="float32",
        inputs=[array_spec("crops", crops, "float32")],
        outputs=[array_spec("heatmaps", maps, "float32")],
        versions={"vitpose_jax": __version__, "onnx": onnx.__version__, "opset": str(opset)},
    )
    proto = helper.make_model(
        helper.make_graph(
            graph.nodes,
            "vitpose",
            [helper.make_tensor_value_info("crops", TensorProto.FLOAT, crops)],
            [helper.make_tensor_value_info("heatmaps", TensorProto.FLOAT, maps)],
            [
                array if isinstance(array, TensorProto) else numpy_helper.from_array(array, name)
                for name, array in graph.constants.items()
            ],
        ),
        opset_imports=[helper.make_opsetid("", opset)],
        ir_version=ir_version,
        producer_name="vitpose-jax",
        producer_version=__version__,
    )
    content = proto.SerializeToString()
    metadata = dataclasses.replace(metadata, sha256=hashlib.sha256(content).hexdigest())
    return content, onnx_property(metadata.to_json())


def _embed(graph: _Graph, config: VitPoseConfig, weights: dict[str, np.ndarray]) -> str:
    kernel, bias, positions = (
        weights[f"backbone.patch_embed.{name}"] for name in ("proj.kernel", "proj.bias", "pos_embed")
    )
    x = graph.node("Transpose", "crops", perm=[0, 3, 1, 2])
    kernel = graph.constant("backbone.patch_embed.proj.kernel", kernel.transpose(3, 2, 0, 1))
    # The convolution leaves out what the last patches do not reach.
    pads = [PATCH_PADDING, PATCH_PADDING, 0, 0]
    x = graph.node("Conv", x, kernel, strides=list(config.patch_size), pads=pads)
    x = graph.node("Reshape", x, graph.shape(0, 0, -1))
    tokens = graph.node("Transpose", x, perm=[0, 2, 1])
    positions = graph.constant("backbone.patch_embed.pos_embed", positions[1:] + positions[:1] + bias)
    tokens = graph.node("Add", tokens, positions)
    if not config.knowledge_token:
        return tokens
    token = weights["backbone.knowledge_token.token"]
    if "backbone.knowledge_token.proj.kernel" in weights:
        token = token @ weights["backbone.knowledge_token.proj.kernel"] + weights["backbone.knowledge_token.proj.bias"]
    count = graph.node("Shape", tokens, start=0, end=1)
    count = graph.node("Concat", count, graph.constant("one", np.asarray([1, config.hidden_size])), axis=0)
    token = graph.node("Expand", graph.constant("backbone.knowledge_token.token", token[None, None]), count)
    return graph.node("Concat", tokens, token, axis=1)


def _layer_norm(graph: _Graph, config: VitPoseConfig, x: str, name: str, weights: dict[str, np.ndarray]) -> str:
    scale, bias = (graph.constant(f"{name}.{kind}", weights[f"{name}.{kind}"]) for kind in ("scale", "bias"))
    return graph.node("LayerNormalization", x, scale, bias, axis=-1, epsilon=config.layer_norm_eps)


def _block(graph: _Graph, config: VitPoseConfig, stacked: dict[str, np.ndarray], index: int, tokens: str) -> str:
    prefix, block = "backbone.blocks.", f"backbone.blocks.{index}"
    weights = {
        f"{block}.{name.removeprefix(prefix)}": array[index]
        for name, array in stacked.items()
        if name.startswith(prefix)
    }

    def linear(x: str, name: str) -> str:
        return graph.linear(x, f"{block}.{name}", weights)

    heads, head_dim = config.num_heads, config.hidden_size // config.num_heads
    qkv = linear(_layer_norm(graph, config, tokens, f"{block}.norm1", weights), "attention.qkv")
    parts = [f"{block}.{name}" for name in ("query", "key", "value")]
    graph.nodes.append(helper.make_node("Split", [qkv], parts, name=f"{block}.split", axis=-1, num_outputs=3))
    windows = _windows(graph, config, index)
    sides, by_head, turned = [0, 0], [0, 2, 1, 3], [0, 2, 3, 1]
    if windows is not None:
        # An axis for the windows stands before that of the tokens.
        sides, by_head, turned = [0, 0, 0], [0, 1, 3, 2, 4], [0, 1, 3, 4, 2]
        parts = windows.cut(graph, parts)
    parts = [graph.node("Reshape", part, graph.shape(*sides, heads, head_dim)) for part in parts]
    query, key, value = (
        graph.node("Transpose", part, perm=order) for part, order in zip(parts, (by_head, turned, by_head), strict=True)
    )
    scale = graph.constant("attention_scale", np.asarray(head_dim**-0.5, np.float32))
    logits = graph.node("Mul", graph.node("MatMul", query, key), scale)
    if windows is not None:
        logits = graph.node("Add", logits, windows.hidden)
    mixed = graph.node("MatMul", graph.node("Softmax", logits, axis=-1), value)
    mixed = graph.node("Transpose", mixed, perm=by_head)
    if windows is None:
        mixed = graph.node("Reshape", mixed, graph.shape(0, 0, config.hidden_size))
    else:
        mixed = graph.node("Reshape", mixed, graph.shape(0, -1, config.hidden_size))
        mixed = graph.node("Gather", mixed, windows.back, axis=1)
    tokens = graph.node("Add", tokens, linear(mixed, "attention.proj"))
    hidden = linear(_layer_norm(graph, config, tokens, f"{block}.norm2", weights), "mlp.fc1")
    if config.hidden_act == "relu":
        hidden = graph.node("Relu", hidden)
    else:
        hidden = graph.node("Gelu", hidden, approximate="tanh" if config.hidden_act == "gelu_tanh" else "none")
    return graph.node("Add", tokens, linear(hidden, "mlp.fc2"))


@dataclasses.dataclass(frozen=True)
class _Windows:
    """Attention in windows: names of constants that pick the tokens of each window and put them back.

    Attributes:
        positions: the token at each position of each window, Int64[windows positions]; any token for padding.
        sources: the same for keys and values; with `means`, these stand behind the tokens, and in each window.
        hidden: 0, or a large negative number where a position does not attend to a source; for all heads.
        back: the place of each token among the positions of all windows, Int64[tokens].
        means: a matrix from tokens to the means of the windows; None without.
    """

    positions: str
    sources: str
    hidden: str
    back: str
    means: str | None

    def cut(self, graph: _Graph, parts: list[str]) -> list[str]:
        """Query, key and value, (n, tokens, dim), as (n, windows, positions, dim)."""
        query, *others = parts
        if self.means is not None:
            others = [graph.node("Concat", part, graph.node("MatMul", self.means, part), axis=1) for part in others]
        query = graph.node("Gather", query, self.positions, axis=1)
        return [query, *(graph.node("Gather", part, self.sources, axis=1) for part in others)]


def _windows(graph: _Graph, config: VitPoseConfig, index: int) -> _Windows | None:
    """The windows of a block: every second one is shifted."""
    windows = windowed_attention.make_windows(config)
    if windows is None:
        return None
    shifts = windowed_attention.block_shifts(windows, 2)
    shift = None if shifts is None else shifts[index % 2]
    name = "windows" if shift is None or index % 2 == 0 else "windows_shifted"
    tokens = np.arange(config.num_patches)
    positions = np.asarray(windowed_attention.partition(jnp.asarray(tokens[None], jnp.float32), windows, shift))[0]
    places = jnp.arange(positions.size, dtype=jnp.float32).reshape(1, *positions.shape)
    back = windowed_attention.join(places, windows, shift)[0]
    visible, sources, means = np.asarray(windowed_attention.mask(windows, shift)), positions, None
    if windows.pool:
        eye = jnp.eye(len(tokens))[None]
        means = graph.constant("windows.means", np.asarray(windowed_attention.window_means(eye, windows))[0])
        count = len(positions)
        sources = np.concatenate([positions, np.tile(len(tokens) + np.arange(count), (count, 1))], axis=1)
        visible = np.pad(visible, ((0, 0), (0, 0), (0, count)), constant_values=True)
    hidden = np.where(visible, 0, np.finfo(np.float32).min)[:, None]
    return _Windows(
        graph.constant(f"{name}.positions", positions.astype(np.int64)),
        graph.constant(f"{name}.sources", sources.astype(np.int64)),
        graph.constant(f"{name}.hidden", hidden.astype(np.float32)),
        graph.constant(f"{name}.back", np.asarray(back, np.int64)),
        means,
    )


def _classic(graph: _Graph, config: VitPoseConfig, head: dict[str, np.ndarray], x: str) -> str:
    for number in (1, 2):
        norm = {kind: head[f"norm{number}.{kind}"].astype(np.float64) for kind in ("scale", "bias", "mean", "var")}
        scale = norm["scale"] / np.sqrt(norm["var"] + BATCH_NORM_EPS)
        # The stored kernel is that of a convolution over the dilated input.
        kernel = head[f"deconv{number}.kernel"][::-1, ::-1].transpose(2, 3, 0, 1) * scale[:, None, None]
        kernel = graph.constant(f"head.deconv{number}.kernel", kernel.astype(np.float32))
        bias = (norm["bias"] - norm["mean"] * scale).astype(np.float32)
        bias = graph.constant(f"head.deconv{number}.bias", bias)
        x = graph.node("ConvTranspose", x, kernel, bias, strides=[2, 2], pads=[1, 1, 1, 1], kernel_shape=[4, 4])
        x = graph.node("Relu", x)
    return _last_conv(graph, head, x, 0)


def _simple(graph: _Graph, config: VitPoseConfig, head: dict[str, np.ndarray], x: str) -> str:
    scales = graph.constant("scales", np.asarray([1, 1, config.scale_factor, config.scale_factor], np.float32))
    attributes = {"mode": "linear", "coordinate_transformation_mode": "half_pixel"}
    x = graph.node("Resize", graph.node("Relu", x), "", scales, **attributes)
    return _last_conv(graph, head, x, 1)


def _last_conv(graph: _Graph, head: dict[str, np.ndarray], x: str, pad: int) -> str:
    kernel = graph.constant("head.conv.kernel", head["conv.kernel"].transpose(3, 2, 0, 1))
    return graph.node("Conv", x, kernel, graph.constant("head.conv.bias", head["conv.bias"]), pads=[pad] * 4)
