"""VitPoseForPoseEstimation: `pixel_values` in, heatmaps out."""

import os
import tempfile
import warnings
from pathlib import Path
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from vitpose_jax import pretrained
from vitpose_jax.convert import write
from vitpose_jax.convert.formats.huggingface import HUB_MODEL_TYPE
from vitpose_jax.convert.hub import resolve_source
from vitpose_jax.interop.transformers.arrays import HUB_OPTIONS, ModelOutput, kind_of, parse_dtype, to_array, to_kind
from vitpose_jax.interop.transformers.configuration import VitPoseConfig, quantize_options
from vitpose_jax.interop.transformers.devices import Device, device_name, find_device
from vitpose_jax.pipeline.postprocess import flip_back
from vitpose_jax.serving.batching import split_rows
from vitpose_jax.serving.program import Program
from vitpose_jax.storage.tensors import CONFIG_FILE, read_json
from vitpose_jax.storage.text import shorten
from vitpose_jax.vitpose.modeling import VitPose
from vitpose_jax.vitpose.quantized import num_parameters

# Most crops that are computed at once; a power of two.
MAX_BATCH = 64


class VitPoseEstimatorOutput(ModelOutput):
    """What `VitPoseForPoseEstimation` returns.

    Attributes:
        loss: with `labels`: their mean squared error.
        heatmaps: (n, K, height, width).
        hidden_states: if requested: the embedding and the output of each block, (n, tokens, dim).
        attentions: if requested: the attention weights of each block, (n, heads, tokens, tokens).
    """

    FIELDS: ClassVar[tuple[str, ...]] = ("loss", "heatmaps", "hidden_states", "attentions")


class PreTrainedModel:
    """What the models here have in common: loading, saving, a device and a compiled program."""

    config_class: ClassVar[Any]

    def __init__(self, config: Any, network: nnx.Module, device: Any = None):
        self.config, self.network, self._device = config, network, find_device(device)
        self._program: Program | None = None

    @property
    def device(self) -> Device:
        """The name of the device that the model computes on."""
        return device_name(self._device)

    @property
    def dtype(self) -> Any:
        """The dtype that the model computes in."""
        return jnp.dtype(self.network.backbone.dtype)  # pyright: ignore[reportAttributeAccessIssue]

    def num_parameters(self) -> int:
        """The number of trainable parameters."""
        return num_parameters(self.network)

    def to(self, device: Any) -> Any:
        """Compute on another device; returns the model itself."""
        self._device, self._program = find_device(device), None
        return self

    def eval(self) -> Any:
        """The model itself: it always computes as in evaluation."""
        return self

    def save_pretrained(self, folder: str | os.PathLike[str]) -> None:
        """Write config.json, preprocessor_config.json and model.safetensors, which transformers loads."""
        raise NotImplementedError

    def push_to_hub(
        self,
        repo_id: str,
        *,
        commit_message: str = "Upload model",
        private: bool | None = None,
        token: str | None = None,
        revision: str | None = None,
    ) -> Any:
        """Write the files of `save_pretrained` into a repository of the Hub, which is created if it does not exist.

        Returns:
            What huggingface_hub says about the commit.
        """
        from huggingface_hub import HfApi

        api = HfApi(token=token)
        repo_id = api.create_repo(repo_id, private=private, exist_ok=True).repo_id
        with tempfile.TemporaryDirectory() as folder:
            self.save_pretrained(folder)
            return api.upload_folder(
                repo_id=repo_id, folder_path=folder, commit_message=commit_message, revision=revision
            )

    def run(self, function: Any, options: tuple[str, ...], *arrays: Any, **values: Any) -> Any:
        """Call the compiled function of the network, on this model's device."""
        if self._program is None:
            sharding = jax.sharding.SingleDeviceSharding(self._device)
            self._program = Program(self.network, function, options=options, sharding=sharding)
        return self._program(*jax.device_put(arrays, self._device), **values)


