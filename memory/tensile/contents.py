"""What autograd keeps for the backward pass, and where each piece of it is: on the device, on the
way, or below.

A *content* is one storage that autograd saved, however often and through whatever views. It leaves
only while nobody else holds it, so nobody can change it meanwhile: what comes back is what was
saved, bit for bit. What leaves is the memory: the storage and the tensors over it stay, empty, so
that nothing has to be made anew when it returns.
"""

from __future__ import annotations

import errno
import sys
import time
from collections import deque
from collections.abc import Callable, Iterator

import torch
from torch import Tensor

from tensile.extents import Extent
from tensile.lower_tier import TierError
from tensile.stats import Counters
from tensile.swap_file import SwapFile, Transfer
from tensile.weak_storage import is_held_once, references_of_tensors


class Content:
    """`storage` is None once nobody needs it any more. `number` is the first slot's."""

    __slots__ = (
        *("again", "bytes", "extent", "incoming", "is_here", "movable", "number", "outgoing"),
        *("slots", "storage"),
    )

    def __init__(self, storage: torch.UntypedStorage, number: int, *, movable: bool) -> None:
        self.storage: torch.UntypedStorage | None = storage
        self.number = number
        self.bytes = storage.nbytes()
        self.movable = movable
        self.is_here = True  # its memory is, and does not leave
        self.slots: dict[int, Slot] = {}  # by version
        self.extent: Extent | None = None  # where its copy is or is being made
        self.outgoing: Transfer | None = None
        self.incoming: Transfer | None = None
        self.again: Callable[[], torch.UntypedStorage] | None = None  # computes it once more

    def is_away(self) -> bool:
        """Neither on the device nor on its way there."""
        return not self.is_here and self.incoming is None

    def is_alone(self) -> bool:
        """Nobody but autograd holds it: no tensor but the saved ones, and no Python name of the
        storage. One that cannot be empty (an array's, a file's) never is.
        """
        storage = self.storage
        tensors = sum(len(slot.saved) for slot in self.slots.values())
        if storage is None or not is_held_once(storage, tensors):
            return False
        # the attribute, the local name and the argument
        names = sys.getrefcount(storage) - (references_of_tensors() if tensors else 0)
        return names == 3 and storage.resizable()

    def move(self, storage: torch.UntypedStorage) -> None:
        """From here on it is that one, of the same bits."""
        for slot in self.slots.values():
            for tensor in slot.saved:
                layout = tensor.storage_offset(), tensor.size(), tensor.stride()
                moved = torch.empty(0, dtype=tensor.dtype).set_(storage, *layout)
                moved = moved.conj() if tensor.is_conj() else moved
                tensor.data = torch._neg_view(moved) if tensor.is_neg() else moved
        self.storage = storage


class Slot:
    """A storage in one version: what the trace calls a slot. `handles` is how many hold it; one
    that dies says so in `dead`. `saved` are the tensors over it, `shown_bytes` the first one's.
    """

    __slots__ = ("content", "dead", "handles", "number", "saved", "shown_bytes", "version")

    def __init__(
        self,
        number: int,
        content: Content,
        version: int,
        dead: deque[Slot],
        shown_bytes: int | None = None,
    ) -> None:
        self.dead = dead
        self.shown_bytes = content.bytes if shown_bytes is None else shown_bytes
        self.number = number
        self.content = content
        self.version = version
        self.handles = 0
        self.saved: list[Tensor] = []


