"""A ViTPose in PyTorch under the names of MMPose 1.x, written after its definition.

VisionTransformer of MMPretrain (no class token, padding 2), FFN of MMCV, HeatmapHead of MMPose; for the simple head, a
FeatureMapProcessor (ReLU, then bilinear) before it, and a final layer of 3x3.
"""

import torch
from torch import nn
from torch.nn import functional


class Attention(nn.Module):
    def __init__(self, features: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.qkv = nn.Linear(features, 3 * features)
        self.proj = nn.Linear(features, features)

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        batch, count, features = tokens.shape
        query, key, value = self.qkv(tokens).reshape(batch, count, 3, self.heads, -1).permute(2, 0, 3, 1, 4)
        output = functional.scaled_dot_product_attention(query, key, value)
        return self.proj(output.transpose(1, 2).reshape(batch, count, features))


class FFN(nn.Module):
    def __init__(self, features: int, hidden: int) -> None:
        super().__init__()
        first = nn.Sequential(nn.Linear(features, hidden), nn.GELU(), nn.Dropout(0.0))
        self.layers = nn.Sequential(first, nn.Linear(hidden, features), nn.Dropout(0.0))


class Layer(nn.Module):
    def __init__(self, features: int, heads: int, hidden: int) -> None:
        super().__init__()
        self.ln1 = nn.LayerNorm(features, eps=1e-6)
        self.attn = Attention(features, heads)
        self.ln2 = nn.LayerNorm(features, eps=1e-6)
        self.ffn = FFN(features, hidden)

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        tokens = tokens + self.attn(self.ln1(tokens))
        return tokens + self.ffn.layers(self.ln2(tokens))


class PatchEmbed(nn.Module):
    def __init__(self, features: int) -> None:
        super().__init__()
        self.projection = nn.Conv2d(3, features, 16, stride=16, padding=2)


class VisionTransformer(nn.Module):
    def __init__(self, features: int, layers: int, heads: int, grid: tuple[int, int]) -> None:
        super().__init__()
        self.grid = grid
        self.patch_embed = PatchEmbed(features)
        self.pos_embed = nn.Parameter(torch.zeros(1, grid[0] * grid[1], features))
        self.layers = nn.ModuleList(Layer(features, heads, 4 * features) for _ in range(layers))
        self.ln1 = nn.LayerNorm(features, eps=1e-6)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        tokens = self.patch_embed.projection(images).flatten(2).transpose(1, 2) + self.pos_embed
        for layer in self.layers:
            tokens = layer(tokens)
        return self.ln1(tokens).transpose(1, 2).unflatten(2, self.grid)


class HeatmapHead(nn.Module):
    def __init__(self, features: int, keypoints: int, simple: bool) -> None:
        super().__init__()
        self.simple = simple
        if simple:
            self.final_layer = nn.Conv2d(features, keypoints, 3, padding=1)
            return
        layers: list[nn.Module] = []
        for inputs in (features, 256):
            layers += [nn.ConvTranspose2d(inputs, 256, 4, 2, 1, bias=False), nn.BatchNorm2d(256), nn.ReLU()]
        self.deconv_layers = nn.Sequential(*layers)
        self.final_layer = nn.Conv2d(256, keypoints, 1)

    def forward(self, maps: torch.Tensor) -> torch.Tensor:
        if self.simple:
            maps = functional.interpolate(functional.relu(maps), scale_factor=4, mode="bilinear", align_corners=False)
            return self.final_layer(maps)
        return self.final_layer(self.deconv_layers(maps))


class TopdownPoseEstimator(nn.Module):
    def __init__(
        self, *, simple: bool, features: int = 24, layers: int = 2, heads: int = 2, keypoints: int = 17
    ) -> None:
        super().__init__()
        self.backbone = VisionTransformer(features, layers, heads, (4, 3))
        self.head = HeatmapHead(features, keypoints, simple)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return self.head(self.backbone(images))
