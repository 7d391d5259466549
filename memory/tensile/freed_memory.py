"""Where memory goes that tensors have freed: back to the system, as far as a budget needs it.

By default glibc raises its threshold with every large block that it sees freed and keeps later ones
of that size, so what a process holds never falls again. Here freed tensors wait in a pool of our
own (`memory_pool.py`) for as long as there is room. Without it, a fixed threshold makes every large
block the system's again at once, which costs time. Both are for the whole process, for good.
"""

from __future__ import annotations

import ctypes
from collections.abc import Callable

from tensile.memory_pool import POOLED_BYTES, USUAL_BYTES, MemoryPool, memory_pool

THRESHOLD_BYTES = 512 * 2**10
_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD, _M_ARENA_MAX = -1, -3, -8  # malloc.h

_libc = ctypes.CDLL(None)
_pool: MemoryPool | None = None
_asked = False


def return_it() -> str | None:
    """From here on freed memory can be given back. Answers with a sentence if that costs time."""
    global _pool, _asked
    if not _asked:
        _asked = True
        mallopt = getattr(_libc, "mallopt", None)
        if mallopt is not None:  # glibc; scratch memory of kernels does not go through the pool
            mallopt(_M_MMAP_THRESHOLD, THRESHOLD_BYTES)
            mallopt(_M_TRIM_THRESHOLD, THRESHOLD_BYTES)
            mallopt(_M_ARENA_MAX, 1)  # else each thread of autograd keeps free blocks of its own
        _pool = memory_pool()
    if _pool is None:
        return (
            "no C++ compiler built the memory pool, so every large tensor gets fresh pages from "
            "the system, which takes time; install g++ or name a compiler with CXX"
        )
    return None


def is_pooled(size_bytes: int) -> bool:
    """Whether a tensor of this size is whole pages of the pool."""
    return _pool is not None and size_bytes >= POOLED_BYTES


def waiting_bytes() -> int:
    """Bytes that are free, but still the process's."""
    return 0 if _pool is None else _pool.waiting_bytes


def let_wait(size_bytes: int | None) -> None:
    """From here on no more than so much waits; None for the usual."""
    if _pool is not None:
        _pool.set_cap(USUAL_BYTES if size_bytes is None else size_bytes)


def is_counted() -> bool:
    """Whether `lent_bytes` knows what tensors take."""
    return _pool is not None


def lent_bytes() -> int:
    """Bytes of the tensors that are whole pages of the pool; 0 without it."""
    return 0 if _pool is None else _pool.lent_bytes


def keep_within(size_bytes: int) -> None:
    """From here on what waits makes room whenever it and what tensors have would exceed so much."""
    if _pool is not None:
        _pool.set_limit(size_bytes)


def on_full(relieve: Callable[[int], bool] | None) -> None:
    """From here on `relieve(bytes)` may make room before an allocation fails, in the middle of an
    operator; without the pool, nobody can.
    """
    if _pool is not None:
        _pool.on_full(relieve)


def give_back() -> None:
    """All that is free now is the system's again, and until `let_wait` nothing waits."""
    let_wait(0)
    trim()


def trim() -> None:
    """Give back what small blocks left free in the heap."""
    malloc_trim = getattr(_libc, "malloc_trim", None)
    if malloc_trim is not None:
        malloc_trim(0)
