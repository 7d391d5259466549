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
from _thread import allocate_lock
from collections.abc import Callable
from mmap import PAGESIZE as PAGE_BYTES
from queue import SimpleQueue

import torch

from tensile import freed_memory
from tensile.copy_pace import CopyPace
from tensile.extents import Extent, Extents, page_rounded
from tensile.lower_tier import LowerTier, TierError

BOUNCE_BYTES = 128 * 2**10  # of each thread; the process has them beside the tensors
_WRITE_BYTES = 8 * 2**20  # at once, where the memory can be written as it is

_libc = ctypes.CDLL(None)  # unlike ctypes.memmove, a call of a library lets other threads run
_libc.memcpy.argtypes = (ctypes.c_void_p, ctypes.c_void_p, ctypes.c_size_t)
_libc.memcpy.restype = ctypes.c_void_p


class Transfer:
    """One copy between memory and file. `has_place`: the memory for a read was taken from the pool.
    After a failed write, or one that was recalled in time, its memory is as it was.
    """

    __slots__ = (
        "_busy",
        "_changing",
        "_recalled",
        "bytes",
        "emptied",
        "ended",
        "error",
        "has_place",
    )

    def __init__(self, size_bytes: int) -> None:
        self.bytes = size_bytes
        self.error: OSError | None = None
        self.has_place = False
        self.emptied = False  # the memory of a write is free
        self.ended = False
        self._recalled = False
        self._changing = allocate_lock()
        self._busy = allocate_lock()  # until the end; an event would take twice as long to make
        self._busy.acquire()

    def end(self) -> None:
        self.ended = True
        self._busy.release()

    def wait(self) -> None:
        """Until it has ended, well or not."""
        if not self.ended:
            with self._busy:
                pass

    def empty(self, storage: torch.UntypedStorage) -> None:
        """What was written leaves memory now, unless somebody wants it back already."""
        with self._changing:
            if not self._recalled:
                storage.resize_(0)
                self.emptied = True

    def recall(self) -> bool:
        """Let what is being written stay in memory too; False where it has left."""
        with self._changing:
            self._recalled = not self.emptied
        return self._recalled

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
        self._bounce: mmap.mmap | None = None  # of who reads at once
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
        """Begin to copy `storage` out. Its memory is free at the end; it is held until then, and by
        nobody here afterwards.
        """
        self._open()
        transfer = Transfer(storage.nbytes())
        waiting = [storage]
        del storage
        self._writer.submit(lambda bounce: self._write(transfer, waiting, extent, bounce))
        return transfer

    def read(self, storage: torch.UntypedStorage, extent: Extent, size_bytes: int) -> Transfer:
        """Begin to copy back into `storage`, which has no memory until then."""
        transfer = Transfer(size_bytes)
        self._reader.submit(lambda bounce: self._read(transfer, storage, extent, bounce))
        return transfer

    def read_now(self, storage: torch.UntypedStorage, extent: Extent, size_bytes: int) -> None:
        """The same in the calling thread, ahead of all that wait. Raises TierError."""
        transfer = Transfer(size_bytes)
        if self._bounce is None:
            self._bounce = _bounce()
        self._read(transfer, storage, extent, self._bounce)
        transfer.check()

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
            transfer.empty(waiting[0])
        except OSError as error:
            transfer.error = error
        finally:
            waiting.clear()  # before the end is told: whoever waits for it may ask who holds it
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

    def _read(
        self,
        transfer: Transfer,
        storage: torch.UntypedStorage,
        extent: Extent,
        bounce: mmap.mmap,
    ) -> None:
        try:
            self._in.take(transfer.bytes)  # while it takes no memory yet
            _fill(storage, transfer.bytes)
            transfer.has_place = freed_memory.is_pooled(transfer.bytes)
            address = storage.data_ptr()
            if transfer.has_place:  # whole pages, to the end of the last one
                self._get(_view(address, page_rounded(transfer.bytes)), extent.offset)
            else:
                for start in range(0, transfer.bytes, BOUNCE_BYTES):
                    count = min(BOUNCE_BYTES, transfer.bytes - start)
                    self._get(memoryview(bounce)[: page_rounded(count)], extent.offset + start)
                    _libc.memcpy(address + start, _address(bounce), count)
        except OSError as error:
            transfer.error = error
            storage.resize_(0)
        finally:
            del storage
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
            thread = threading.Thread(
                target=self._run, args=(_bounce(),), name=self._name, daemon=True
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


def _fill(storage: torch.UntypedStorage, size_bytes: int) -> None:
    """Give it memory. Raises OSError where there is none."""
    try:
        storage.resize_(size_bytes)
    except RuntimeError as error:
        raise OSError(errno.ENOMEM, os.strerror(errno.ENOMEM)) from error


def _bounce() -> mmap.mmap:
    return mmap.mmap(-1, BOUNCE_BYTES, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)


def _view(address: int, size_bytes: int) -> memoryview:
    return memoryview((ctypes.c_char * size_bytes).from_address(address)).cast("B")


def _address(area: mmap.mmap) -> int:
    return ctypes.addressof(ctypes.c_char.from_buffer(area))
