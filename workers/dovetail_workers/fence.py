"""Who may speak for an attempt, and until when: two create-only objects in storage.

    claim    written by the attempt's one supervisor before anything else; a second meets it
    fence    written by the control plane when it gives the attempt up; whoever still lives ends

An object store has no locks; that of several creates one wins is all this needs.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable

from dovetail_workers import keys
from dovetail_workers.storage.protocol import KeyExists, KeyNotFound, Storage, StorageError

FENCE_CHECK_S = 5.0

log = logging.getLogger(__name__)


class Fenced(Exception):
    """This worker must not speak for its attempt; the message says why."""


def claim(storage: Storage, job_id: str, attempt: int, writer: str) -> None:
    """Take the attempt for `writer`, a text that no other supervisor has. Raises Fenced when
    another has it; the same writer may ask again after a StorageError.
    """
    key = keys.claim(job_id, attempt)
    try:
        storage.create(key, writer.encode())
    except KeyExists:
        holder = storage.get(key).decode(errors="replace")
        if holder != writer:
            raise Fenced(f"attempt {job_id}.{attempt} belongs to {holder}") from None


def is_claimed(storage: Storage, job_id: str, attempt: int) -> bool:
    """Whether a supervisor of this attempt ever began."""
    return _exists(storage, keys.claim(job_id, attempt))


def raise_fence(storage: Storage, job_id: str, attempt: int) -> None:
    """Tell whoever still works on this attempt to end. Idempotent."""
    try:
        storage.create(keys.fence(job_id, attempt), b"")
    except KeyExists:
        return


def is_fenced(storage: Storage, job_id: str, attempt: int) -> bool:
    return _exists(storage, keys.fence(job_id, attempt))


class FenceWatch:
    """Looks for the attempt's fence every few seconds and calls `on_fenced` once."""

    def __init__(
        self,
        storage: Storage,
        job_id: str,
        attempt: int,
        on_fenced: Callable[[], None],
        check_s: float = FENCE_CHECK_S,
    ) -> None:
        self._storage, self._job_id, self._attempt = storage, job_id, attempt
        self._on_fenced, self._check_s = on_fenced, check_s
        self._closed = threading.Event()
        self._thread = threading.Thread(target=self._run, name="fence", daemon=True)
        self._thread.start()

    def close(self) -> None:
        self._closed.set()
        self._thread.join()

    def _run(self) -> None:
        while not self._closed.wait(self._check_s):
            try:
                fenced = is_fenced(self._storage, self._job_id, self._attempt)
            except StorageError as error:
                log.warning("fence of %s.%s unreadable: %s", self._job_id, self._attempt, error)
                continue
            if fenced:
                self._on_fenced()
                return


def _exists(storage: Storage, key: str) -> bool:
    try:
        storage.stat(key)
    except KeyNotFound:
        return False
    return True
