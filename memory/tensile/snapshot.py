"""What a training step finds, kept so that a step that failed can be undone and taken again.

Nothing large is copied. Whether parameters and gradients were written is told by their versions,
and whether an optimizer began to write by the session; a step that did so is not undone. Small
buffers are copied before every step (the statistics of a batch norm), large ones once a step was
seen to write them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.utils.weak import TensorWeakRef

from tensile.held_generators import held_generators
from tensile.randomness import Generators

SMALL_BYTES = 64 * 2**10
MOST_BYTES = 16 * 2**20  # of all copies together


@dataclass(frozen=True, slots=True)
class _Gradient:
    """Held weakly: a step that sets it to none frees it, as without a session."""

    watched: TensorWeakRef
    version: int


@dataclass(frozen=True, slots=True)
class _Buffer:
    module: nn.Module
    key: str
    tensor: Tensor
    version: int
    copy: Tensor | None


class Snapshot:
    """`begun()` counts how often an optimizer began to write.

    What a step writes past autograd (`weight.data`) before its optimizer steps is not seen, nor is
    what it changes in Python.
    """

    def __init__(
        self,
        modules: Iterable[nn.Module],
        parameters: Iterable[nn.Parameter],
        optimizers: Sequence[Optimizer],
        begun: Callable[[], int],
    ) -> None:
        self._modules = tuple(dict.fromkeys(modules))
        self._parameters = tuple(parameters)
        self._optimizers = tuple(optimizers)
        self._begun = begun
        self._begun_before = begun()
        self._generators = Generators.now()
        self._step: object = None
        self._held: tuple[Any, ...] | None = None  # by that step and the modules
        self._versions: list[int] = []
        self._gradients: list[_Gradient | None] = []
        self._groups: list[tuple[dict[str, Any], dict[str, Any]]] = []
        self._buffers: list[_Buffer] = []
        self._copies: dict[int, tuple[Tensor, Tensor]] = {}  # by id, with the buffer itself

    def take_in(self, parameters: Iterable[nn.Parameter]) -> None:
        """More of them, which an optimizer got since."""
        self._parameters += tuple(parameters)
        self._versions += [_version(parameter) for parameter in parameters]
        self._gradients += [_watched(parameter.grad) for parameter in parameters]

    def take(self, step: object = None) -> None:
        """Now, before `step`. Takes well below a millisecond for some hundred tensors. The step's
        own generators are looked for when it is another than before.
        """
        self._begun_before = self._begun()
        if self._held is None or step != self._step:
            self._step, self._held = step, held_generators(step, *self._modules)
        self._generators = Generators.now(self._held)
        self._versions = [_version(parameter) for parameter in self._parameters]
        self._gradients = [_watched(parameter.grad) for parameter in self._parameters]
        self._groups = [
            (group, {key: value for key, value in group.items() if key != "params"})
            for optimizer in self._optimizers
            for group in optimizer.param_groups
        ]
        self._take_buffers()

    def undo(self) -> bool:
        """Everything as it was at `take`; False, and nothing is changed, where that cannot be."""
        if not self._is_undoable():
            return False
        self._generators.put_back()
        for parameter, before in zip(self._parameters, self._gradients, strict=True):
            parameter.grad = None if before is None else before.watched()
        for group, settings in self._groups:
            group.update(settings)
        with torch.no_grad():
            for buffer in self._buffers:
                buffer.module._buffers[buffer.key] = buffer.tensor
                if buffer.copy is not None:
                    buffer.tensor.copy_(buffer.copy)
        return True

    def _is_undoable(self) -> bool:
        if self._begun() != self._begun_before:
            return False
        if [_version(parameter) for parameter in self._parameters] != self._versions:
            return False
        for before in self._gradients:
            gradient = None if before is None else before.watched()
            if before is not None and gradient is not None and _version(gradient) != before.version:
                return False  # a step that adds to gradients of earlier ones
        return not any(_is_lost(buffer) for buffer in self._buffers)

    def _take_buffers(self) -> None:
        written = {id(buffer.tensor) for buffer in self._buffers if _is_lost(buffer)}
        found = [
            (module, key, tensor)
            for module in self._modules
            for key, tensor in module._buffers.items()
            if tensor is not None
        ]
        copies: dict[int, tuple[Tensor, Tensor]] = {}
        room_bytes = MOST_BYTES
        for _, _, tensor in found:
            if id(tensor) not in copies and _is_plain(tensor) and tensor.nbytes <= room_bytes:
                known = self._copies.get(id(tensor))
                if known is not None and _is_alike(known[1], tensor):
                    copies[id(tensor)] = (tensor, known[1])
                elif tensor.nbytes <= SMALL_BYTES or id(tensor) in written:
                    copies[id(tensor)] = (tensor, torch.empty_like(tensor))
                else:
                    continue
                room_bytes -= tensor.nbytes
        self._copies = copies
        self._buffers = [
            _Buffer(module, key, tensor, _version(tensor), copies.get(id(tensor), (None, None))[1])
            for module, key, tensor in found
        ]
        if copies:
            with torch.no_grad():
                targets = [copy for _, copy in copies.values()]
                torch._foreach_copy_(targets, [tensor for tensor, _ in copies.values()])


def _watched(gradient: Tensor | None) -> _Gradient | None:
    if gradient is None:
        return None
    return _Gradient(TensorWeakRef(gradient), _version(gradient))


def _version(tensor: Tensor) -> int:
    return -1 if tensor.is_inference() else tensor._version


def _is_lost(buffer: _Buffer) -> bool:
    return buffer.copy is None and _version(buffer.tensor) != buffer.version


def _is_plain(tensor: Tensor) -> bool:
    return type(tensor) is Tensor and tensor.layout == torch.strided


def _is_alike(copy: Tensor, tensor: Tensor) -> bool:
    return (copy.dtype, copy.device, copy.shape) == (tensor.dtype, tensor.device, tensor.shape)
