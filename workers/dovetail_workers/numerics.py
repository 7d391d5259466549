"""Process-wide settings of torch under which equal specs give equal numbers."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch


@contextmanager
def reproducible(threads: int) -> Iterator[None]:
    """Fix the thread count and choose deterministic kernels; afterwards all is as it was.

    Sums depend on how threads split them, so `threads` comes from the spec, never from the machine.
    An operator that has no deterministic kernel on this device warns and runs.
    """
    # cuBLAS reads this once, when the process first uses it.
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    memory: Any = torch.utils.deterministic
    before = (
        torch.get_num_threads(),
        torch.are_deterministic_algorithms_enabled(),
        torch.is_deterministic_algorithms_warn_only_enabled(),
        memory.fill_uninitialized_memory,
        torch.backends.cudnn.benchmark,
    )
    torch.set_num_threads(threads)
    torch.use_deterministic_algorithms(True, warn_only=True)
    # Meant for finding reads of fresh memory; it would write every new tensor twice.
    memory.fill_uninitialized_memory = False
    torch.backends.cudnn.benchmark = False
    try:
        yield
    finally:
        torch.set_num_threads(before[0])
        torch.use_deterministic_algorithms(before[1], warn_only=before[2])
        memory.fill_uninitialized_memory = before[3]
        torch.backends.cudnn.benchmark = before[4]
