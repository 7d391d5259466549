"""The optimizer's step in chunks: each one needs its own gradients and states only.

`step` is replaced on the instance, so schedulers and scalers that call it get the chunked one. What
runs in a chunk is the step that was there before.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from types import MethodType
from typing import Any

import torch
from torch.optim import Optimizer

from tensile.chunks import Chunk, chunks, is_chunkable, narrowed


class ChunkedStep:
    """`begin(number, chunk)` and `end(number, chunk)` are called around each chunk while `active`
    says so; otherwise the step runs whole, as before. `begun` counts how often an optimizer began
    to write, chunk by chunk.
    """

    def __init__(
        self,
        optimizers: Sequence[Optimizer],
        *,
        active: Callable[[], bool],
        begin: Callable[[int, Chunk], None],
        end: Callable[[int, Chunk], None],
    ) -> None:
        self._optimizers = tuple(optimizers)
        self._active = active
        self._begin = begin
        self._end = end
        self._before: list[tuple[Optimizer, bool, Any, Any]] = []
        self.begun = 0

    def install(self) -> None:
        for number, optimizer in enumerate(self._optimizers):
            own = "step" in optimizer.__dict__
            original = optimizer.step
            replaced = MethodType(self._chunked(number, optimizer, original), optimizer)
            self._before.append((optimizer, own, original, replaced))
            optimizer.step = replaced  # type: ignore[method-assign]

    def remove(self) -> None:
        """The steps as they were. One that somebody wrapped since stays, and runs whole."""
        for optimizer, own, original, replaced in self._before:
            if optimizer.__dict__.get("step") is not replaced:
                continue
            if own:
                optimizer.step = original  # type: ignore[method-assign]
            else:
                del optimizer.__dict__["step"]
        self._before.clear()

    def whole(self) -> list[str]:
        """Sentences about optimizers whose step stays in one piece."""
        return [
            f"{type(optimizer).__qualname__} is not known to treat each parameter alone, or has "
            "hooks on its step: its step is one piece, and needs all its states at once"
            for optimizer in self._optimizers
            if not is_chunkable(optimizer)
        ]

    def _chunked(
        self, number: int, optimizer: Optimizer, original: Callable[..., Any]
    ) -> Callable[..., Any]:
        # of the function, not of the method: who asks for the signature takes `self` off once more
        @functools.wraps(getattr(original, "__func__", original))
        def step(_: Optimizer, closure: Callable[[], Any] | None = None, **options: Any) -> Any:
            given = {} if closure is None else {"closure": closure}
            if not self._active():
                self.begun += 1
                return original(**given, **options)
            loss = None
            if closure is not None and is_chunkable(optimizer):
                with torch.enable_grad():
                    loss = closure()
                given = {}
            for index, chunk in enumerate(chunks(self._optimizers)):
                if chunk.optimizer == number:
                    self._begin(index, chunk)
                    self.begun += 1
                    with narrowed(optimizer, chunk):
                        result = original(**given, **options)
                    loss = result if loss is None else loss
                    self._end(index, chunk)
            return loss

        return step


def owned_by(optimizers: Sequence[Optimizer], chunk: Chunk) -> list[torch.Tensor]:
    """The parameters of a chunk."""
    groups = optimizers[chunk.optimizer].param_groups
    if chunk.group is None:
        return [parameter for group in groups for parameter in group["params"]]
    parameters: list[torch.Tensor] = groups[chunk.group]["params"][chunk.start : chunk.stop]
    return parameters
