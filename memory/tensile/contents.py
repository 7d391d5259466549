"""What autograd keeps for the backward pass, and where each piece of it is: on the device, on the
way, or below.

A *content* is one storage that autograd saved, however often and through whatever views. It leaves
only while nobody else holds it, so nobody can change it meanwhile: what comes back is what was
saved, bit for bit.
"""

from __future__ import annotations

import errno
import sys
import time
from collections import deque
from collections.abc import Callable, Iterator

import torch

from tensile.extents import Extent
from tensile.lower_tier import TierError
from tensile.stats import Counters
from tensile.swap_file import SwapFile, Transfer
from tensile.weak_storage import WeakStorage, is_held_once


class Content:
    """`storage` is None while it is not on the device. `number` is the first slot's."""

    __slots__ = (
        *("address", "again", "bytes", "extent", "incoming", "movable", "number", "outgoing"),
        *("slots", "storage", "weak"),
    )

    def __init__(self, storage: torch.UntypedStorage, number: int, *, movable: bool) -> None:
        self.storage: torch.UntypedStorage | None = storage
        self.address = storage._cdata  # nobody else's while this has the storage or finds it
        self.number = number
        self.bytes = storage.nbytes()
        self.movable = movable
        self.slots: dict[int, Slot] = {}  # by version
        self.extent: Extent | None = None  # where its copy is or is being made
        self.outgoing: Transfer | None = None
        self.incoming: Transfer | None = None
        self.weak: WeakStorage | None = None  # finds the storage while somebody still has it
        self.again: Callable[[], torch.UntypedStorage] | None = None  # computes it once more

    def is_away(self) -> bool:
        """Neither on the device nor on its way there."""
        return self.storage is None and self.incoming is None

    def is_alone(self) -> bool:
        """Nobody but autograd holds it: no tensor, and no Python name of the storage."""
        storage = self.storage
        if storage is None or not is_held_once(storage):
            return False
        return sys.getrefcount(storage) == 3  # the attribute, the local name and the argument


class Slot:
    """A storage in one version: what the trace calls a slot. `handles` are the tensors saved so;
    one that dies says so in `dead`. `shown_bytes` are the first one's.
    """

    __slots__ = ("content", "dead", "handles", "number", "shown_bytes", "version")

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
        """Begin to bring it below; False while somebody else holds it."""
        if content.storage is None:
            return True
        if not content.movable or not content.is_alone():
            return False
        if content.extent is None:
            extent = self._file.extents.take(content.bytes)
            content.weak = WeakStorage(content.storage)
            content.outgoing = self._file.write(content.storage, extent)
            content.extent = extent
            self._outgoing.append(content)
            self._counters.swapped_out_bytes += content.bytes
        self._gone(content)
        return True

    def forget(self, content: Content, again: Callable[[], torch.UntypedStorage]) -> bool:
        """Let it go without a copy, since `again` computes it; False while somebody holds it."""
        if content.storage is None or not content.movable or not content.is_alone():
            return False
        content.again = again
        self._gone(content)
        return True

    def ask(self, content: Content) -> None:
        """Begin to bring it back. What is computed again waits for its need."""
        if content.storage is not None or content.incoming is not None:
            return
        if self._revived(content) is not None:
            return
        if content.extent is not None:
            content.incoming = self._file.read(content.extent, content.bytes)
            self._incoming.append(content)
            self._counters.swapped_in_bytes += content.bytes
            self._counters.fetches += 1

    def present(self, content: Content, retry: Callable[[int], None]) -> torch.UntypedStorage:
        """Its storage, now. Waits for what is on the way, and fetches what is not.

        `retry(bytes)` makes room after a failed allocation, before the only second attempt.
        """
        storage = content.storage or self._revived(content)
        if storage is not None:
            return storage
        begin_s = time.perf_counter()
        try:
            storage = self._brought(content)
        except (TierError, MemoryError, RuntimeError) as error:
            if not is_out_of_memory(error):
                raise
            retry(content.bytes)
            storage = self._brought(content)
        self._counters.stall_s += time.perf_counter() - begin_s
        self._arrived(content, storage)
        return storage

    def retire(self, content: Content) -> None:
        """Nobody needs it any more."""
        content.storage = None
        content.again = None
        self._movable.pop(content, None)
        self._away.pop(content, None)
        content.weak = None
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
            content.movable = False
            content.incoming = None
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
        reads = ((content, content.incoming) for content in self._incoming)
        return sum(c.bytes for c, read in reads if read and not (read.has_place or read.ended))

    def _gone(self, content: Content) -> None:
        if content.weak is None:
            assert content.storage is not None
            content.weak = WeakStorage(content.storage)
        content.storage = None
        content.incoming = None
        self._movable.pop(content, None)
        self._away[content] = None

    def _arrived(self, content: Content, storage: torch.UntypedStorage) -> None:
        content.storage = storage
        content.address = storage._cdata
        content.incoming = None
        content.weak = None
        self._away.pop(content, None)
        self._movable[content] = None

    def _revived(self, content: Content) -> torch.UntypedStorage | None:
        """Its storage, if somebody still has it: the writer, or a tensor that was handed out."""
        storage = content.weak.lifted() if content.weak is not None else None
        if storage is not None:
            self._arrived(content, storage)
        return storage

    def _brought(self, content: Content) -> torch.UntypedStorage:
        if content.incoming is not None:
            transfer, content.incoming = content.incoming, None
            transfer.wait()
            transfer.check()
            assert transfer.storage is not None
            return transfer.storage
        if content.again is not None:
            storage = content.again()
            self._counters.recomputed_bytes += content.bytes
            content.again = None
            return storage
        assert content.extent is not None
        self._counters.passive_fetches += 1
        self._counters.swapped_in_bytes += content.bytes
        self._counters.fetches += 1
        return self._file.read_now(content.extent, content.bytes)

    def _check_written(self, content: Content) -> None:
        transfer, content.outgoing = content.outgoing, None
        if transfer is None or transfer.error is None:
            return
        if content.extent is not None:
            self._file.extents.give(content.extent)
            content.extent = None
        if transfer.storage is not None and content.storage is None and content.slots:
            self._arrived(content, transfer.storage)
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
