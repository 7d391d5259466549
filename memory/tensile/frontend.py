"""What Python does to tensors before any operator: format them, read their attributes."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from tensile.recorder import TraceError


class Frontend(TorchFunctionMode):
    """Formats a fake number as a real one would be, and notices a real parameter whose gradient is
    read: no operator would show that it is not there.
    """

    def __init__(self, name_of: Callable[[Tensor], str | None]) -> None:
        super().__init__()
        self._name_of = name_of

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Sequence[type],
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        if func is Tensor.__format__ and args[0].dim() == 0:
            return format(args[0].item(), args[1])
        if func == _READ_GRADIENT and isinstance(args[0], nn.Parameter):
            with torch._C.DisableTorchFunction():
                refuse_real(self._name_of(args[0]))
        return func(*args, **(kwargs or {}))


_READ_GRADIENT = Tensor.grad.__get__  # type: ignore[union-attr]


def refuse_real(name: str | None) -> None:
    """Raises TraceError for the name of a real parameter; None is every other tensor."""
    if name is not None:
        raise TraceError(
            f"{name}: the step uses this parameter or buffer through a reference that tracing "
            "cannot exchange; take it from the model inside of the step"
        )
