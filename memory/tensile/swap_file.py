"""A file that activations are written to and read back from, by one writer and one reader thread.

Both directions run at once, each in the order of its requests (two FIFO channels, as the planner
assumes). Transfers go round the page cache where possible (`O_DIRECT`): otherwise the system would
hold a second copy of what was just pushed out. `O_DIRECT` wants page-aligned memory, so a transfer
from anywhere else passes through one small buffer of the thread.
"""

from __future__ import annotations

import ctypes
import errno
import fcntl
import mmap
import os
import threading
from collections.abc import Callable
from mmap import PAGESIZE as PAGE_BYTES
from queue import SimpleQueue

import torch

from tensile import freed_memory
from tensile.copy_pace import CopyPace
from tensile.extents import Extent, Extents, page_rounded
from tensile.lower_tier import LowerTier, TierError

BOUNCE_BYTES = 128 * 2**10  # of each thread; the process has them beside the tensors
_WRITE_BYTES = 2**20  # at once, where the memory can be written as it is

_libc = ctypes.CDLL(None)  # unlike ctypes.memmove, a call of a library lets other threads run
_libc.memcpy.argtypes = (ctypes.c_void_p, ctypes.c_void_p, ctypes.c_size_t)
_libc.memcpy.restype = ctypes.c_void_p


class Transfer:
    """One copy between memory and file. `storage` is what a read brought; after a failed write it
    is what could not be written. `has_place`: the memory for a read was taken from the pool.
    """

    __slots__ = ("_ended", "bytes", "error", "has_place", "storage")

    def __init__(self, size_bytes: int) -> None:
        self.bytes = size_bytes
        self.storage: torch.UntypedStorage | None = None
        self.error: OSError | None = None
        self.has_place = False
        self._ended = threading.Event()

    @property
    def ended(self) -> bool:
        return self._ended.is_set()

    def end(self) -> None:
        self._ended.set()

    def wait(self) -> None:
        """Until it has ended, well or not."""
        self._ended.wait()

    def check(self) -> None:
        """Raises TierError if it failed."""
        if self.error is not None:
            raise TierError(
                self.error.errno,
                f"{self.bytes} bytes could not be moved to or from the lower tier "
                f"({self.error.strerror}); nothing on the device was lost",
            ) from self.error


