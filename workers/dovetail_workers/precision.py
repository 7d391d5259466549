"""Number formats of a run: fp32, bf16 autocast, or fp16 autocast with a scaled loss."""

from __future__ import annotations

from collections.abc import Iterable
from contextlib import AbstractContextManager, nullcontext
from typing import Any, Literal

import torch

_AUTOCAST = {"bf16": torch.bfloat16, "fp16": torch.float16}


class Precision:
    """Forward under `autocast()`, `backward`, and one `step` per optimizer step.

    Parameters and optimizer state stay fp32. With fp16 the loss is scaled against underflow, and a
    step whose gradients overflow is left out (Micikevicius et al. 2018, section 3.2).
    """

    def __init__(self, name: Literal["fp32", "bf16", "fp16"], device: torch.device) -> None:
        self._dtype = _AUTOCAST.get(name)
        self._device = device.type
        self._scaler = torch.amp.GradScaler(self._device, enabled=name == "fp16")
        self._is_updating = False

    def begin(self) -> None:
        """A step begins. One that was given up in its update left the scaler between two stages."""
        if self._is_updating and self._scaler.is_enabled():
            before = self._scaler.state_dict()
            self._scaler = torch.amp.GradScaler(self._device)
            self._scaler.load_state_dict(before)
        self._is_updating = False

    def autocast(self) -> AbstractContextManager[Any]:
        if self._dtype is None:
            return nullcontext()
        return torch.autocast(self._device, dtype=self._dtype)

    def backward(self, loss: torch.Tensor) -> None:
        torch.autograd.backward(self._scaler.scale(loss))

    def step(
        self,
        optimizers: Iterable[torch.optim.Optimizer],
        clip_norm: float | None = None,
    ) -> None:
        """Scale all gradients to one common norm of at most `clip_norm`; step all optimizers."""
        self._is_updating = True
        stepped = list(optimizers)
        if clip_norm is not None:
            for optimizer in stepped:
                self._scaler.unscale_(optimizer)
            torch.nn.utils.clip_grad_norm_(_parameters(stepped), clip_norm)
        for optimizer in stepped:
            self._scaler.step(optimizer)
        self._scaler.update()
        self._is_updating = False

    def state_dict(self) -> dict[str, Any]:
        return self._scaler.state_dict()

    def load_state_dict(self, state: dict[str, Any]) -> None:
        if self._scaler.is_enabled():
            self._scaler.load_state_dict(state)


def _parameters(optimizers: Iterable[torch.optim.Optimizer]) -> list[torch.Tensor]:
    return [
        parameter
        for optimizer in optimizers
        for group in optimizer.param_groups
        for parameter in group["params"]
    ]
