"""The generators of random numbers that a step holds itself: a variable of its closure, a global
that it names, an attribute of a module or of an object that it uses.
"""

from __future__ import annotations

import functools
import random
import sys
from collections import deque
from collections.abc import Iterable, Iterator
from types import CodeType, FunctionType, MethodType, ModuleType
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.optim import Optimizer

_GENERATORS = (
    *(random.Random, torch.Generator),
    *(np.random.Generator, np.random.RandomState, np.random.BitGenerator),
)
_MANY = 1000  # items of a container that is data
_FAR = 10_000  # things to look at
_OWN = frozenset(nn.Module().__dict__) - {"_modules"}  # a module's own bookkeeping
_LIBRARIES = sys.stdlib_module_names | {"torch", "numpy", "tensile"}


def held_generators(*roots: object) -> tuple[Any, ...]:
    """Each of them once, of `random`, NumPy and torch, as far as `roots` lead to it.

    Looked at are variables, defaults and named globals of a user's functions (and what they name in
    a user's module), lists and dictionaries of up to a thousand items, and attributes of modules
    and of a user's objects. Not what an object's methods name, or a library's object holds.
    """
    found: dict[int, Any] = {}
    seen: set[int] = set()
    waiting = deque(roots)
    while waiting and len(seen) < _FAR:
        value = waiting.popleft()
        if id(value) in seen or value is None or isinstance(value, bool | int | float | str):
            continue
        seen.add(id(value))
        if isinstance(value, _GENERATORS):
            found[id(value)] = value
        else:
            waiting.extend(_parts(value))
    return tuple(found.values())


def _parts(value: Any) -> Iterable[object]:
    if isinstance(value, Tensor | np.ndarray | Optimizer | type | ModuleType):
        return ()
    if isinstance(value, list | tuple | set | frozenset | deque | dict):
        if len(value) > _MANY:
            return ()
        return tuple(value.values()) if isinstance(value, dict) else tuple(value)
    if isinstance(value, functools.partial):
        return (value.func, *value.args, *value.keywords.values())
    if isinstance(value, MethodType):
        return (value.__self__, value.__func__)
    if isinstance(value, FunctionType):
        return tuple(_of_function(value)) if _is_users(value) else ()
    if isinstance(value, nn.Module):
        own = (item for key, item in value.__dict__.items() if key not in _OWN)
        return (*own, type(value).forward)
    return tuple(_of_object(value)) if _is_users(type(value)) else ()


def _of_object(value: object) -> Iterator[object]:
    yield from getattr(value, "__dict__", {}).values()
    for kind in type(value).__mro__:
        slots = kind.__dict__.get("__slots__", ())
        for name in (slots,) if isinstance(slots, str) else slots:
            yield getattr(value, name, None)
    if callable(value):
        yield type(value).__call__


def _of_function(function: FunctionType) -> Iterator[object]:
    for cell in function.__closure__ or ():
        try:
            yield cell.cell_contents
        except ValueError:  # not assigned yet
            continue
    yield from function.__defaults__ or ()
    yield from (function.__kwdefaults__ or {}).values()
    names = set(_named(function.__code__))
    for name in names & function.__globals__.keys():
        value = function.__globals__[name]
        if isinstance(value, ModuleType):
            if _is_foreign(value.__name__):
                continue
            yield from (value.__dict__[n] for n in names & value.__dict__.keys())
        yield value


def _named(code: CodeType) -> Iterator[str]:
    """Globals and attributes, also of the functions inside."""
    yield from code.co_names
    for constant in code.co_consts:
        if isinstance(constant, CodeType):
            yield from _named(constant)


def _is_users(value: Any) -> bool:
    return not _is_foreign(getattr(value, "__module__", None) or "")


def _is_foreign(module: str) -> bool:
    return module != "__main__" and module.partition(".")[0] in _LIBRARIES
