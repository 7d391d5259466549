"""Models for `memory_forecast.py`: ten that are reported, and others to check constants on.

Each function takes a batch size and gives a model and a batch `(inputs, targets)`; all of them are
classifiers or regressors by the shape of their targets.
"""

from __future__ import annotations

from collections.abc import Callable
from itertools import pairwise

import torch
from torch import Tensor, nn
from torch.nn import functional

Batch = tuple[Tensor, Tensor]
Made = tuple[nn.Module, Batch]


def mlp(batch: int) -> Made:
    layers: list[nn.Module] = []
    for width in (1024, 1024, 1024):
        layers += [nn.Linear(width, 2048), nn.GELU(), nn.LayerNorm(2048), nn.Dropout(0.1)]
        layers += [nn.Linear(2048, 1024), nn.ReLU()]
    return nn.Sequential(*layers, nn.Linear(1024, 10)), images(batch, (1024,))


def vgg(batch: int) -> Made:
    layers: list[nn.Module] = []
    before = 3
    for width, repeats in ((32, 2), (64, 2), (128, 3), (256, 3)):
        for _ in range(repeats):
            layers += [nn.Conv2d(before, width, 3, padding=1), nn.ReLU(inplace=True)]
            before = width
        layers.append(nn.MaxPool2d(2))
    layers += [
        nn.Flatten(),
        nn.Linear(256 * 16, 1024),
        nn.ReLU(),
        nn.Dropout(),
        nn.Linear(1024, 10),
    ]
    return nn.Sequential(*layers), images(batch, (3, 64, 64))


class Residual(nn.Module):
    def __init__(self, before: int, width: int, stride: int) -> None:
        super().__init__()
        self.path = nn.Sequential(
            nn.Conv2d(before, width, 3, stride, 1, bias=False),
            nn.BatchNorm2d(width),
            nn.ReLU(),
            nn.Conv2d(width, width, 3, 1, 1, bias=False),
            nn.BatchNorm2d(width),
        )
        self.short = (
            nn.Identity()
            if before == width and stride == 1
            else nn.Sequential(
                nn.Conv2d(before, width, 1, stride, bias=False), nn.BatchNorm2d(width)
            )
        )

    def forward(self, x: Tensor) -> Tensor:
        return functional.relu(self.path(x) + self.short(x))


def resnet(batch: int) -> Made:
    blocks = [Residual(32, 32, 1), Residual(32, 64, 2), Residual(64, 128, 2), Residual(128, 256, 2)]
    model = nn.Sequential(
        nn.Conv2d(3, 32, 3, 1, 1, bias=False),
        nn.BatchNorm2d(32),
        nn.ReLU(),
        *blocks,
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(256, 10),
    )
    return model, images(batch, (3, 64, 64))


class Dense(nn.Module):
    def __init__(self, before: int, growth: int, layers: int) -> None:
        super().__init__()
        self.layers = nn.ModuleList(
            nn.Sequential(
                nn.BatchNorm2d(before + i * growth),
                nn.ReLU(),
                nn.Conv2d(before + i * growth, growth, 3, padding=1, bias=False),
            )
            for i in range(layers)
        )

    def forward(self, x: Tensor) -> Tensor:
        for layer in self.layers:
            x = torch.cat([x, layer(x)], 1)
        return x


def densenet(batch: int) -> Made:
    model = nn.Sequential(
        nn.Conv2d(3, 24, 3, padding=1),
        Dense(24, 12, 5),
        nn.Conv2d(84, 48, 1),
        nn.AvgPool2d(2),
        Dense(48, 12, 5),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(108, 10),
    )
    return model, images(batch, (3, 48, 48))


class Block(nn.Module):
    def __init__(self, width: int, heads: int, causal: bool) -> None:
        super().__init__()
        self.heads, self.causal = heads, causal
        self.norm, self.other = nn.LayerNorm(width), nn.LayerNorm(width)
        self.mix, self.out = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.path = nn.Sequential(
            nn.Linear(width, 4 * width), nn.GELU(), nn.Linear(4 * width, width)
        )
        self.drop = nn.Dropout(0.1)

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = self.mix(self.norm(x)).unflatten(-1, (3, self.heads, -1)).permute(2, 0, 3, 1, 4)
        mixed = functional.scaled_dot_product_attention(q, k, v, is_causal=self.causal)
        x = x + self.drop(self.out(mixed.transpose(1, 2).flatten(2)))
        return x + self.drop(self.path(self.other(x)))


