"""Every generator of random numbers that a step uses without being handed it, kept and put back."""

from __future__ import annotations

import random
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Self

import numpy as np
import torch
from torch import Tensor


@dataclass(frozen=True, slots=True, kw_only=True)
class Generators:
    """Where the generators of Python, NumPy and torch (with its devices) stand."""

    python: Any
    array: Any
    tensor: Tensor
    devices: tuple[Tensor, ...]

    @classmethod
    def now(cls) -> Self:
        return cls(
            python=random.getstate(),
            array=np.random.get_state(),
            tensor=torch.get_rng_state(),
            devices=tuple(torch.cuda.get_rng_state_all()) if _uses_cuda() else (),
        )

    def put_back(self) -> None:
        random.setstate(self.python)
        np.random.set_state(self.array)
        torch.set_rng_state(self.tensor)
        if self.devices:
            torch.cuda.set_rng_state_all(self.devices)


@contextmanager
def undisturbed() -> Iterator[None]:
    """Afterwards all of them go on as if nothing had been drawn."""
    before = Generators.now()
    try:
        yield
    finally:
        before.put_back()


def _uses_cuda() -> bool:
    """Asking a device that the process does not use yet would start it."""
    return bool(torch.cuda.is_initialized())  # type: ignore[no-untyped-call]