class LoadOptions:
    """The keyword arguments of `from_pretrained` that transformers and this library have in common.

    Args:
        values: the arguments.

    Raises:
        TypeError: for an unknown argument.
    """

    # Arguments that choose how transformers computes or reads; here there is one way.
    WITHOUT_EFFECT = ("attn_implementation", "low_cpu_mem_usage", "use_safetensors", "trust_remote_code")

    def __init__(self, values: dict[str, Any]):
        self.hub = {name: values.pop(name) for name in HUB_OPTIONS if name in values}
        dtype = values.pop("torch_dtype", None)
        dtype = values.pop("dtype", None) or dtype or "float32"
        self.dtype = dtype if isinstance(dtype, str) and dtype == "auto" else parse_dtype(dtype)
        device = values.pop("device", None)
        self.device = find_device(values.pop("device_map", None) or device)
        self.quantize = quantize_options(values.pop("quantization_config", None))
        for name in self.WITHOUT_EFFECT:
            values.pop(name, None)
        if values:
            raise TypeError(f"from_pretrained: unexpected {', '.join(values)}")


class VitPoseForPoseEstimation(PreTrainedModel):
    """A ViTPose or ViTPose++.

    Args:
        config: its keys; the weights are random.
        seed: of the random weights.

    Attributes:
        network: the `VitPose` of this library.
    """

    config_class = VitPoseConfig

    def __init__(self, config: VitPoseConfig, *, seed: int = 0):
        super().__init__(config, VitPose(config.to_own(), rngs=nnx.Rngs(seed)))
        self._warned = False

    @classmethod
    def from_own(cls, network: VitPose, config: VitPoseConfig | None = None, device: Any = None) -> Any:
        """The model of a `VitPose` of this library."""
        model = cls.__new__(cls)
        config = VitPoseConfig.from_own(network.config) if config is None else config
        PreTrainedModel.__init__(model, config, network, device)
        model._warned = False
        return model

    @classmethod
    def from_pretrained(cls, name: str | os.PathLike[str], **kwargs: Any) -> Any:
        """Load a model.

        Args:
            name: a Hub id, a folder, an original .pth file or a bundled model.
            kwargs: dtype (or torch_dtype): float32 by default, "auto" for that of the file (float32 if it holds int8
                or int4), also as PyTorch's;
                device_map (or device): "cpu", "cuda", "tpu", "auto" or the device; revision, cache_dir, token,
                local_files_only; output_hidden_states, output_attentions, return_dict: the defaults of a call;
                quantization_config: a `TorchAoConfig` with "int4_weight_only" or "int8_weight_only": the kernels of the
                blocks stay so in memory (vitpose/quantized.py).

        Raises:
            ValueError: as `vitpose_jax.from_pretrained`; for an unknown dtype, device or quantization.
            TypeError: for an unknown argument.
        """
        defaults = {key: kwargs.pop(key) for key in VitPoseConfig.CALL_DEFAULTS if key in kwargs}
        options = LoadOptions(kwargs)
        path = resolve_source(name, **options.hub)
        dtype = options.dtype
        if isinstance(dtype, str):
            stored = pretrained.describe(path).dtype
            dtype = jnp.dtype(jnp.float32) if stored in ("int8", "int4") else parse_dtype(stored)
        network = pretrained.from_pretrained(path, dtype=dtype, **options.quantize)
        values = read_json(path / CONFIG_FILE) if path.is_dir() else {}
        if values.get("model_type") == HUB_MODEL_TYPE:
            # A file without edges has labels, which tell the skeleton.
            edges = [list(edge) for edge in network.config.skeletons[0].edges]
            config = VitPoseConfig.from_dict({"edges": edges, **values}, **defaults)
        else:
            config = VitPoseConfig.from_own(network.config, **defaults)
        return cls.from_own(network, config, options.device)

    def save_pretrained(self, folder: str | os.PathLike[str]) -> None:
        """Write config.json, preprocessor_config.json and model.safetensors, which transformers loads.

        A quantized model is written in floating point, with the rounded weights.

        Raises:
            ValueError: for a model that transformers does not have, such as one with several heads.
        """
        write(self.network, Path(folder), to="huggingface", overwrite=True)  # pyright: ignore[reportArgumentType]

    def __call__(
        self,
        pixel_values: Any,
        dataset_index: Any = None,
        flip_pairs: Any = None,
        labels: Any = None,
        *,
        label_weights: Any = None,
        output_hidden_states: bool | None = None,
        output_attentions: bool | None = None,
        return_dict: bool | None = None,
    ) -> Any:
        """Compute the heatmaps of crops.

        Args:
            pixel_values: (n, channels, height, width), of NumPy, JAX or PyTorch; results are of the same.
            dataset_index: the expert of a ViTPose++: one index, or one for each crop; None for that of the head. Its
                heatmaps come from the head of that dataset; if the checkpoint has none, from the first head, as in
                transformers, with a warning.
            flip_pairs: pairs of keypoints; the crops are mirrored, and their heatmaps are mirrored back.
            labels: heatmaps to compare with, (n, K, height, width): adds `loss`, the loss of ViTPose.
            label_weights: of the labels, (n, K); None for 1.
            output_hidden_states, output_attentions, return_dict: what is returned; None for the configuration's.
                `return_dict=False` returns a tuple.

        Raises:
            ValueError: for crops of another size, an expert that the model does not have, and indices of several
                datasets with heads of their own.
        """
        own = self.network.config  # pyright: ignore[reportAttributeAccessIssue]
        states, weights, as_dict = (
            getattr(self.config, name) if value is None else value
            for name, value in zip(
                VitPoseConfig.CALL_DEFAULTS, (output_hidden_states, output_attentions, return_dict), strict=True
            )
        )
        crops = to_array(pixel_values)
        if crops.ndim != 4:
            raise ValueError(f"pixel_values: expected (n, channels, height, width), got {crops.shape}")
        experts, head = self._choose(own, dataset_index, len(crops))
        flip_indices = None if flip_pairs is None else _flip_indices(to_array(flip_pairs), own.skeleton(head))
        options = {"head": head, "flip_indices": flip_indices, "states": bool(states), "weights": bool(weights)}
        batches = [
            [part[: rows.stop - rows.start] for part in self._run_batch(crops[rows], experts[rows], size, options)]
            for rows, size in split_rows(len(crops), MAX_BATCH)
        ] or [self._run_batch(np.zeros((1, *crops.shape[1:]), np.float32), np.zeros(1, np.int32), 1, options)]
        parts = [jnp.concatenate(part)[: len(crops)] for part in zip(*batches, strict=True)]
        heatmaps, states, weights = parts[0], *_split(parts[1:], states, weights)
        kind = kind_of(pixel_values)
        output = VitPoseEstimatorOutput(
            loss=None if labels is None else _loss(heatmaps, labels, label_weights),
            heatmaps=heatmaps,
            hidden_states=states,
            attentions=weights,
        )
        for name, value in output.items():
            one = not isinstance(value, tuple)
            dict.__setitem__(
                output,
                name,
                to_kind(value, kind, pixel_values) if one else tuple(to_kind(v, kind, pixel_values) for v in value),
            )
        return output if as_dict else output.to_tuple()

    forward = __call__

    def _run_batch(self, crops: Any, experts: np.ndarray, size: int, options: dict[str, Any]) -> tuple[Any, ...]:
        """One program; the last crop is repeated to fill the batch."""
        padding = size - len(crops)
        crops = jnp.pad(jnp.asarray(crops), ((0, padding), *((0, 0),) * 3), mode="edge") if padding else crops
        experts = np.pad(experts, (0, padding), mode="edge")
        return self.run(_forward, ("head", "flip_indices", "states", "weights"), crops, experts, **options)

    def _choose(self, own: Any, dataset_index: Any, count: int) -> tuple[np.ndarray, str]:
        """The expert of each crop, and the head of all of them."""
        first = own.skeletons[0].name
        if dataset_index is None or own.num_experts == 1 == len(own.skeletons):
            return np.full(count, own.dataset_index(first), np.int32), first
        indices = np.asarray(to_array(dataset_index)).reshape(-1)
        if len(indices) not in (1, count):
            raise ValueError(f"dataset_index: expected one, or one for each of {count} crops, got {len(indices)}")
        indices = np.asarray([own.dataset_index(index) for index in indices.tolist()], np.int32)
        names = sorted({own.datasets[index] for index in indices.tolist()})
        heads = {skeleton.name for skeleton in own.skeletons}
        if len(heads) > 1 and len(names) > 1:
            raise ValueError(
                f"dataset_index: expected one dataset in a call with several heads, got {', '.join(names)}"
            )
        missing = [name for name in names if name not in heads]
        if missing and not self._warned:
            self._warned = True
            warnings.warn(
                f"dataset_index: this checkpoint has experts for {', '.join(missing)}, but not their heads. As in "
                f"transformers, the features of these experts go to the head of {first}, which was not trained with "
                "them. An original ViTPose++ .pth file has all heads",
                stacklevel=3,
            )
        return np.broadcast_to(indices, count), names[0] if names and names[0] in heads else first