class Gpt(nn.Module):
    def __init__(self, words: int = 4000, width: int = 256, depth: int = 4) -> None:
        super().__init__()
        self.embed, self.place = nn.Embedding(words, width), nn.Embedding(256, width)
        self.blocks = nn.Sequential(*(Block(width, 4, causal=True) for _ in range(depth)))
        self.norm = nn.LayerNorm(width)
        self.head = nn.Linear(width, words, bias=False)
        self.head.weight = self.embed.weight

    def forward(self, words: Tensor) -> Tensor:
        x = self.embed(words) + self.place(torch.arange(words.shape[1]))
        return self.head(self.norm(self.blocks(x))).transpose(1, 2)


def gpt(batch: int) -> Made:
    words = torch.randint(4000, (batch, 257))
    return Gpt(), (words[:, :-1].contiguous(), words[:, 1:].contiguous())


class Bert(nn.Module):
    """Post-norm encoder layers with explicit attention scores."""

    def __init__(self, width: int = 256, depth: int = 3) -> None:
        super().__init__()
        self.embed = nn.Embedding(8000, width)
        self.layers = nn.ModuleList(
            nn.ModuleDict(
                {
                    "qkv": nn.Linear(width, 3 * width),
                    "out": nn.Linear(width, width),
                    "first": nn.Linear(width, 4 * width),
                    "second": nn.Linear(4 * width, width),
                    "norm": nn.LayerNorm(width),
                    "other": nn.LayerNorm(width),
                }
            )
            for _ in range(depth)
        )
        self.head = nn.Linear(width, 2)

    def forward(self, words: Tensor) -> Tensor:
        x = self.embed(words)
        for layer in self.layers:
            q, k, v = layer["qkv"](x).unflatten(-1, (3, 4, -1)).permute(2, 0, 3, 1, 4)
            scores = (q @ k.transpose(-1, -2) / 8).softmax(-1)
            mixed = (functional.dropout(scores, 0.1) @ v).transpose(1, 2).flatten(2)
            x = layer["norm"](x + layer["out"](mixed))
            x = layer["other"](x + layer["second"](functional.gelu(layer["first"](x))))
        return self.head(x[:, 0])


def bert(batch: int) -> Made:
    return Bert(), (torch.randint(8000, (batch, 192)), torch.randint(2, (batch,)))


class Lstm(nn.Module):
    def __init__(self, width: int = 320) -> None:
        super().__init__()
        self.embed = nn.Embedding(6000, width)
        self.lstm = nn.LSTM(width, width, num_layers=2, batch_first=True, dropout=0.1)
        self.head = nn.Linear(width, 6000)

    def forward(self, words: Tensor) -> Tensor:
        hidden, _ = self.lstm(self.embed(words))
        return self.head(hidden).transpose(1, 2)


def lstm(batch: int) -> Made:
    words = torch.randint(6000, (batch, 49))
    return Lstm(), (words[:, :-1].contiguous(), words[:, 1:].contiguous())


class UNet(nn.Module):
    def __init__(self, width: int = 24) -> None:
        super().__init__()
        sizes = [3, width, 2 * width, 4 * width]
        self.down = nn.ModuleList(self._pair(a, b) for a, b in pairwise(sizes))
        self.up = nn.ModuleList(nn.ConvTranspose2d(2 * n, n, 2, 2) for n in (2 * width, width))
        self.join = nn.ModuleList(self._pair(2 * n, n) for n in (2 * width, width))
        self.head = nn.Conv2d(width, 5, 1)

    @staticmethod
    def _pair(before: int, width: int) -> nn.Module:
        layers: list[nn.Module] = []
        for size in (before, width):
            layers += [nn.Conv2d(size, width, 3, padding=1), nn.GroupNorm(8, width), nn.SiLU()]
        return nn.Sequential(*layers)

    def forward(self, x: Tensor) -> Tensor:
        kept = []
        for number, level in enumerate(self.down):
            x = level(functional.max_pool2d(x, 2) if number else x)
            kept.append(x)
        for up, join, beside in zip(self.up, self.join, reversed(kept[:-1]), strict=True):
            x = join(torch.cat([up(x), beside], 1))
        return self.head(x)


