"""What a session can take in hand."""

from __future__ import annotations

import os
from collections.abc import Mapping

import torch
from torch import nn

from tensile.cpu_device import CpuDevice


class SessionError(RuntimeError):
    """A session was used in a way that cannot work; the message says which and what would."""


def managed_device(
    device: torch.device,
    folder: str | os.PathLike[str] | None,
    tensors: Mapping[str, torch.Tensor],
    modules: Mapping[str, nn.Module],
) -> CpuDevice:
    """The device, with its lower tier in `folder`. Raises SessionError for one that is not managed,
    for tensors elsewhere and for compiled modules; TierError for the folder.
    """
    if device.type != CpuDevice.kind:
        raise SessionError(f"device {device} is not managed here yet; use device='cpu'")
    for name, module in modules.items():
        if hasattr(module, "_orig_mod") or module._compiled_call_impl is not None:
            raise SessionError(
                f"{name or 'the model'} is compiled, and what a compiled graph saves is not "
                "managed here yet; give the session the module as it was before torch.compile, "
                "and train that"
            )
    managed = CpuDevice(folder)
    foreign = managed.foreign(tensors)
    if foreign is not None:
        name, tensor = foreign
        raise SessionError(
            f"{name} is on {tensor.device} and the session on {device}; move the model, or "
            "name its device with device=..."
        )
    return managed