class Contents:
    """All contents of the running graphs. Only the training thread calls this."""

    def __init__(self, file: SwapFile, counters: Counters) -> None:
        self._file = file
        self._counters = counters
        self._outgoing: deque[Content] = deque()
        self._incoming: deque[Content] = deque()
        self._retired: list[Content] = []
        self._movable: dict[Content, None] = {}  # on the device, the longest there first
        self._away: dict[Content, None] = {}

    def get_ready(self) -> None:
        """Have what leaving needs before memory is short."""
        self._file.get_ready()

    def add(self, content: Content) -> None:
        if content.movable:
            self._movable[content] = None

    def leave(self, content: Content) -> bool:
        """Begin to bring it below; False while somebody else holds it. Raises TierError."""
        if not content.is_here:
            return True
        if not content.movable or not content.is_alone():
            return False
        assert content.storage is not None
        self._check_written(content)  # it may have been recalled
        if content.extent is None:
            extent = self._file.extents.take(content.bytes)
            content.outgoing = self._file.write(content.storage, extent)
            content.extent = extent
            self._outgoing.append(content)
            self._counters.swapped_out_bytes += content.bytes
        else:
            content.storage.resize_(0)
        self._gone(content)
        return True

    def forget(self, content: Content, again: Callable[[], torch.UntypedStorage]) -> bool:
        """Let it go without a copy, since `again` computes it; False while somebody holds it.
        Raises TierError.
        """
        if not content.is_here or not content.movable or not content.is_alone():
            return False
        assert content.storage is not None
        self._check_written(content)
        content.again = again
        content.storage.resize_(0)
        self._gone(content)
        return True

    def ask(self, content: Content) -> None:
        """Begin to bring it back. What is computed again waits for its need."""
        if not content.is_away() or self._recalled(content):
            return
        if content.extent is not None and content.storage is not None:
            content.incoming = self._file.read(content.storage, content.extent, content.bytes)
            self._incoming.append(content)
            self._counters.swapped_in_bytes += content.bytes
            self._counters.fetches += 1

    def present(self, content: Content, retry: Callable[[int], None]) -> None:
        """It is on the device, now. Waits for what is on the way, and fetches what is not.

        `retry(bytes)` makes room after a failed allocation, before the only second attempt.
        """
        if content.is_here or (content.incoming is None and self._recalled(content)):
            return
        begin_s = time.perf_counter()
        try:
            self._bring(content)
        except (TierError, MemoryError, RuntimeError) as error:
            if not is_out_of_memory(error):
                raise
            retry(content.bytes)
            self._bring(content)
        self._counters.stall_s += time.perf_counter() - begin_s
        self._arrived(content)

    def retire(self, content: Content) -> None:
        """Nobody needs it any more."""
        content.storage = None
        content.again = None
        self._movable.pop(content, None)
        self._away.pop(content, None)
        self._retired.append(content)

    def settle(self) -> None:
        """Take note of what the threads have ended. Raises TierError for a failed write."""
        while self._outgoing and _has_ended(self._outgoing[0].outgoing):
            self._check_written(self._outgoing.popleft())
        while self._incoming and _has_ended(self._incoming[0].incoming):
            self._incoming.popleft()
        if self._retired:
            self._retired = [content for content in self._retired if not self._released(content)]

    def wait_for_oldest(self) -> bool:
        """Until the first of the writes has ended and its memory is free; False without any."""
        if not self._outgoing:
            return False
        content = self._outgoing.popleft()
        if content.outgoing is not None:
            begin_s = time.perf_counter()
            content.outgoing.wait()
            self._counters.stall_s += time.perf_counter() - begin_s
            self._check_written(content)
        return True

    def candidates(self) -> Iterator[Content]:
        """What could leave, what was saved first in front: it is needed last."""
        return iter(tuple(self._movable))

    def away_before(self, number: int) -> Iterator[Content]:
        """What is below and will be asked for next, if the backward pass now is at `number`."""
        earlier = [content for content in self._away if content.number < number]
        return iter(sorted(earlier, key=lambda content: content.number, reverse=True))

    def in_child(self) -> None:
        """In a forked child nothing leaves any more: the file is the parent's, and its threads are
        too. What is below is read by whoever needs it.
        """
        for content in (*self._movable, *self._away):
            if content.outgoing is not None and not content.outgoing.emptied:
                content.is_here = True
            content.movable = False
            content.incoming = None  # it may have some of its bits, and is read from its first one
            content.outgoing = None
        self._movable.clear()
        self._outgoing.clear()
        self._incoming.clear()
        self._retired.clear()

    @property
    def here_bytes(self) -> int:
        """Bytes of what could leave and has not, or not yet to the end."""
        return sum(content.bytes for content in self._movable) + self.outgoing_bytes

    @property
    def outgoing_bytes(self) -> int:
        return sum(content.bytes for content in self._outgoing)

    @property
    def incoming_bytes(self) -> int:
        """Bytes that are on the way and have no place yet."""
        if not self._incoming:
            return 0
        reads = ((content, content.incoming) for content in self._incoming)
        return sum(c.bytes for c, read in reads if read and not (read.has_place or read.ended))

    def _gone(self, content: Content) -> None:
        content.is_here = False
        content.incoming = None
        self._movable.pop(content, None)
        self._away[content] = None

    def _arrived(self, content: Content) -> None:
        content.is_here = True
        content.incoming = None
        self._away.pop(content, None)
        self._movable[content] = None

    def _recalled(self, content: Content) -> bool:
        """Whether it could stay, since it was not written to the end yet."""
        if content.outgoing is None or not content.outgoing.recall():
            return False
        self._arrived(content)
        return True

    def _bring(self, content: Content) -> None:
        if content.incoming is not None:
            transfer, content.incoming = content.incoming, None
            transfer.wait()
            transfer.check()
            return
        if content.again is not None:
            content.move(content.again())
            self._counters.recomputed_bytes += content.bytes
            content.again = None
            return
        assert content.extent is not None
        assert content.storage is not None
        self._counters.passive_fetches += 1
        self._counters.swapped_in_bytes += content.bytes
        self._counters.fetches += 1
        self._file.read_now(content.storage, content.extent, content.bytes)

    def _check_written(self, content: Content) -> None:
        transfer, content.outgoing = content.outgoing, None
        if transfer is None or transfer.error is None:
            return
        if content.extent is not None:
            self._file.extents.give(content.extent)
            content.extent = None
        if content.slots and not content.is_here:
            self._arrived(content)
        transfer.check()

    def _released(self, content: Content) -> bool:
        if not (_has_ended(content.outgoing) and _has_ended(content.incoming)):
            return False
        if content.extent is not None:
            self._file.extents.give(content.extent)
            content.extent = None
        return True


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an allocation failed, in Python, in torch or in the system."""
    if isinstance(error, OSError):
        return error.errno == errno.ENOMEM
    return isinstance(error, (MemoryError, torch.OutOfMemoryError)) or (
        isinstance(error, RuntimeError) and "can't allocate memory" in str(error)
    )


def _has_ended(transfer: Transfer | None) -> bool:
    return transfer is None or transfer.ended
