"""Forward calls of cheap modules, remembered so that their result can be computed once more.

Computed again is the same bits: the same function of the same input, with the module's parameters
as they were, and with the generator's state for dropout. Statistics that run are not touched.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tensile.contents import Content, Slot
from tensile.saved_tensors import Hold
from tensile.weak_storage import WeakStorage

_SMALL_BYTES = 2**20  # own parameters of such modules are vectors; they are copied


def _layer_norm(m: nn.Module, x: Tensor, own: tuple[Tensor | None, ...]) -> Tensor:
    assert isinstance(m, nn.LayerNorm)
    return F.layer_norm(x, list(m.normalized_shape), own[0], own[1], m.eps)


def _group_norm(m: nn.Module, x: Tensor, own: tuple[Tensor | None, ...]) -> Tensor:
    assert isinstance(m, nn.GroupNorm)
    return F.group_norm(x, m.num_groups, own[0], own[1], m.eps)


def _rms_norm(m: nn.Module, x: Tensor, own: tuple[Tensor | None, ...]) -> Tensor:
    assert isinstance(m, nn.RMSNorm)
    return F.rms_norm(x, list(m.normalized_shape), own[0], m.eps)


def _batch_norm(m: nn.Module, x: Tensor, own: tuple[Tensor | None, ...]) -> Tensor:
    assert isinstance(m, (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d))
    return F.batch_norm(x, None, None, own[0], own[1], True, 0.0, m.eps)


def _gelu(m: nn.Module, x: Tensor, own: tuple[Tensor | None, ...]) -> Tensor:
    assert isinstance(m, nn.GELU)
    return F.gelu(x, approximate=m.approximate)


def _leaky_relu(m: nn.Module, x: Tensor, own: tuple[Tensor | None, ...]) -> Tensor:
    assert isinstance(m, nn.LeakyReLU)
    return F.leaky_relu(x, m.negative_slope)


def _dropout(m: nn.Module, x: Tensor, own: tuple[Tensor | None, ...]) -> Tensor:
    assert isinstance(m, nn.Dropout)
    return F.dropout(x, m.p, training=True)


_Compute = Callable[[nn.Module, Tensor, tuple[Tensor | None, ...]], Tensor]
_COMPUTE: dict[type[nn.Module], _Compute] = {
    nn.LayerNorm: _layer_norm,
    nn.GroupNorm: _group_norm,
    nn.RMSNorm: _rms_norm,
    nn.BatchNorm1d: _batch_norm,
    nn.BatchNorm2d: _batch_norm,
    nn.BatchNorm3d: _batch_norm,
    nn.GELU: _gelu,
    nn.ReLU: lambda m, x, own: F.relu(x),
    nn.SiLU: lambda m, x, own: F.silu(x),
    nn.Sigmoid: lambda m, x, own: torch.sigmoid(x),
    nn.Tanh: lambda m, x, own: torch.tanh(x),
    nn.LeakyReLU: _leaky_relu,
    nn.Dropout: _dropout,
}


_Layout = tuple[torch.dtype, int, torch.Size, tuple[int, ...]]


class Mark:
    """A storage in one version. While a mark lives, no other storage gets the same address."""

    __slots__ = ("_weak", "address", "layout", "version")

    def __init__(self, tensor: Tensor) -> None:
        storage = tensor.untyped_storage()
        self.address = storage._cdata
        self.version = tensor._version
        self.layout = _layout(tensor)
        self._weak = WeakStorage(storage)

    def is_of(self, slot: Slot) -> bool:
        storage = slot.content.storage
        return storage is not None and (storage._cdata, slot.version) == (
            self.address,
            self.version,
        )


@dataclass(slots=True, eq=False, kw_only=True)
class Call:
    """One forward call: where its input was, and what else its result depends on."""

    module: nn.Module
    source: Mark
    own: tuple[Tensor | None, ...]
    generator: Tensor | None
    result: Mark | None = None

    def compute(self, source: torch.UntypedStorage) -> torch.UntypedStorage:
        """The result's storage again. Changes no statistics and no generator."""
        dtype, offset, size, stride = self.source.layout
        with torch.no_grad():
            x = torch.empty(0, dtype=dtype).set_(source, offset, size, stride)
            before = torch.get_rng_state() if self.generator is not None else None
            try:
                if self.generator is not None:
                    torch.set_rng_state(self.generator)
                result = _COMPUTE[type(self.module)](self.module, x, self.own)
            finally:
                if before is not None:
                    torch.set_rng_state(before)
        assert self.result is not None
        assert _layout(result) == self.result.layout
        return result.untyped_storage()


