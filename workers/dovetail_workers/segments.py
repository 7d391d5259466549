"""Numbered, create-only objects of one writer: what journal and log are made of.

A storage that refuses loses nothing: a segment that could not be written is tried again with the
same bytes under the same number, and what comes meanwhile waits for the next one. So there are
neither gaps nor duplicates, also when a try failed after its object was written.
"""

from __future__ import annotations

from collections.abc import Callable

from dovetail_workers.fence import Fenced
from dovetail_workers.pace import Pacer
from dovetail_workers.storage.protocol import KeyExists, Storage


class SegmentWriter:
    """Writes what `take` gives, which may be nothing, to `key(1)`, `key(2)`, …

    `on_written` is called after each; `on_broken` when no more can be written: with Fenced when
    another writer has the next number.
    """

    def __init__(
        self,
        storage: Storage,
        key: Callable[[int], str],
        take: Callable[[], bytes],
        *,
        on_written: Callable[[], None],
        on_broken: Callable[[Exception], None],
        name: str,
    ) -> None:
        self._storage, self._key, self._take = storage, key, take
        self._on_written = on_written
        self._number = 1
        self._unwritten = b""
        self._pacer = Pacer(self._flush, on_broken, name)

    @property
    def refused(self) -> bool:
        """Whether the storage refused the last try."""
        return self._pacer.refusal is not None

    def poke(self, *, urgent: bool = False) -> None:
        self._pacer.poke(urgent=urgent)

    def close(self, patience_s: float) -> None:
        """Write what is left; raises StorageError when that was refused for `patience_s`, Fenced
        when another writer came first.
        """
        self._pacer.close(patience_s)

    def abandon(self) -> None:
        """Write nothing more."""
        self._pacer.abandon()

    def _flush(self) -> None:
        if self._unwritten:
            self._write(again=True)
        self._unwritten = self._take()
        if self._unwritten:
            self._write(again=False)

    def _write(self, *, again: bool) -> None:
        key = self._key(self._number)
        try:
            self._storage.create(key, self._unwritten)
        except KeyExists:
            # A try that raised may still have written its object
            if not again or self._storage.get(key) != self._unwritten:
                raise Fenced(f"{key} has another writer") from None
        self._number += 1
        self._unwritten = b""
        self._on_written()
