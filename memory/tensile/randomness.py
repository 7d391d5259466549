"""Where generators of random numbers stand, kept and put back: those of Python, NumPy and
torch that everybody shares, and those that a step holds itself.
"""

from __future__ import annotations

import random
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import Any, Self

import numpy as np
import torch
from torch import Tensor


@dataclass(frozen=True, slots=True, kw_only=True)
class Generators:
    """Those of Python, NumPy and torch (with its devices); `held` are others with their states."""

    python: Any
    array: Any
    tensor: Tensor
    devices: tuple[Tensor, ...]
    held: tuple[tuple[Any, Any], ...]

    @classmethod
    def now(cls, held: Iterable[Any] = ()) -> Self:
        return cls(
            python=random.getstate(),
            array=np.random.get_state(),
            tensor=torch.get_rng_state(),
            devices=tuple(torch.cuda.get_rng_state_all()) if _uses_cuda() else (),
            held=tuple(_with_state(generator) for generator in held),
        )

    def put_back(self) -> None:
        random.setstate(self.python)
        np.random.set_state(self.array)
        torch.set_rng_state(self.tensor)
        if self.devices:
            torch.cuda.set_rng_state_all(self.devices)
        for generator, state in self.held:
            _put_back(generator, state)


@contextmanager
def undisturbed(held: Iterable[Any] = ()) -> Iterator[None]:
    """Afterwards all of them go on as if nothing had been drawn."""
    before = Generators.now(held)
    try:
        yield
    finally:
        before.put_back()


def _uses_cuda() -> bool:
    """Asking a device that the process does not use yet would start it."""
    return bool(torch.cuda.is_initialized())  # type: ignore[no-untyped-call]


def _with_state(generator: Any) -> tuple[Any, Any]:
    if isinstance(generator, np.random.Generator):
        generator = generator.bit_generator
    state: Any = None
    if isinstance(generator, np.random.BitGenerator):
        state = generator.state
    elif isinstance(generator, random.Random):
        with suppress(NotImplementedError):  # one that has no state: the system's
            state = generator.getstate()
    else:
        state = generator.get_state()
    return generator, state


def _put_back(generator: Any, state: Any) -> None:
    if isinstance(generator, np.random.BitGenerator):
        generator.state = state
    elif isinstance(generator, random.Random):
        if state is not None:
            generator.setstate(state)
    else:
        generator.set_state(state)
