"""Memory that outlives a step, as pages of a file: parameters, gradients and optimizer states.

A storage that was placed here is mapped (`MAP_SHARED`): its pages are on the device while they are
resident, and `evict` lets them go without losing a bit. Whoever touches them meanwhile waits for
the page and nothing else, so ordinary code may read, save or copy them at any time.
"""

from __future__ import annotations

import ctypes
import errno
import mmap
import os
import weakref
from collections import deque
from dataclasses import dataclass

import torch

from tensile.extents import Extent, Extents
from tensile.lower_tier import LowerTier, TierError

MADV_POPULATE_READ = 22  # Linux 5.14; Python has no name for them
MADV_POPULATE_WRITE = 23

_libc = ctypes.CDLL(None, use_errno=True)
_libc.madvise.argtypes = (ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int)
_libc.munmap.argtypes = (ctypes.c_void_p, ctypes.c_size_t)
_libc.mmap.restype = ctypes.c_void_p
_libc.mmap.argtypes = (
    *(ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int),
    *(ctypes.c_int, ctypes.c_int, ctypes.c_long),
)
_FAILED = ctypes.c_void_p(-1).value


@dataclass(frozen=True, slots=True)
class _Mapping:
    extent: Extent
    watch: weakref.ref[ctypes.Array[ctypes.c_char]]  # tells when nobody holds the storage any more


class LastingFile:
    """One file; a storage has an extent of it until nobody holds the storage any more.

    All but `fetch` is called by the training thread only. A mapping ends there too, so that an
    address in the books is never somebody else's memory.
    """

    def __init__(self, tier: LowerTier) -> None:
        self.tier = tier
        self._descriptor = -1
        self._extents = Extents()
        self._mapped: dict[int, _Mapping] = {}  # by address
        self._gone: deque[int] = deque()  # addresses; filled wherever a storage dies
        self._closed = False

    def place(self, storage: torch.UntypedStorage) -> torch.UntypedStorage:
        """A mapped storage of the same content, none of it resident. Raises TierError.

        The content goes through the file, so no second copy is ever resident.
        """
        if self._descriptor < 0:
            self._descriptor = self.tier.open()
        self._reap()
        size_bytes = storage.nbytes()
        extent = self._extents.take(size_bytes)
        try:
            # room is taken now: a mapped page without a block would end the process with SIGBUS
            os.posix_fallocate(self._descriptor, extent.offset, extent.bytes)
            _fill(self._descriptor, storage, extent.offset)
            address = _map(self._descriptor, extent)
        except OSError as error:
            self._extents.give(extent)
            raise TierError(
                error.errno,
                f"{size_bytes} bytes could not be placed in the lower tier {self.tier.folder} "
                f"({error.strerror}); nothing on the device was lost",
            ) from error
        area = (ctypes.c_char * size_bytes).from_address(address)
        watch = weakref.ref(area, lambda _: self._died(address))
        self._mapped[address] = _Mapping(extent, watch)
        return torch.frombuffer(area, dtype=torch.uint8).untyped_storage()

    def holds(self, storage: torch.UntypedStorage) -> bool:
        return storage.data_ptr() in self._mapped

    def evict(self, storage: torch.UntypedStorage) -> None:
        """Its pages leave the device now; what was written to them is kept by the file."""
        mapping = self._mapped[storage.data_ptr()]
        _advise(storage.data_ptr(), mapping.extent.bytes, mmap.MADV_DONTNEED)

    def evict_all(self) -> None:
        self._reap()
        for address, mapping in self._mapped.items():
            _advise(address, mapping.extent.bytes, mmap.MADV_DONTNEED)

    @staticmethod
    def fetch(storage: torch.UntypedStorage, *, writes: bool) -> None:
        """Its pages come back now; any thread may ask. Raises OSError without memory."""
        address, size_bytes = storage.data_ptr(), storage.nbytes()
        try:
            _advise(address, size_bytes, MADV_POPULATE_WRITE if writes else MADV_POPULATE_READ)
        except OSError as error:
            if error.errno != errno.EINVAL:
                raise
            _advise(address, size_bytes, mmap.MADV_WILLNEED)  # an older kernel, in its own time

    @property
    def bytes(self) -> int:
        return sum(mapping.extent.bytes for mapping in self._mapped.values())

    def close(self) -> None:
        """Storages that somebody still holds stay valid, and go with their last holder."""
        self._closed = True
        self._reap()
        if self._descriptor >= 0:
            os.close(self._descriptor)
            self._descriptor = -1

    def _died(self, address: int) -> None:
        self._gone.append(address)
        if self._closed:
            self._reap()

    def _reap(self) -> None:
        while self._gone:
            address = self._gone.popleft()
            mapping = self._mapped.pop(address)
            _libc.munmap(address, mapping.extent.bytes)
            self._extents.give(mapping.extent)


def _map(descriptor: int, extent: Extent) -> int:
    address = _libc.mmap(
        None,
        extent.bytes,
        mmap.PROT_READ | mmap.PROT_WRITE,
        mmap.MAP_SHARED,
        descriptor,
        extent.offset,
    )
    if address == _FAILED:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number))
    return int(address)


def _advise(address: int, size_bytes: int, advice: int) -> None:
    if _libc.madvise(address, size_bytes, advice) != 0:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number))


def _fill(descriptor: int, storage: torch.UntypedStorage, offset: int) -> None:
    size_bytes = storage.nbytes()
    piece = memoryview((ctypes.c_char * size_bytes).from_address(storage.data_ptr())).cast("B")
    while piece.nbytes:
        written = os.pwrite(descriptor, piece, offset)
        piece, offset = piece[written:], offset + written