def unet(batch: int) -> Made:
    return UNet(), (torch.randn(batch, 3, 64, 64), torch.randint(5, (batch, 64, 64)))


def swin(batch: int) -> Made:
    from timm.models.swin_transformer import SwinTransformer

    model = SwinTransformer(
        img_size=112,
        embed_dim=48,
        depths=(2, 2, 2),
        num_heads=(3, 6, 12),
        num_classes=10,
        window_size=7,
    )
    return model, images(batch, (3, 112, 112))


class Capsules(nn.Module):
    """A capsule network with routing by agreement (arXiv 1710.09829), small."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(1, 128, 9)
        self.primary = nn.Conv2d(128, 256, 9, 2)
        self.route = nn.Parameter(0.01 * torch.randn(10, 1152, 8, 16))

    def forward(self, x: Tensor) -> Tensor:
        lower = squash(
            self.primary(functional.relu(self.stem(x))).flatten(1).unflatten(1, (1152, 8))
        )
        votes = torch.einsum("bnd,cndk->bcnk", lower, self.route)
        logits = torch.zeros(votes.shape[:3])
        for turn in range(3):
            higher = squash((logits.softmax(1)[..., None] * votes).sum(2))
            if turn < 2:
                logits = logits + (votes * higher[:, :, None]).sum(-1)
        return higher.norm(dim=-1)


def squash(x: Tensor) -> Tensor:
    square = (x * x).sum(-1, keepdim=True)
    return square / (1 + square) * x / (square + 1e-8).sqrt()


def capsnet(batch: int) -> Made:
    return Capsules(), images(batch, (1, 28, 28))


def autoencoder(batch: int) -> Made:
    """Not reported: strided and transposed convolutions of one dimension."""
    sizes = [8, 32, 64, 128]
    down = [nn.Conv1d(a, b, 5, 2, 2) for a, b in pairwise(sizes)]
    up = [nn.ConvTranspose1d(b, a, 4, 2, 1) for a, b in pairwise(sizes)][::-1]
    layers = [layer for each in (*down, *up) for layer in (each, nn.GELU())]
    return nn.Sequential(*layers), (torch.randn(batch, 8, 4096), torch.randn(batch, 8, 4096))


def mixer(batch: int) -> Made:
    """Not reported: depthwise convolutions and plain linear layers, channels last."""
    layers: list[nn.Module] = [nn.Conv2d(3, 96, 4, 4)]
    for _ in range(4):
        layers += [nn.Conv2d(96, 96, 7, padding=3, groups=96), nn.BatchNorm2d(96), nn.GELU()]
        layers += [nn.Conv2d(96, 192, 1), nn.ReLU(), nn.Conv2d(192, 96, 1)]
    layers += [nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(96, 10)]
    return nn.Sequential(*layers), images(batch, (3, 96, 96))


class Gru(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.cell, self.head = nn.GRU(128, 256, batch_first=True), nn.Linear(256, 10)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.cell(x)[0][:, -1])


def gru(batch: int) -> Made:
    return Gru(), images(batch, (40, 128))


def images(batch: int, shape: tuple[int, ...]) -> Batch:
    return torch.randn(batch, *shape), torch.randint(10, (batch,))


# name -> (maker, three batch sizes)
REPORTED: dict[str, tuple[Callable[[int], Made], tuple[int, int, int]]] = {
    "MLP": (mlp, (256, 512, 1024)),
    "VGG-like": (vgg, (16, 32, 64)),
    "ResNet-like": (resnet, (16, 32, 48)),
    "DenseNet-like": (densenet, (8, 16, 24)),
    "GPT": (gpt, (4, 8, 12)),
    "BERT-like": (bert, (8, 16, 24)),
    "LSTM": (lstm, (16, 32, 64)),
    "U-Net": (unet, (8, 16, 24)),
    "Swin": (swin, (4, 8, 16)),
    "CapsNet": (capsnet, (8, 16, 32)),
}
OTHERS: dict[str, tuple[Callable[[int], Made], tuple[int, int, int]]] = {
    "autoencoder": (autoencoder, (16, 32, 64)),
    "mixer": (mixer, (8, 16, 32)),
    "GRU": (gru, (64, 128, 256)),
}
