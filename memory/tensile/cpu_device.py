"""The CPU as a device: what resident memory is, and the files below it. What is special to it is
made here; a second device would offer the same.
"""

from __future__ import annotations

import os
from collections.abc import Mapping

from torch import Tensor

from tensile import freed_memory
from tensile.gauge import Gauge
from tensile.lasting_file import LastingFile
from tensile.lower_tier import LowerTier
from tensile.scheduling_class import Yielding
from tensile.swap_file import SwapFile


class CpuDevice:
    """Raises TierError for a folder that cannot be used."""

    kind = "cpu"

    def __init__(self, folder: str | os.PathLike[str] | None = None) -> None:
        self.tier = LowerTier(folder)
        self.swap_file = SwapFile(self.tier)
        self.lasting_file = LastingFile(self.tier)
        self._yielding = Yielding()

    def gauge(self, tensors_bytes: int) -> Gauge:
        """Counts what the job holds, now that its tensors take so much."""
        return Gauge(tensors_bytes, self.tier.folder)

    def foreign(self, tensors: Mapping[str, Tensor]) -> tuple[str, Tensor] | None:
        """The first that is on another device, by its name."""
        return next((item for item in tensors.items() if item[1].device.type != self.kind), None)

    @staticmethod
    def return_freed() -> str | None:
        """From here on freed memory can be given back; a sentence if that costs time."""
        return freed_memory.return_it()

    @staticmethod
    def let_wait(size_bytes: int | None) -> None:
        """So much freed memory may wait for its next use; None for the usual."""
        freed_memory.let_wait(size_bytes)

    def give_way(self, yields: bool) -> str | None:
        """Whether this process computes only where nobody else wants to; a sentence if it cannot be
        told to.
        """
        return self._yielding.be(yields)

    def close(self) -> None:
        """Freed memory waits as usual again; the files are gone."""
        self._yielding.be(False)
        freed_memory.let_wait(None)
        self.lasting_file.close()
        self.swap_file.close()
