"""What a training begins with in other repositories: MAE's checkpoints, and the original's groups of an optimizer."""

import numpy as np
import torch

from tests.support.models import TINY

DEPTH, DIM, HIDDEN = TINY["num_layers"], TINY["hidden_size"], TINY["hidden_size"] * TINY["mlp_ratio"]


def mae(decoder: bool = True, **changed) -> dict[str, torch.Tensor]:
    """A tiny MAE with random weights under the names of its repository, for crops of 64 x 64 pixels."""
    block = {
        "norm1.weight": (DIM,),
        "norm1.bias": (DIM,),
        "attn.qkv.weight": (3 * DIM, DIM),
        "attn.qkv.bias": (3 * DIM,),
        "attn.proj.weight": (DIM, DIM),
        "attn.proj.bias": (DIM,),
        "norm2.weight": (DIM,),
        "norm2.bias": (DIM,),
        "mlp.fc1.weight": (HIDDEN, DIM),
        "mlp.fc1.bias": (HIDDEN,),
        "mlp.fc2.weight": (DIM, HIDDEN),
        "mlp.fc2.bias": (DIM,),
    }
    shapes = {
        "cls_token": (1, 1, DIM),
        "pos_embed": (1, 17, DIM),
        "patch_embed.proj.weight": (DIM, 3, 16, 16),
        "patch_embed.proj.bias": (DIM,),
        **{f"blocks.{index}.{name}": shape for index in range(DEPTH) for name, shape in block.items()},
        "norm.weight": (DIM,),
        "norm.bias": (DIM,),
    }
    if decoder:
        shapes |= {"mask_token": (1, 1, 8), "decoder_pos_embed": (1, 17, 8), "decoder_blocks.0.norm1.weight": (8,)}
    generator = torch.Generator().manual_seed(0)
    return {name: torch.randn(shape, generator=generator) for name, shape in (shapes | changed).items()}


def original_rate_and_decay(name: str, tensor: np.ndarray, depth: int, decay: float) -> tuple[float, float]:
    """Scale of the learning rate and weight decay, as the original's constructor of optimisers has them."""
    if name == "backbone.pos_embed" or name.startswith("backbone.patch_embed"):
        layer = 0
    elif name.startswith("backbone.blocks"):
        layer = int(name.split(".")[2]) + 1
    else:
        layer = depth + 1
    no_decay = tensor.ndim == 1 or name.endswith(".bias") or "pos_embed" in name
    return decay ** (depth + 1 - layer), 0.0 if no_decay else 0.1