class SwapFile:
    """Extents are taken and given by the training thread only; the file is made at first use."""

    def __init__(self, tier: LowerTier) -> None:
        self.tier = tier
        self.extents = Extents()
        self._descriptor = -1
        self._writer = Channel("tensile writer")
        self._reader = Channel("tensile reader")
        self._out, self._in = CopyPace(), CopyPace()

    def get_ready(self) -> None:
        """Have what a write needs before memory is short."""
        self._open()
        self._writer.start()

    def limit(self, out_bytes_per_s: float | None, in_bytes_per_s: float | None) -> None:
        """How fast copies go from here on, those of `ask` and `wait_for_turn` too; None for as fast
        as they can.
        """
        self._out.limit(out_bytes_per_s)
        self._in.limit(in_bytes_per_s)

    def wait_for_turn(self, size_bytes: int) -> None:
        """Before the calling thread brings back something that is in no file of this one."""
        self._in.take(size_bytes)

    def in_child(self) -> None:
        """A forked child copies as fast as it can."""
        self._out.in_child()
        self._in.in_child()

    def write(self, storage: torch.UntypedStorage, extent: Extent) -> Transfer:
        """Begin to copy `storage` out. It is held until then, and by nobody here afterwards."""
        self._open()
        transfer = Transfer(storage.nbytes())
        waiting = [storage]
        del storage
        self._writer.submit(lambda bounce: self._write(transfer, waiting, extent, bounce))
        return transfer

    def read(self, extent: Extent, size_bytes: int) -> Transfer:
        """Begin to copy back; the transfer's `storage` is fresh, page-aligned memory."""
        transfer = Transfer(size_bytes)
        self._reader.submit(lambda bounce: self._read(transfer, extent))
        return transfer

    def read_now(self, extent: Extent, size_bytes: int) -> torch.UntypedStorage:
        """The same in the calling thread, ahead of all that wait. Raises TierError."""
        transfer = Transfer(size_bytes)
        self._read(transfer, extent)
        transfer.check()
        assert transfer.storage is not None
        return transfer.storage

    def ask(self, work: Callable[[], None], size_bytes: int) -> Transfer:
        """Let the reader thread bring something else back, in its turn."""
        transfer = Transfer(size_bytes)

        def run(bounce: mmap.mmap) -> None:
            try:
                self._in.take(size_bytes)
                work()
            except OSError as error:
                transfer.error = error
            finally:
                transfer.end()

        self._reader.submit(run)
        return transfer

    def close(self) -> None:
        """Let both threads finish, and give the file's room back."""
        self.limit(None, None)
        self._writer.close()
        self._reader.close()
        if self._descriptor >= 0:
            os.close(self._descriptor)
            self._descriptor = -1

    def _open(self) -> None:
        if self._descriptor < 0:
            self._descriptor = self.tier.open(direct=True)

    def _write(
        self,
        transfer: Transfer,
        waiting: list[torch.UntypedStorage],
        extent: Extent,
        bounce: mmap.mmap,
    ) -> None:
        try:
            address = waiting[0].data_ptr()
            whole_pages = address % PAGE_BYTES == 0
            direct_bytes = transfer.bytes // PAGE_BYTES * PAGE_BYTES if whole_pages else 0
            for start in range(0, direct_bytes, _WRITE_BYTES):
                count = min(_WRITE_BYTES, direct_bytes - start)
                self._put(_view(address + start, count), extent.offset + start)
            for start in range(direct_bytes, transfer.bytes, BOUNCE_BYTES):
                count = min(BOUNCE_BYTES, transfer.bytes - start)
                _libc.memcpy(_address(bounce), address + start, count)
                self._put(memoryview(bounce)[: page_rounded(count)], extent.offset + start)
        except OSError as error:
            transfer.error, transfer.storage = error, waiting[0]
        finally:
            waiting.clear()  # before the end is told: whoever waits for it waits for the memory
            transfer.end()

    def _put(self, piece: memoryview, offset: int) -> None:
        self._out.take(piece.nbytes)
        while piece.nbytes:
            try:
                written = os.pwrite(self._descriptor, piece, offset)
            except OSError as error:
                if error.errno != errno.EINVAL or not self._leave_direct():
                    raise
                continue
            piece, offset = piece[written:], offset + written
            if piece.nbytes and written % PAGE_BYTES:
                self._leave_direct()

    def _read(self, transfer: Transfer, extent: Extent) -> None:
        try:
            self._in.take(transfer.bytes)  # while it takes no memory yet
            storage, pages = _fresh(transfer.bytes)
            transfer.has_place = freed_memory.is_pooled(transfer.bytes)
            self._get(pages, extent.offset)
            transfer.storage = storage
        except OSError as error:
            transfer.error = error
        finally:
            transfer.end()

    def _get(self, target: memoryview, offset: int) -> None:
        while target.nbytes:
            try:
                count = os.preadv(self._descriptor, [target], offset)
            except OSError as error:
                if error.errno != errno.EINVAL or not self._leave_direct():
                    raise
                continue
            if count == 0:
                raise OSError(errno.EIO, "the file of the lower tier is shorter than it was")
            target, offset = target[count:], offset + count

    def _leave_direct(self) -> bool:
        """Some file systems accept O_DIRECT and then refuse it; from here on without."""
        flags = fcntl.fcntl(self._descriptor, fcntl.F_GETFL)
        fcntl.fcntl(self._descriptor, fcntl.F_SETFL, flags & ~os.O_DIRECT)
        return bool(flags & os.O_DIRECT)


class Channel:
    """A thread that does one thing after the other; it starts with the first of them."""

    def __init__(self, name: str) -> None:
        self._name = name
        self._queue: SimpleQueue[Callable[[mmap.mmap], None] | None] = SimpleQueue()
        self._thread: threading.Thread | None = None

    def start(self) -> None:
        """Raises RuntimeError where the system has no room for a thread."""
        if self._thread is None:
            bounce = mmap.mmap(-1, BOUNCE_BYTES, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
            thread = threading.Thread(
                target=self._run, args=(bounce,), name=self._name, daemon=True
            )
            thread.start()
            self._thread = thread

    def submit(self, work: Callable[[mmap.mmap], None]) -> None:
        self.start()
        self._queue.put(work)

    def close(self) -> None:
        if self._thread is not None:
            self._queue.put(None)
            self._thread.join()
            self._thread = None

    def _run(self, bounce: mmap.mmap) -> None:
        while (work := self._queue.get()) is not None:
            work(bounce)
            del work  # it holds what was moved


def _fresh(size_bytes: int) -> tuple[torch.UntypedStorage, memoryview]:
    """A new storage, and the whole pages that it lies in. Raises OSError without memory."""
    if freed_memory.is_pooled(size_bytes):
        try:
            content = torch.empty(size_bytes, dtype=torch.uint8)
        except RuntimeError as error:
            raise OSError(errno.ENOMEM, os.strerror(errno.ENOMEM)) from error
        return content.untyped_storage(), _view(content.data_ptr(), page_rounded(size_bytes))
    area = mmap.mmap(-1, page_rounded(size_bytes), flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    content = torch.frombuffer(area, dtype=torch.uint8, count=size_bytes)
    return content.untyped_storage(), memoryview(area)


def _view(address: int, size_bytes: int) -> memoryview:
    return memoryview((ctypes.c_char * size_bytes).from_address(address)).cast("B")


def _address(area: mmap.mmap) -> int:
    return ctypes.addressof(ctypes.c_char.from_buffer(area))
