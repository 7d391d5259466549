"""Every generator of random numbers that a step uses without being handed it, kept and put back."""

from __future__ import annotations

import random
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import torch


@contextmanager
def undisturbed() -> Iterator[None]:
    """Afterwards Python, NumPy and torch (with its devices) go on as if nothing had been drawn."""
    python, array = random.getstate(), np.random.get_state()
    tensor = torch.get_rng_state()
    devices = torch.cuda.get_rng_state_all() if _uses_cuda() else []
    try:
        yield
    finally:
        random.setstate(python)
        np.random.set_state(array)
        torch.set_rng_state(tensor)
        if devices:
            torch.cuda.set_rng_state_all(devices)


def _uses_cuda() -> bool:
    """Asking a device that the process does not use yet would start it."""
    return bool(torch.cuda.is_initialized())  # type: ignore[no-untyped-call]
