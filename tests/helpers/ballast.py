"""Memory that is held over a session of a tiny model, so that what other tests free meanwhile does
not look like room.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch

BALLAST_BYTES = 16 * 2**20


@contextmanager
def ballast() -> Iterator[None]:
    held = torch.ones(BALLAST_BYTES, dtype=torch.uint8)
    yield
    del held
