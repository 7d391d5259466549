"""What a real step does to memory, seen operator by operator: the oracle of traces.

It shares nothing with `tensile`: it counts real storages while real tensors are computed.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves


class LiveRecorder(TorchDispatchMode):
    """`operators` are the names of what ran, `live_bytes` what lived while each of them ran."""

    def __init__(self, found: Sequence[torch.Tensor]) -> None:
        super().__init__()
        self.operators: list[str] = []
        self.live_bytes: list[int] = []
        self._sizes: dict[int, int] = {}
        self._watched: dict[int, weakref.ref[torch.UntypedStorage]] = {}
        for tensor in found:
            self._see(tensor)

    def __torch_dispatch__(
        self,
        func: Any,
        types: Sequence[type],
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> object:
        before = set(self._sizes)
        for tensor in _tensors((args, kwargs)):
            self._see(tensor)
        result = func(*args, **(kwargs or {}))
        known = set(self._sizes)
        for tensor in _tensors(result):
            self._see(tensor)
        writes = any(
            argument.alias_info is not None and argument.alias_info.is_write
            for argument in func._schema.arguments
        )
        lifted = "lift" in func.__name__ and set(self._sizes) - before
        reads_number = func is torch.ops.aten._local_scalar_dense.default
        if writes or reads_number or lifted or set(self._sizes) - known:
            self.operators.append(str(func))
            self.live_bytes.append(sum(self._sizes.values()))
        return result

    def _see(self, tensor: torch.Tensor) -> None:
        storage = tensor.untyped_storage()
        key = storage._cdata
        if key not in self._sizes:
            self._sizes[key] = storage.nbytes()
            self._watched[key] = weakref.ref(storage, lambda _: self._forget(key))

    def _forget(self, key: int) -> None:
        del self._sizes[key], self._watched[key]


def record(
    step: Callable[[Any], object], batch: object, found: Callable[[], Sequence[torch.Tensor]]
) -> LiveRecorder:
    """The third call of `step(batch)`; `found` says what it finds, the optimizer's state too."""
    step(batch)
    step(batch)
    recorder = LiveRecorder([*found(), *_tensors(batch)])
    with recorder:
        step(batch)
    return recorder


def _tensors(tree: object) -> list[torch.Tensor]:
    return [leaf for leaf in tree_leaves(tree) if isinstance(leaf, torch.Tensor)]