def _forward(
    model: VitPose,
    pixel_values: jax.Array,
    experts: jax.Array,
    *,
    head: str,
    flip_indices: tuple[int, ...] | None,
    states: bool,
    weights: bool,
) -> tuple[jax.Array, ...]:
    """Heatmaps, then hidden states and attention weights if requested, each with the crops first."""
    crops = jnp.moveaxis(pixel_values, 1, -1)
    output = model.backbone(crops, experts, output_hidden_states=states, output_attentions=weights)
    heatmaps = model.decode(output.tokens, head)
    heatmaps = heatmaps if flip_indices is None else flip_back(heatmaps, flip_indices)
    layered = [layers for layers in (output.hidden_states, output.attentions) if layers is not None]
    return (jnp.moveaxis(heatmaps, -1, 1), *(jnp.moveaxis(layers, 0, 1) for layers in layered))


def _split(parts: list[Any], states: Any, weights: Any) -> tuple[Any, Any]:
    """Hidden states and attention weights as one array for each layer; None for what was not requested."""
    layers = [tuple(jnp.moveaxis(part, 1, 0)) for part in parts]
    return (layers.pop(0) if states else None), (layers.pop(0) if weights else None)


def _flip_indices(pairs: Any, skeleton: Any) -> tuple[int, ...]:
    pairs = np.asarray(pairs).reshape(-1, 2).tolist()
    if any(not 0 <= index < skeleton.num_keypoints for pair in pairs for index in pair):
        raise ValueError(f"flip_pairs: expected indices below {skeleton.num_keypoints}, got {shorten(pairs)}")
    indices = list(range(skeleton.num_keypoints))
    for left, right in pairs:
        indices[left], indices[right] = right, left
    return tuple(indices)


def _loss(heatmaps: jax.Array, labels: Any, label_weights: Any) -> jax.Array:
    from vitpose_jax.training.losses import joints_mse

    labels = jnp.asarray(to_array(labels))
    if labels.shape != heatmaps.shape:
        raise ValueError(f"labels: expected heatmaps {heatmaps.shape}, got {labels.shape}")
    weights = np.ones(heatmaps.shape[:2]) if label_weights is None else to_array(label_weights)
    weights = jnp.asarray(weights, jnp.float32)
    return joints_mse(jnp.moveaxis(heatmaps, 1, -1), jnp.moveaxis(labels, 1, -1), weights)
