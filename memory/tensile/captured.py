"""What a training step holds on to besides its arguments: the variables of its closure, the object
that it is a method of, the globals that it names. A trace shows it fake parameters in all of these,
and puts back what it changed there.
"""

from __future__ import annotations

import functools
from collections import deque
from collections.abc import Callable, MutableMapping
from types import CellType, FunctionType, MethodType
from typing import Any

from torch import Tensor, nn
from torch.optim import Optimizer

Undo = Callable[[], None]
Replace = Callable[[Tensor], Tensor]
_MANY = 1000  # items of a container that is a data set, of which a step uses a few


def exchange(step: Callable[..., object], replace: Replace, known: Replace) -> list[Undo]:
    """Puts `replace(tensor)` in place of every captured tensor, in lists and dictionaries too; in
    those of more than a thousand items, `known(tensor)`.

    The returned calls, in reverse order, put everything back as it was: the variables themselves,
    the contents of lists, dictionaries, sets and queues, and the attributes of whatever offers
    `state_dict` and `load_state_dict` (learning-rate schedulers, gradient scalers). Modules and
    optimizers are left to their owner.
    """
    walk = _Walk(replace, known)
    walk.function(step)
    return walk.undo


class _Walk:
    def __init__(self, replace: Replace, known: Replace) -> None:
        self.undo: list[Undo] = []
        self._replace = replace
        self._known = known
        self._seen: set[int] = set()

    def function(self, step: object) -> None:
        if id(step) in self._seen:
            return
        self._seen.add(id(step))
        if isinstance(step, functools.partial):
            for value in (step.func, *step.args, *step.keywords.values()):
                self.value(value)
        elif isinstance(step, MethodType):
            self.function(step.__func__)
            if not isinstance(step.__self__, nn.Module | Optimizer | type):
                self.attributes(step.__self__)
        elif isinstance(step, FunctionType):
            for cell in step.__closure__ or ():
                self.cell(cell)
            for name in step.__code__.co_names:
                if name in step.__globals__:
                    self.entry(step.__globals__, name)
        elif callable(step) and not isinstance(step, nn.Module | Optimizer | type):
            self.attributes(step)
            self.function(type(step).__call__)

    def cell(self, cell: CellType) -> None:
        try:
            old = cell.cell_contents
        except ValueError:  # not assigned yet
            return
        new = self.value(old)

        def put_back() -> None:
            cell.cell_contents = old

        self.undo.append(put_back)
        cell.cell_contents = new

    def entry(self, namespace: MutableMapping[Any, Any], name: object) -> None:
        old = namespace[name]
        new = self.value(old)
        self.undo.append(lambda: namespace.__setitem__(name, old))
        if new is not old:
            namespace[name] = new

    def attributes(self, owner: object) -> None:
        namespace = getattr(owner, "__dict__", None)
        if not isinstance(namespace, dict) or id(namespace) in self._seen:
            return
        self._seen.add(id(namespace))
        before = dict(namespace)
        for name, old in before.items():
            namespace[name] = self.value(old)

        def put_back() -> None:
            namespace.clear()
            namespace.update(before)

        self.undo.append(put_back)

    def value(self, value: Any) -> Any:
        """What stands in for `value` while tracing: itself, or a fake tensor."""
        if isinstance(value, Tensor):
            return self._replace(value)
        if isinstance(value, nn.Module | Optimizer | type) or id(value) in self._seen:
            return value
        if type(value) is tuple:
            new = tuple(self.value(item) for item in value)
            return new if any(a is not b for a, b in zip(new, value, strict=True)) else value
        if isinstance(value, list | dict | set | deque):
            self._seen.add(id(value))
            self.container(value)
        elif isinstance(value, FunctionType | MethodType | functools.partial):
            if _belongs_to_user(value):
                self.function(value)
        elif hasattr(value, "state_dict") and hasattr(value, "load_state_dict"):
            self._seen.add(id(value))
            self.attributes(value)
        return value

    def container(self, value: list[Any] | dict[Any, Any] | set[Any] | deque[Any]) -> None:
        before = value.copy()

        def put_back() -> None:
            value.clear()
            if isinstance(value, dict | set):
                value.update(before)
            else:
                value.extend(before)

        self.undo.append(put_back)
        replace = self._replace
        if len(value) > _MANY:
            self._replace = self._known
        if isinstance(value, dict):
            for key, item in list(value.items()):
                value[key] = self.value(item)
        elif isinstance(value, list | deque):
            for index, item in enumerate(list(value)):
                value[index] = self.value(item)
        self._replace = replace


def _belongs_to_user(function: Any) -> bool:
    """Library functions hold on to library state; a step's own helpers to its tensors."""
    while isinstance(function, functools.partial):
        function = function.func
    module: str = getattr(function, "__module__", None) or ""
    return module.partition(".")[0] not in _LIBRARIES


_LIBRARIES = frozenset({"torch", "numpy", "builtins", "random", "math", "tensile"})
