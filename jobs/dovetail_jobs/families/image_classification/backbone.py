"""Swin Transformers by name (Liu et al. 2021, arXiv 2103.14030; microsoft/Swin-Transformer)."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch

from dovetail_jobs import torchvision_shim

torchvision_shim.apply()  # timm imports torchvision

from timm.models.swin_transformer import SwinTransformer  # noqa: E402


@dataclass(frozen=True, slots=True, kw_only=True)
class Variant:
    """`embed_dim` channels in the first stage, doubled with each next. Sizes are of a side.

    `init` as timm names it: empty is the official one, a standard deviation of 0.02 everywhere,
    which is far too small for narrow layers; `jax` scales with the width (Glorot & Bengio 2010).
    """

    embed_dim: int
    depths: tuple[int, ...]
    heads: tuple[int, ...]
    patch_size: int = 4
    window_size: int = 7
    init: str = ""


VARIANTS: dict[str, Variant] = {
    # Ours, for machines without a GPU: 32 px, a third of a million parameters.
    "swin_test": Variant(
        embed_dim=24, depths=(2, 2, 2), heads=(1, 2, 4), patch_size=2, window_size=4, init="jax"
    ),
    "swin_tiny": Variant(embed_dim=96, depths=(2, 2, 6, 2), heads=(3, 6, 12, 24)),
    "swin_small": Variant(embed_dim=96, depths=(2, 2, 18, 2), heads=(3, 6, 12, 24)),
    "swin_base": Variant(embed_dim=128, depths=(2, 2, 18, 2), heads=(4, 8, 16, 32)),
    "swin_large": Variant(embed_dim=192, depths=(2, 2, 18, 2), heads=(6, 12, 24, 48)),
}


def build_backbone(
    name: str,
    *,
    image_size: int,
    channels: int = 3,
    classes: int = 1000,
    drop_path: float = 0.0,
    device: torch.device | None = None,
) -> torch.nn.Module:
    """(B, channels, image_size, image_size) → (B, classes) logits, freshly initialised."""
    variant = VARIANTS[name]
    model: torch.nn.Module = SwinTransformer(
        img_size=image_size,
        patch_size=variant.patch_size,
        in_chans=channels,
        num_classes=classes,
        embed_dim=variant.embed_dim,
        depths=variant.depths,
        num_heads=variant.heads,
        window_size=variant.window_size,
        drop_path_rate=drop_path,
        weight_init=variant.init,
        device=device,
    )
    return model


def parameter_groups(model: torch.nn.Module) -> Iterator[dict[str, Any]]:
    """Weight decay for matrices and kernels only: none for norms, biases and the bias tables.

    As `optimizer.py` of the official repository has it.
    """
    decayed, plain = [], []
    for name, parameter in model.named_parameters():
        if parameter.ndim <= 1 or name.endswith((".bias", "relative_position_bias_table")):
            plain.append(parameter)
        else:
            decayed.append(parameter)
    yield {"params": decayed}
    yield {"params": plain, "weight_decay": 0.0}
