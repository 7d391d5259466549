"""How much the job holds now: resident memory over the bare process, by the system's own count."""

from __future__ import annotations

import gc
import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from mmap import PAGESIZE as PAGE_BYTES
from pathlib import Path

from tensile import freed_memory, resident

# Of a mapping of a file: its path, and what is resident and anonymous of it; a field begins with a
# capital, and a mapping with a number.
_MAPPED = re.compile(
    rb"^[0-9a-f]+-[0-9a-f]+ \S+ \S+ \S+ \d+ +(/.*)\n"
    rb"(?:[A-Z].*\n)*?Rss: +(\d+) kB\n(?:[A-Z].*\n)*?Anonymous: +(\d+) kB$",
    re.MULTILINE,
)


class Gauge:
    """`base_bytes` is what the process holds beside the job's tensors, pages of its libraries
    included; `foreign_bytes` of what the pool had lent by then are among it. `folder` is the lower
    tier: pages of its files are the job's.
    """

    def __init__(self, tensors_bytes: int, folder: Path) -> None:
        self._folder = str(folder.resolve())
        self._file = os.open("/proc/self/statm", os.O_RDONLY | os.O_CLOEXEC)
        freed_memory.give_back()  # what was freed before is nobody's
        self.base_bytes = max(
            0, self._resident_bytes() - freed_memory.waiting_bytes() - tensors_bytes
        )
        self.foreign_bytes = max(0, freed_memory.lent_bytes() - tensors_bytes)
        self._library_bytes = self._libraries_bytes()
        self._counted = resident.reset_peak()
        self._seen_bytes = 0
        freed_memory.let_wait(None)

    def held_bytes(self) -> int:
        """What tensors take. What waits freed is not theirs; it is given back when it is in the
        way (`freed_memory`).
        """
        resident_bytes = self._resident_bytes() - self.base_bytes
        self._seen_bytes = max(self._seen_bytes, resident_bytes)
        return resident_bytes - freed_memory.waiting_bytes()

    def note_tensors(self, known_bytes: int) -> None:
        """Tensors of so many bytes are there now. What of them was there before the first look was
        taken for the process's.
        """
        self.base_bytes -= min(self.base_bytes, max(0, known_bytes - self.held_bytes()))

    def note_libraries(self) -> None:
        """Pages of libraries that work has touched since belong to the bare process. Takes some
        milliseconds.
        """
        grown = max(0, self._libraries_bytes() - self._library_bytes)
        self.base_bytes += grown
        self._library_bytes += grown
        self._seen_bytes = max(0, self._seen_bytes - grown)  # it was counted from the old base

    @contextmanager
    def aside(self, *, leaves_cycles: bool = True) -> Iterator[None]:
        """What is still held afterwards belongs to the process: books of a planner, not tensors.
        Looking for cycles takes tenths of a second in a large process.
        """
        self.peak_since()
        before = self._resident_bytes() - freed_memory.waiting_bytes()
        try:
            yield
        finally:
            if leaves_cycles:
                gc.collect()
            freed_memory.give_back()
            after = self._resident_bytes() - freed_memory.waiting_bytes()
            self.base_bytes += max(0, after - before)
            self._library_bytes = self._libraries_bytes()
            self._counted = resident.reset_peak()

    def peak_bytes(self) -> int:
        """The most that was held; seen at the moments asked where the system keeps no peak."""
        self.held_bytes()
        measured = resident.measure() if self._counted else None
        if measured is None:
            return self._seen_bytes
        return max(self._seen_bytes, measured.peak_bytes - self.base_bytes)

    def peak_since(self) -> int:
        """The most that was held since this was asked last, with what waits freed; what is held now
        where the system keeps no peak.
        """
        peak_bytes = self._resident_bytes() - self.base_bytes
        measured = resident.measure() if self._counted else None
        if measured is not None:
            peak_bytes = max(peak_bytes, measured.peak_bytes - self.base_bytes)
            self._counted = resident.reset_peak()
        self._seen_bytes = max(self._seen_bytes, peak_bytes)
        return peak_bytes

    def forget_peak(self) -> None:
        """The most that was held counts from here on."""
        self._seen_bytes = 0
        self._counted = resident.reset_peak()

    def close(self) -> None:
        if self._file >= 0:
            os.close(self._file)
            self._file = -1

    def _libraries_bytes(self) -> int:
        """Resident pages of files that are not the lower tier's; what was written to is not one."""
        ours = (os.fsencode(self._folder), b"/dev/")
        return 1024 * sum(
            int(resident_kib) - int(anonymous_kib)
            for path, resident_kib, anonymous_kib in _MAPPED.findall(
                Path("/proc/self/smaps").read_bytes()
            )
            if not path.startswith(ours)
        )

    def _resident_bytes(self) -> int:
        return int(os.pread(self._file, 128, 0).split(None, 2)[1]) * PAGE_BYTES
