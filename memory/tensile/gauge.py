"""How much the job holds now: resident memory over the bare process, by the system's own count."""

from __future__ import annotations

import ctypes
import gc
import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from mmap import PAGESIZE as PAGE_BYTES
from pathlib import Path

from tensile import resident

_libc = ctypes.CDLL(None)
_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3  # malloc.h
_MAPPING = re.compile(r"[0-9a-f]+-[0-9a-f]+ \S+ \S+ \S+ \d+ *(.*)")
MMAP_BYTES = 512 * 2**10


class Gauge:
    """`base_bytes` is what the process holds beside the job's tensors, pages of its libraries
    included. `folder` is the lower tier: pages of its files are the job's.
    """

    def __init__(self, tensors_bytes: int, folder: Path) -> None:
        self._folder = str(folder.resolve())
        self._file = os.open("/proc/self/statm", os.O_RDONLY | os.O_CLOEXEC)
        trim_freed_memory()  # what was freed before is nobody's
        self.base_bytes = max(0, self._resident_bytes() - tensors_bytes)
        self._library_bytes = self._libraries_bytes()
        self._counted = resident.reset_peak()
        self._seen_bytes = 0

    def held_bytes(self) -> int:
        held = self._resident_bytes() - self.base_bytes
        self._seen_bytes = max(self._seen_bytes, held)
        return held

    def note_libraries(self) -> None:
        """Pages of libraries that work has touched since belong to the bare process. Takes some
        milliseconds.
        """
        now = self._libraries_bytes()
        self.base_bytes += max(0, now - self._library_bytes)
        self._library_bytes = max(now, self._library_bytes)

    @contextmanager
    def aside(self) -> Iterator[None]:
        """What is still held afterwards belongs to the process: books of a planner, not tensors."""
        before = self._resident_bytes()
        try:
            yield
        finally:
            gc.collect()
            trim_freed_memory()
            self.base_bytes += max(0, self._resident_bytes() - before)
            self._library_bytes = self._libraries_bytes()
            self._counted = resident.reset_peak()

    def peak_bytes(self) -> int:
        """The most that was held; seen at the moments asked where the system keeps no peak."""
        self.held_bytes()
        measured = resident.measure() if self._counted else None
        if measured is None:
            return self._seen_bytes
        return max(self._seen_bytes, measured.peak_bytes - self.base_bytes)

    def close(self) -> None:
        if self._file >= 0:
            os.close(self._file)
            self._file = -1

    def _libraries_bytes(self) -> int:
        """Resident pages of files that are not the lower tier's; what was written to is not one."""
        total = 0
        foreign = False
        for line in Path("/proc/self/smaps").read_text().splitlines():
            match = _MAPPING.match(line)
            if match:
                path = match[1]
                foreign = path.startswith("/") and not path.startswith((self._folder, "/dev/"))
            elif foreign and line.startswith("Rss:"):
                total += int(line.split()[1]) * 1024
            elif foreign and line.startswith("Anonymous:"):
                total -= int(line.split()[1]) * 1024
        return total

    def _resident_bytes(self) -> int:
        return int(os.pread(self._file, 128, 0).split(None, 2)[1]) * PAGE_BYTES


def return_freed_memory() -> None:
    """From here on what is freed in large pieces goes back to the system at once.

    By default glibc raises its threshold with every large block that it sees freed, and keeps
    later ones of that size; a budget could never fall again. For the whole process, for good.
    """
    mallopt = getattr(_libc, "mallopt", None)
    if mallopt is not None:  # glibc
        mallopt(_M_MMAP_THRESHOLD, MMAP_BYTES)
        mallopt(_M_TRIM_THRESHOLD, MMAP_BYTES)


def trim_freed_memory() -> None:
    """Give back what small blocks left free in the heap."""
    malloc_trim = getattr(_libc, "malloc_trim", None)
    if malloc_trim is not None:
        malloc_trim(0)
