"""Configurations by the names of transformers: the keys of a config.json, as attributes.

They hold keys and check nothing. What the keys mean is read by the converter (convert/formats/), which names every key
that it does not know.
"""

import copy
import json
import os
from pathlib import Path
from typing import Any, ClassVar

from vitpose_jax.convert.formats.huggingface import HUB_BACKBONE_TYPE, HUB_MODEL_TYPE, make_documents, parse_config
from vitpose_jax.convert.formats.rtdetr import RESNET_TYPE, VERSIONS
from vitpose_jax.convert.formats.rtdetr import parse_config as parse_detector_config
from vitpose_jax.convert.hub import resolve_source
from vitpose_jax.rtdetr.config import DetectorConfig
from vitpose_jax.storage import atomic
from vitpose_jax.storage.int4 import GROUP_SIZE
from vitpose_jax.storage.tensors import CONFIG_FILE, read_json
from vitpose_jax.vitpose import config as own


class PretrainedConfig:
    """The keys of a config.json, as attributes.

    Args:
        values: any keys; those that a class names have defaults.
    """

    CALL_DEFAULTS: ClassVar[tuple[str, ...]] = ("output_hidden_states", "output_attentions", "return_dict")
    model_type: str = ""
    DEFAULTS: ClassVar[dict[str, Any]] = {
        "output_hidden_states": False,
        "output_attentions": False,
        "return_dict": True,
    }

    def __init__(self, **values: Any):
        num_labels = values.pop("num_labels", None)
        labels = values.pop("id2label", None) or {index: f"LABEL_{index}" for index in range(num_labels or 2)}
        self.id2label = {int(index): label for index, label in labels.items()}
        self.label2id = values.pop("label2id", None) or {label: index for index, label in self.id2label.items()}
        if values.pop("model_type", self.model_type) not in ("", self.model_type):
            raise ValueError(f"{type(self).__name__}: expected model_type {self.model_type!r}")
        for name, value in {**copy.deepcopy(self.DEFAULTS), **values}.items():
            setattr(self, name, value)

    @property
    def num_labels(self) -> int:
        """The number of labels: keypoints or classes."""
        return len(self.id2label)

    def to_dict(self) -> dict[str, Any]:
        """The content of a config.json."""
        values = {name: _plain(value) for name, value in vars(self).items()}
        return {"model_type": self.model_type, **values}

    @classmethod
    def from_dict(cls, values: dict[str, Any], **changes: Any) -> Any:
        """The configuration of a config.json's content."""
        return cls(**{**values, **changes})

    @classmethod
    def from_pretrained(cls, name: str | os.PathLike[str], **options: Any) -> Any:
        """The configuration of a Hub id or a folder; `options` are those of `vitpose_jax.from_pretrained`."""
        folder = resolve_source(name, weights=False, **options)
        return cls.from_dict(read_json(folder / CONFIG_FILE))

    def save_pretrained(self, folder: str | os.PathLike[str]) -> None:
        """Write config.json into a folder."""
        text = json.dumps(self.to_dict(), indent=2) + "\n"
        atomic.write_whole(Path(folder) / CONFIG_FILE, text.encode())

    def __repr__(self) -> str:
        return f"{type(self).__name__} {json.dumps(self.to_dict(), indent=2)}"

    def __eq__(self, other: object) -> bool:
        return isinstance(other, PretrainedConfig) and self.to_dict() == other.to_dict()

    __hash__ = None  # pyright: ignore[reportAssignmentType]


class VitPoseBackboneConfig(PretrainedConfig):
    """The keys of a ViTPose's backbone, with the defaults of transformers."""

    model_type = HUB_BACKBONE_TYPE
    DEFAULTS: ClassVar[dict[str, Any]] = {
        "image_size": [256, 192],
        "patch_size": [16, 16],
        "num_channels": 3,
        "hidden_size": 768,
        "num_hidden_layers": 12,
        "num_attention_heads": 12,
        "mlp_ratio": 4,
        "num_experts": 1,
        "part_features": 256,
        "hidden_act": "gelu",
        "hidden_dropout_prob": 0.0,
        "attention_probs_dropout_prob": 0.0,
        "initializer_range": 0.02,
        "layer_norm_eps": 1e-12,
        "qkv_bias": True,
        "out_features": None,
        "out_indices": None,
    }


