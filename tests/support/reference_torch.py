"""Tiny ViTPoses of transformers with every parameter and buffer random, as the reference of the tests.

Fresh LayerNorms and BatchNorms are the identity and hide swapped or forgotten tensors; here none is fresh.
"""

import pathlib

import numpy as np
import torch
import transformers
from transformers.models.vitpose.image_processing_pil_vitpose import VitPoseImageProcessorPil
from transformers.models.vitpose.modeling_vitpose import VitPoseClassicDecoder, VitPoseSimpleDecoder

_LIMBS = ("Eye", "Ear", "Shoulder", "Elbow", "Wrist", "Hip", "Knee", "Ankle")
HUB_LABELS = ["Nose", *(f"{side}_{limb}" for limb in _LIMBS for side in "LR")]


def tiny_model(
    *, decoder: str = "simple", labels: list[str] = HUB_LABELS, scale_factor: int = 4, seed: int = 0, **backbone
) -> transformers.VitPoseForPoseEstimation:
    """A two-layer ViTPose for crops of 64 x 48 pixels; `backbone` overrides fields of its backbone's config."""
    fields = {
        "image_size": [64, 48],
        "hidden_size": 24,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "part_features": 8,
    }
    config = transformers.VitPoseConfig(
        backbone_config=transformers.VitPoseBackboneConfig(**{**fields, **backbone}),
        use_simple_decoder=decoder == "simple",
        scale_factor=scale_factor,
        id2label=dict(enumerate(labels)),
        label2id={label: index for index, label in enumerate(labels)},
    )
    return randomize(transformers.VitPoseForPoseEstimation(config), seed)


def head(model: transformers.VitPoseForPoseEstimation, num_keypoints: int, *, seed: int) -> torch.nn.Module:
    """Another random head for the same backbone."""
    config = transformers.VitPoseConfig(
        backbone_config=model.config.backbone_config,
        use_simple_decoder=model.config.use_simple_decoder,
        num_labels=num_keypoints,
    )
    kind = VitPoseSimpleDecoder if config.use_simple_decoder else VitPoseClassicDecoder
    return randomize(kind(config), seed)


def randomize(module: torch.nn.Module, seed: int) -> torch.nn.Module:
    """Random numbers in every parameter and buffer, such that activations stay of the order of 1."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, tensor in module.state_dict().items():
            if name.endswith("num_batches_tracked"):
                tensor.fill_(7)
            elif name.endswith("running_var") or (tensor.ndim == 1 and name.endswith("weight")):
                tensor.uniform_(0.5, 1.5, generator=generator)
            else:
                fan_in = tensor[0].numel() if tensor.ndim > 1 and "position" not in name else 25
                tensor.normal_(0, fan_in**-0.5, generator=generator)
    return module.eval()


def heatmaps(
    model: transformers.VitPoseForPoseEstimation, crops: np.ndarray, dataset_index: int | None = None
) -> np.ndarray:
    """Heatmaps (n, rows, columns, K) of crops (n, height, width, channels)."""
    with_experts = model.config.backbone_config.num_experts > 1
    index = torch.full((len(crops),), dataset_index or 0) if with_experts else None
    pixels = torch.from_numpy(crops.transpose(0, 3, 1, 2).copy())
    with torch.no_grad():
        return model(pixels, dataset_index=index).heatmaps.numpy().transpose(0, 2, 3, 1)


def random_crops(model: transformers.VitPoseForPoseEstimation, n: int = 2) -> np.ndarray:
    config = model.config.backbone_config
    return np.random.default_rng(0).normal(size=(n, *config.image_size, config.num_channels)).astype(np.float32)


def save(model: transformers.VitPoseForPoseEstimation, folder: pathlib.Path, **options) -> pathlib.Path:
    """As a folder of the Hub."""
    model.save_pretrained(folder, **options)
    VitPoseImageProcessorPil().save_pretrained(folder)
    return folder


# (in transformers, in the original)
_BACKBONE_NAMES = (
    ("backbone.embeddings.patch_embeddings.projection", "backbone.patch_embed.proj"),
    ("backbone.embeddings.position_embeddings", "backbone.pos_embed"),
    ("backbone.encoder.layer.", "backbone.blocks."),
    ("attention.output.dense", "attn.proj"),
    ("layernorm_before", "norm1"),
    ("layernorm_after", "norm2"),
    ("backbone.layernorm", "backbone.last_norm"),
)
_HEAD_NAMES = (
    ("batchnorm1", "deconv_layers.1"),
    ("batchnorm2", "deconv_layers.4"),
    ("deconv1", "deconv_layers.0"),
    ("deconv2", "deconv_layers.3"),
    ("conv.", "final_layer."),
)


def original_state_dict(
    model: transformers.VitPoseForPoseEstimation, other_heads: tuple[torch.nn.Module, ...] = ()
) -> dict[str, torch.Tensor]:
    """The same weights under the names of the original repository."""
    tensors = model.backbone.state_dict(prefix="backbone.")
    result = {"backbone.cls_token": torch.zeros(1, 1, model.config.backbone_config.hidden_size)}
    for name, tensor in tensors.items():
        if ".attention.attention." not in name:
            result[_rename(name, _BACKBONE_NAMES)] = tensor
        elif ".query." in name:
            qkv = torch.cat([tensors[name.replace("query", part)] for part in ("query", "key", "value")])
            result[_rename(name.replace("attention.attention.query", "attn.qkv"), _BACKBONE_NAMES)] = qkv
    prefixes = ("keypoint_head.", *(f"associate_keypoint_heads.{index}." for index in range(len(other_heads))))
    for prefix, module in zip(prefixes, (model.head, *other_heads), strict=True):
        result |= {prefix + _rename(name, _HEAD_NAMES): tensor for name, tensor in module.state_dict().items()}
    return result


def split_state_dict(state: dict[str, torch.Tensor], expert: int) -> dict[str, torch.Tensor]:
    """One dataset of a ViTPose++ as the original's script splits it off: the other tensors stay behind."""
    result = dict(state)
    for name in state:
        if ".mlp.fc2." in name:
            result[name] = torch.cat([state[name], state[name.replace("fc2", f"experts.{expert}")]])
        elif expert and name.startswith("keypoint_head."):
            result[name] = state[name.replace("keypoint_head", f"associate_keypoint_heads.{expert - 1}")]
    return result


def _rename(name: str, names: tuple[tuple[str, str], ...]) -> str:
    for theirs, original in names:
        name = name.replace(theirs, original)
    return name