class Again:
    """Computes a content from the slot `source`, which is held until then."""

    __slots__ = ("_bring", "_call", "_source")

    def __init__(self, call: Call, source: Slot, bring: Callable[[Content], None]) -> None:
        self._call = call
        self._source = Hold(source)
        self._bring = bring

    def __call__(self) -> torch.UntypedStorage:
        source = self._source.slot.content
        self._bring(source)
        assert source.storage is not None
        return self._call.compute(source.storage)


class RecordedCalls:
    """Remembers the calls in `wanted` of the current step, by module name and number."""

    def __init__(
        self, modules: Iterable[tuple[str, nn.Module]], wanted: set[tuple[str, int]]
    ) -> None:
        self._wanted = wanted
        self._counts: dict[str, int] = defaultdict(int)
        self._calls: dict[tuple[str, int], Call] = {}
        self._open: dict[str, Call] = {}
        names = {name for name, _ in wanted}
        chosen = [(name, module) for name, module in modules if name in names]
        self._removable = [
            handle
            for name, module in chosen
            for handle in (
                module.register_forward_pre_hook(self._entering(name)),
                module.register_forward_hook(self._leaving(name)),
            )
        ]
        self._hooks = {name: _hook_count(module) for name, module in chosen}
        self.active = False

    def begin_step(self) -> None:
        self._counts.clear()
        self._calls.clear()
        self._open.clear()

    def find(self, module: str, call: int) -> Call | None:
        return self._calls.get((module, call))

    def remove(self) -> None:
        for handle in self._removable:
            handle.remove()
        self._calls.clear()

    def _entering(self, name: str) -> Callable[[nn.Module, tuple[object, ...]], None]:
        def enter(module: nn.Module, args: tuple[object, ...]) -> None:
            self._open.pop(name, None)
            if not self.active or (name, self._counts[name]) not in self._wanted:
                return
            if _hook_count(module) != self._hooks[name]:
                return  # somebody looks in between and may change the result
            if len(args) == 1 and isinstance(args[0], Tensor) and _is_repeatable(module, args[0]):
                x = args[0]
                self._open[name] = Call(
                    module=module,
                    source=Mark(x),
                    own=tuple(
                        None if p is None else p.detach().clone()
                        for p in module._parameters.values()
                    ),
                    generator=torch.get_rng_state() if type(module) is nn.Dropout else None,
                )

        return enter

    def _leaving(self, name: str) -> Callable[[nn.Module, tuple[object, ...], object], None]:
        def leave(module: nn.Module, args: tuple[object, ...], result: object) -> None:
            if not self.active:
                return
            number = self._counts[name]
            self._counts[name] += 1
            call = self._open.pop(name, None)
            if call is not None and isinstance(result, Tensor):
                call.result = Mark(result)
                self._calls[name, number] = call

        return leave


def _layout(tensor: Tensor) -> _Layout:
    return tensor.dtype, int(tensor.storage_offset()), tensor.size(), tensor.stride()


def _hook_count(module: nn.Module) -> int:
    return len(module._forward_hooks) + len(module._forward_pre_hooks)


def _is_repeatable(module: nn.Module, x: Tensor) -> bool:
    """Whether `_COMPUTE` does what the module does now, on plain tensors."""
    if type(x) is not Tensor or x.is_conj() or x.is_neg() or torch.is_autocast_enabled("cpu"):
        return False
    if type(module) not in _COMPUTE or "forward" in module.__dict__:
        return False
    if getattr(module, "inplace", False):
        return False
    if isinstance(module, (nn.Dropout, nn.modules.batchnorm._BatchNorm)) and not module.training:
        return False
    own_bytes = sum(p.nbytes for p in module._parameters.values() if p is not None)
    return own_bytes <= _SMALL_BYTES
