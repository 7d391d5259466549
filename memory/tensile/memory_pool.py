"""The allocator of `pool.cpp`: compiled once, where a compiler is at hand, and installed for the
whole process. Freed tensors wait in it for as long as a budget leaves room.
"""

from __future__ import annotations

import ctypes
import hashlib
import os
import platform
import shutil
import stat
import subprocess
import tempfile
from collections.abc import Callable
from contextlib import suppress
from functools import cache
from pathlib import Path

import torch

from tensile.lower_tier import cache_folder

USUAL_BYTES = 256 * 2**20  # what may wait where no budget says less
POOLED_BYTES = 64 * 2**10  # smaller tensors stay in the heap

_SOURCE = Path(__file__).with_name("pool.cpp")
_COMPILE_S = 120
_NO_LIMIT = ctypes.c_size_t(-1).value

_Relief = ctypes.CFUNCTYPE(ctypes.c_int, ctypes.c_size_t)


class MemoryPool:
    def __init__(self, library: ctypes.CDLL) -> None:
        self._keep = library.tensile_pool_keep
        self._keep.restype = ctypes.c_size_t
        self._waiting = _count(library.tensile_pool_waiting)
        self._lent = _count(library.tensile_pool_lent)
        self._keep.argtypes = (ctypes.c_size_t, ctypes.c_size_t)
        self._on_full = library.tensile_pool_on_full
        self._on_full.argtypes = (_Relief,)
        self._on_full.restype = None
        self._relieve: Callable[[int], bool] | None = None
        self._asked = _Relief(self._ask)  # held for as long as the library may call it
        self._limit_bytes: int | None = None
        library.tensile_pool_install()
        self.set_cap(USUAL_BYTES)

    @property
    def waiting_bytes(self) -> int:
        """Bytes that are free, but still the process's."""
        return self._waiting.value

    @property
    def lent_bytes(self) -> int:
        """Whole pages that tensors have now."""
        return self._lent.value

    def set_cap(self, size_bytes: int) -> int:
        """From here on no more than `size_bytes` wait; answers how many do."""
        self._limit_bytes = None
        return int(self._keep(max(0, size_bytes), _NO_LIMIT))

    def set_limit(self, size_bytes: int) -> int:
        """From here on what waits and what is lent stay within `size_bytes` together, as far as
        what waits can do for it; answers how many bytes wait.
        """
        if size_bytes == self._limit_bytes:  # each moment asks, and seldom for another one
            return self.waiting_bytes
        self._limit_bytes = size_bytes
        return int(self._keep(_NO_LIMIT, max(0, size_bytes)))

    def on_full(self, relieve: Callable[[int], bool] | None) -> None:
        """From here on `relieve(bytes)` is called in whatever thread allocates, possibly in the
        middle of an operator, before that fails; it tries once more if the answer is True.
        """
        self._relieve = relieve
        self._on_full(_Relief() if relieve is None else self._asked)

    def _ask(self, size_bytes: int) -> int:
        relieve = self._relieve
        try:
            return 0 if relieve is None else int(relieve(size_bytes))
        except Exception:  # nothing may pass through the operator; its own error says enough
            return 0


def _count(where: Callable[[], int]) -> ctypes.c_size_t:
    """A count of the pool's, read where it is: a call would give other threads their turn."""
    where.restype = ctypes.c_void_p  # type: ignore[attr-defined]
    return ctypes.c_size_t.from_address(where())


@cache
def memory_pool() -> MemoryPool | None:
    """The pool, installed by the first call; None where it cannot be built."""
    try:
        return MemoryPool(_library())
    except (OSError, subprocess.SubprocessError):
        return None


def _library() -> ctypes.CDLL:
    """The compiled pool. Raises OSError or SubprocessError where there is none to be had."""
    key = f"{torch.__version__} {platform.machine()} {_SOURCE.read_text()}"
    name = f"pool-{hashlib.sha256(key.encode()).hexdigest()[:16]}.so"
    folder = cache_folder()
    with suppress(OSError):
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    if _is_ours(folder):
        if not (folder / name).exists():
            _compile(folder / name)
        return ctypes.CDLL(str(folder / name))
    with tempfile.TemporaryDirectory(prefix="tensile-") as private:
        _compile(Path(private) / name)
        return ctypes.CDLL(str(Path(private) / name))


def _is_ours(folder: Path) -> bool:
    """Whether nobody else can have put a library there."""
    if not os.access(folder, os.W_OK):
        return False
    status = folder.stat()
    return status.st_uid == os.getuid() and not status.st_mode & (stat.S_IWGRP | stat.S_IWOTH)


def _compile(target: Path) -> None:
    compiler = os.environ.get("CXX") or shutil.which("g++") or shutil.which("c++")
    if compiler is None:
        raise FileNotFoundError("no C++ compiler")
    torch_folder = Path(torch.__file__).parent
    libraries = torch_folder / "lib"
    partial = target.with_suffix(f".{os.getpid()}")
    subprocess.run(
        [
            *(compiler, "-O2", "-std=c++20", "-shared", "-fPIC", "-DNDEBUG"),
            f"-D_GLIBCXX_USE_CXX11_ABI={int(torch.compiled_with_cxx11_abi())}",
            *("-I", str(torch_folder / "include"), str(_SOURCE), "-o", str(partial)),
            *(f"-L{libraries}", "-lc10", f"-Wl,-rpath,{libraries}"),
        ],
        check=True,
        capture_output=True,
        timeout=_COMPILE_S,
    )
    partial.replace(target)
