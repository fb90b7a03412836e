"""Tiny RT-DETRs of transformers with every parameter and buffer random, as the reference of the tests."""

import pathlib

import numpy as np
import torch
import transformers
from transformers.models.rt_detr.image_processing_pil_rt_detr import RTDetrImageProcessorPil

from tests.support.reference_torch import randomize

LABELS = ("person", "bicycle", "dog", "zebra", "teddy bear")
# Height and width of the tiny detectors' images.
SIZE = (64, 96)

_KINDS = {
    1: (transformers.RTDetrConfig, transformers.RTDetrForObjectDetection),
    2: (transformers.RTDetrV2Config, transformers.RTDetrV2ForObjectDetection),
}

# The published architectures: fields that differ from the defaults of transformers, as its own conversion sets them.
_R18 = {"hidden_sizes": [64, 128, 256, 512], "depths": [2, 2, 2, 2], "layer_type": "basic"}
_SMALL = {"encoder_in_channels": [128, 256, 512], "hidden_expansion": 0.5}
_R101 = {"encoder_ffn_dim": 2048, "encoder_hidden_dim": 384, "decoder_in_channels": [384, 384, 384]}
PUBLISHED = {
    "r18vd": (_R18, {**_SMALL, "decoder_layers": 3}),
    "r34vd": ({**_R18, "depths": [3, 4, 6, 3]}, {**_SMALL, "decoder_layers": 4}),
    "r50vd": ({}, {}),
    "r50vd_m": ({}, {"hidden_expansion": 0.5}),
    "r101vd": ({"depths": [3, 4, 23, 3]}, _R101),
}


def published(size: str, version: int) -> transformers.PreTrainedConfig:
    """The configuration of PekingU/rtdetr_<size> or rtdetr_v2_<size>."""
    backbone, fields = PUBLISHED[size]
    resnet = transformers.RTDetrResNetConfig(**backbone, out_indices=[2, 3, 4])
    return _KINDS[version][0](backbone_config=resnet, num_labels=80, **fields)


def create(config: transformers.PreTrainedConfig) -> torch.nn.Module:
    return _KINDS[2 if config.model_type == "rt_detr_v2" else 1][1](config)


def tiny_detector(version: int = 1, *, seed: int = 0, backbone: dict | None = None, **fields) -> torch.nn.Module:
    """A detector for images of 64 x 96 pixels; `fields` override those of its config."""
    resnet = {"embedding_size": 8, "hidden_sizes": [8, 12, 16, 24], "depths": [1, 2, 1, 1], "layer_type": "basic"}
    resnet = transformers.RTDetrResNetConfig(**{**resnet, "out_indices": [2, 3, 4], **(backbone or {})})
    sizes = [resnet.hidden_sizes[index - 1] for index in resnet.out_indices]
    values = {
        "encoder_in_channels": sizes,
        "encoder_hidden_dim": 16,
        "encoder_attention_heads": 2,
        "encoder_ffn_dim": 20,
        "decoder_in_channels": [fields.get("encoder_hidden_dim", 16)] * len(sizes),
        "d_model": 16,
        "decoder_attention_heads": 2,
        "decoder_ffn_dim": 20,
        "decoder_layers": 2,
        "num_queries": 30,
        "id2label": dict(enumerate(LABELS)),
        "label2id": {label: index for index, label in enumerate(LABELS)},
    }
    model = create(_KINDS[version][0](backbone_config=resnet, **{**values, **fields}))
    return randomize_detector(model, seed)


def randomize_detector(model: torch.nn.Module, seed: int) -> torch.nn.Module:
    """Random numbers in every parameter and buffer; the two names of a tied head stay one tensor."""
    randomize(model, seed)
    with torch.no_grad():
        for name, tensor in model.state_dict().items():
            if name.endswith("n_points_scale"):
                tensor.uniform_(0.1, 0.5, generator=torch.Generator().manual_seed(seed))
    return model.eval()


def save(model: torch.nn.Module, folder: pathlib.Path, **processor) -> pathlib.Path:
    """As a folder of the Hub."""
    model.save_pretrained(folder)
    RTDetrImageProcessorPil(**{"size": {"height": SIZE[0], "width": SIZE[1]}, **processor}).save_pretrained(folder)
    return folder


def random_images(n: int = 2, size: tuple[int, int] = SIZE, seed: int = 0) -> np.ndarray:
    """Prepared images (n, height, width, 3)."""
    return np.random.default_rng(seed).normal(size=(n, *size, 3)).astype(np.float32)


def run(model: torch.nn.Module, images: np.ndarray):
    """What the reference returns for images with channels last."""
    with torch.no_grad():
        return model(torch.from_numpy(images.transpose(0, 3, 1, 2).copy()))
