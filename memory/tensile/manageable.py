"""What a session can take in hand."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping

import torch
from torch import nn
from torch.optim import Optimizer

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
    _refuse_foreign(managed, tensors)
    return managed


def refuse_unmanageable(
    device: CpuDevice, new: Mapping[str, nn.Parameter], known: Mapping[str, nn.Parameter]
) -> None:
    """Raises SessionError for parameters that a session cannot take in beside those it knows."""
    _refuse_foreign(device, new)
    for name in new:
        if name in known:
            raise SessionError(
                f"{name} is another parameter than when the session was made; close it, and make a "
                "new one"
            )


def refuse_shared(
    optimizers: Iterable[Optimizer],
    parameters: Mapping[str, nn.Parameter],
    others: Iterable[tuple[Iterable[Optimizer], Mapping[str, nn.Parameter]]],
) -> None:
    """Raises SessionError for what one of `others` has in hand: each would move it for itself."""
    mine = {id(optimizer) for optimizer in optimizers}
    for theirs, managed in others:
        if any(id(optimizer) in mine for optimizer in theirs):
            raise SessionError(
                "this optimizer has a session already; close that one first, or use it"
            )
        taken = {id(parameter) for parameter in managed.values()}
        name = next((name for name, each in parameters.items() if id(each) in taken), None)
        if name is not None:
            raise SessionError(
                f"{name} has a session already; close that one first, or give one session all the "
                "models and optimizers: Session({'a': ..., 'b': ...}, [first, second], ...)"
            )


def _refuse_foreign(managed: CpuDevice, tensors: Mapping[str, torch.Tensor]) -> None:
    foreign = managed.foreign(tensors)
    if foreign is not None:
        name, tensor = foreign
        raise SessionError(
            f"{name} is on {tensor.device} and the session on {managed.kind}; move the model, or "
            "name its device with device=..."
        )
