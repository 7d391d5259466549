"""Fake tensors in the places of a model's, an optimizer's and a step's real ones, and back."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode
from torch.optim import Optimizer
from torch.utils._pytree import tree_map_only

from tensile import captured
from tensile.names import Models, Optimizers, modules, optimizers, parameters
from tensile.recorder import TraceError

_OWN = frozenset(nn.Module().__dict__)  # a module's own bookkeeping


class Fakes:
    """One fake for each real tensor, so that what was tied stays tied."""

    def __init__(self, mode: FakeTensorMode) -> None:
        self._mode = mode
        self._fakes: dict[int, Tensor] = {}
        self._real: list[Tensor] = []  # held, so that no other tensor takes its id
        self.brought: list[Tensor] = []  # those of tensors that the step brings along

    def of(self, tensor: Tensor) -> Tensor:
        fake = self._fakes.get(id(tensor))
        if fake is None and not isinstance(tensor, FakeTensor):
            # a result of the surrounding program would carry its graph along
            plain = tensor if tensor.is_leaf else tensor.detach()
            fake = self._fake(plain)
            fake.grad = None
            self._real += [tensor, plain]
            self._fakes[id(tensor)] = fake
            self._fakes[id(fake)] = fake
        return tensor if fake is None else fake

    def _fake(self, tensor: Tensor) -> Tensor:
        try:
            return self._mode.from_tensor(tensor, static_shapes=True)
        except (NotImplementedError, RuntimeError, TypeError) as error:
            raise TraceError(
                f"a tensor of {type(tensor).__qualname__} ({tensor.layout}, {tensor.dtype}) has no "
                f"fake counterpart: {error}"
            ) from error

    def known(self, tensor: Tensor) -> Tensor:
        """The fake of a tensor that has one already, otherwise the tensor itself."""
        return self._fakes.get(id(tensor), tensor)

    def of_brought(self, tensor: Tensor) -> Tensor:
        """The fake of a tensor that the step brings along, and may not use: one that has no fake
        counterpart is left as it is.
        """
        fake = self._fakes.get(id(tensor))
        if fake is None:
            try:
                fake = self.of(tensor)
            except TraceError:
                return tensor
            self.brought.append(fake)
        return fake


@contextmanager
def exchanged(
    fakes: Fakes, model: Models, optimizer: Optimizers, step: Callable[..., object]
) -> Iterator[None]:
    """While inside, model, optimizer and closure hold fakes; afterwards what they held before, bit
    for bit: tensors, gradients, flags, attributes, groups, states.
    """
    undo: list[captured.Undo] = []
    try:
        for parameter in parameters(model, optimizer).values():
            undo.append(_keep_gradient(parameter))
            fakes.of(parameter)
        for module in modules(model).values():
            undo.append(_exchange_module(module, fakes))
        for each in optimizers(optimizer):
            undo.append(_exchange_optimizer(each, fakes))
        undo += captured.exchange(step, fakes.of_brought, fakes.known)
        yield
    finally:
        for put_back in reversed(undo):
            put_back()


def _keep_gradient(parameter: nn.Parameter) -> captured.Undo:
    gradient = parameter.grad

    def put_back() -> None:
        parameter.grad = gradient

    return put_back


def _exchange_module(module: nn.Module, fakes: Fakes) -> captured.Undo:
    own = module.__dict__
    before = dict(own)
    tables: list[dict[str, Any]] = [module._parameters, module._buffers]
    entries = [(table, dict(table)) for table in tables]

    def put_back() -> None:
        own.clear()
        own.update(before)
        for table, content in entries:
            table.clear()
            table.update(content)

    for table, content in entries:
        for key, tensor in content.items():
            table[key] = None if tensor is None else fakes.of(tensor)
    for key, value in before.items():
        if key not in _OWN:
            own[key] = _faked(value, fakes)
    return put_back


def _exchange_optimizer(optimizer: Optimizer, fakes: Fakes) -> captured.Undo:
    before = dict(optimizer.__dict__)
    groups = list(optimizer.param_groups)
    contents = [dict(group) for group in groups]

    def put_back() -> None:
        optimizer.__dict__.clear()
        optimizer.__dict__.update(before)
        optimizer.param_groups[:] = groups
        for group, content in zip(groups, contents, strict=True):
            group.clear()
            group.update(content)

    for group in groups:
        for key, value in group.items():
            group[key] = _faked(value, fakes)
    for key, value in before.items():  # LBFGS keeps a list of its parameters beside the groups
        if key != "param_groups" and isinstance(value, list | tuple | Tensor):
            optimizer.__dict__[key] = _faked(value, fakes)
    optimizer.state = defaultdict(
        dict, {fakes.of(p): _faked(state, fakes) for p, state in optimizer.state.items()}
    )
    return put_back


def _faked(value: Any, fakes: Fakes) -> Any:
    """The value with fakes in it; containers are new ones, so a step does not change the old."""
    if isinstance(value, Tensor | list | dict | tuple):
        return tree_map_only(torch.Tensor, fakes.of, value)
    return value
