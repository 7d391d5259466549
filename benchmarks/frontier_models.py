"""Models for `memory_frontier.py`: as deep as those that people train, on small inputs.

Depth is what a memory manager lives on: the least budget is what the largest operator needs, and
that does not grow with the number of layers.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from forecast_models import Gpt, Made, Residual, images
from torch import nn


def gpt(batch: int) -> Made:
    """Twelve blocks of width 256 over 256 tokens: 347 MiB forecast for a batch of 4."""
    words = torch.randint(1000, (batch, 257))
    model = Gpt(words=1000, width=256, depth=12)
    return model, (words[:, :-1].contiguous(), words[:, 1:].contiguous())


def swin(batch: int) -> Made:
    """Swin with the width of Swin-T and half of its depth, on 112 x 112: 533 MiB for a batch of
    16.
    """
    from timm.models.swin_transformer import SwinTransformer

    model = SwinTransformer(
        img_size=112,
        embed_dim=96,
        depths=(2, 2, 6),
        num_heads=(3, 6, 12),
        num_classes=10,
        window_size=7,
    )
    return model, images(batch, (3, 112, 112))


def resnet(batch: int) -> Made:
    """Eighteen residual blocks of two convolutions, on 64 x 64: 321 MiB for a batch of 16."""
    layers: list[nn.Module] = [nn.Conv2d(3, 24, 3, 1, 1, bias=False), nn.BatchNorm2d(24), nn.ReLU()]
    before = 24
    for stage, blocks in enumerate((8, 6, 4)):
        width = 24 * 2**stage
        for number in range(blocks):
            layers.append(Residual(before, width, 2 if stage and number == 0 else 1))
            before = width
    model = nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(before, 10))
    return model, images(batch, (3, 64, 64))


MODELS: dict[str, tuple[Callable[[int], Made], int]] = {
    "GPT": (gpt, 4),
    "Swin": (swin, 16),
    "ResNet-like": (resnet, 16),
}
