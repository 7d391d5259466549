"""Which module ran when in the forward pass, and which results can be computed again from it."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn.modules.module import (
    register_module_forward_hook,
    register_module_forward_pre_hook,
)

from tensile.lives import Life, Lives
from tensile.saved import Saved
from tensile.sequence import Event, Moment, Recipe

# Cheap, and functions of one tensor and the module's own parameters. Exact classes: a subclass may
# compute anything. Dropout draws numbers: whoever computes it again restores the generator first.
RECOMPUTABLE = frozenset(
    {
        nn.LayerNorm,
        nn.GroupNorm,
        nn.RMSNorm,
        *(nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d),
        *(nn.GELU, nn.ReLU, nn.SiLU, nn.Sigmoid, nn.Tanh, nn.LeakyReLU),
        nn.Dropout,
    }
)
Version = tuple[Life, int]


@dataclass(frozen=True, slots=True, kw_only=True)
class Call:
    """Call number `call` of a module whose result can be computed again from `source`."""

    module: str
    call: int
    source: Version
    result: Version
    operators: tuple[int, ...]


class Calls:
    """The forward calls of the current step."""

    def __init__(
        self, names: Mapping[nn.Module, str], lives: Lives, emit: Callable[[Event], None]
    ) -> None:
        self._names = names
        self._lives = lives
        self._emit = emit
        self.begin_step()

    def begin_step(self) -> None:
        self._calls: list[Call] = []
        self._counts: dict[str, int] = defaultdict(int)
        self._entered: list[tuple[nn.Module, int, Version | None]] = []

    @contextmanager
    def watched(self) -> Iterator[None]:
        before = register_module_forward_pre_hook(self._enter)
        after = register_module_forward_hook(self._exit)
        try:
            yield
        finally:
            before.remove()
            after.remove()

    def recipes(self, slots: Sequence[Saved]) -> tuple[Recipe, ...]:
        """For each slot that is some call's whole result: how to make it from another slot."""
        slot_of = {(saved.life, saved.version): saved.number for saved in slots}
        return tuple(
            Recipe(
                slot=slot_of[call.result],
                source=slot_of[call.source],
                module=call.module,
                call=call.call,
                operators=call.operators,
            )
            for call in self._calls
            if call.result in slot_of and call.source in slot_of
        )

    def _enter(self, module: nn.Module, args: tuple[object, ...]) -> None:
        name = self._names.get(module)
        if name is None:
            return
        if module._parameters:
            self._event(Moment.ENTER, name)
        source = args[0] if len(args) == 1 and type(module) in RECOMPUTABLE else None
        self._entered.append((module, self._lives.position, self._version(source, whole=False)))

    def _exit(self, module: nn.Module, args: tuple[object, ...], result: object) -> None:
        name = self._names.get(module)
        if name is None:
            return
        while self._entered and self._entered[-1][0] is not module:
            self._entered.pop()  # a call that was left by an exception which somebody caught
        _, start, source = self._entered.pop()
        made = self._version(result, whole=True)
        number = self._counts[name]
        self._counts[name] += 1
        in_forward = torch._C._current_graph_task_id() == -1  # type: ignore[attr-defined,unused-ignore]
        if source and made and source[0] is not made[0] and in_forward:
            operators = tuple(range(start, self._lives.position))
            self._calls.append(
                Call(module=name, call=number, source=source, result=made, operators=operators)
            )
        if module._parameters:
            self._event(Moment.EXIT, name)

    def _version(self, value: object, *, whole: bool) -> Version | None:
        """`whole`: only if the tensor is all of its storage, so that it can stand for it."""
        if not isinstance(value, Tensor) or value.layout != torch.strided:
            return None
        life = self._lives.find(value)
        if life is None or (whole and value.numel() * value.element_size() != life.bytes):
            return None
        return life, value._version

    def _event(self, moment: Moment, name: str) -> None:
        self._emit(Event(moment=moment, position=self._lives.position, name=name))