class VitPoseConfig(PretrainedConfig):
    """The keys of a ViTPose, with the defaults of transformers.

    Args:
        backbone_config: a `VitPoseBackboneConfig` or its keys; None for the default, which reads the fourth block, as
            in transformers.
        values: other keys, `vars` of this object: scale_factor, use_simple_decoder, id2label, edges, ...
    """

    model_type = HUB_MODEL_TYPE
    DEFAULTS: ClassVar[dict[str, Any]] = {
        **PretrainedConfig.DEFAULTS,
        "backbone": None,
        "use_pretrained_backbone": False,
        "use_timm_backbone": False,
        "backbone_kwargs": None,
        "initializer_range": 0.02,
        "scale_factor": 4,
        "use_simple_decoder": True,
    }

    def __init__(self, backbone_config: Any = None, **values: Any):
        super().__init__(**values)
        if backbone_config is None:
            backbone_config = VitPoseBackboneConfig(out_indices=[4])
        elif isinstance(backbone_config, dict):
            backbone_config = VitPoseBackboneConfig(**backbone_config)
        self.backbone_config = backbone_config

    def to_own(self) -> own.VitPoseConfig:
        """The configuration of this library.

        Raises:
            ValueError: for a key or value that this library does not know; all of them at once.
        """
        channels = getattr(self.backbone_config, "num_channels", 3)
        # transformers' mean and standard deviation, the default, are those of three channels.
        plain = {"image_mean": [0.0] * channels, "image_std": [1.0] * channels} if channels != 3 else None
        return parse_config(self.to_dict(), plain, source=type(self).__name__)

    @classmethod
    def from_own(cls, config: own.VitPoseConfig, **changes: Any) -> "VitPoseConfig":
        """The keys of a configuration of this library, with the first of its heads."""
        config = config.replace(skeletons=config.skeletons[:1])
        return cls.from_dict(make_documents(config, param_dtype="float32")[CONFIG_FILE], **changes)


class RTDetrConfig(PretrainedConfig):
    """The keys of an RT-DETR or RT-DETRv2; keys that are missing have the defaults of transformers."""

    model_type: str = "rt_detr"

    def __init__(self, backbone_config: Any = None, **values: Any):
        self.model_type = values.pop("model_type", self.model_type)
        if self.model_type not in VERSIONS:
            raise ValueError(f"model_type: expected one of {', '.join(VERSIONS)}, got {self.model_type!r}")
        super().__init__(**values)
        self.backbone_config = {"model_type": RESNET_TYPE, "out_indices": [2, 3, 4], **(backbone_config or {})}

    def to_own(self) -> DetectorConfig:
        """The configuration of this library.

        Raises:
            ValueError: for a key or value that this library does not know; all of them at once.
        """
        return parse_detector_config(self.to_dict(), None, source=type(self).__name__)


class TorchAoConfig:
    """How to quantize, as torchao names it: "int4_weight_only" or "int8_weight_only".

    Args:
        quant_type: the name, or torchao's `Int4WeightOnlyConfig` or `Int8WeightOnlyConfig`.
        kwargs: its settings: group_size of int4, 128 by default.
    """

    def __init__(self, quant_type: Any, **kwargs: Any):
        self.quant_type, self.quant_type_kwargs = quant_type, kwargs

    def __repr__(self) -> str:
        return f"TorchAoConfig({self.quant_type!r})"


# The kinds of torchao that exist here, by the beginning of their names without underscores.
_WEIGHT_ONLY = {"int4weightonly": "int4", "int8weightonly": "int8"}


def quantize_options(config: Any) -> dict[str, Any]:
    """The arguments `quantize` and `group_size` of `vitpose_jax.from_pretrained` for a `quantization_config`.

    Args:
        config: a `TorchAoConfig` of this library or of transformers; None for floating point.

    Raises:
        ValueError: for any other.
    """
    if config is None:
        return {}
    kind = getattr(config, "quant_type", None)
    name = kind if isinstance(kind, str) else type(kind).__name__.removesuffix("Config")
    quantize = _WEIGHT_ONLY.get(name.lower().replace("_", ""))
    if quantize is None:
        got = type(config).__name__ if kind is None else f"{type(config).__name__} with {name}"
        raise ValueError(
            f"quantization_config: expected a TorchAoConfig with int4_weight_only or int8_weight_only, got {got}"
        )
    if quantize == "int8":
        return {"quantize": quantize}
    settings = getattr(config, "quant_type_kwargs", None) or {}
    return {"quantize": quantize, "group_size": settings.get("group_size", getattr(kind, "group_size", GROUP_SIZE))}


def _plain(value: Any) -> Any:
    if isinstance(value, PretrainedConfig):
        return value.to_dict()
    return list(value) if isinstance(value, tuple) else value
