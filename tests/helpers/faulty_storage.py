"""Storages that fail as scripted: one that refuses for a while, one that ends its process."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Literal

from dovetail_workers.storage.local import LocalStorage
from dovetail_workers.storage.protocol import ObjectInfo, StorageError

Moment = Literal["before", "after"]


class RefusingStorage(LocalStorage):
    """While `full`, nothing is written; while `uncertain`, a write happens and its answer is lost.

    `refused` is set by each refusal.
    """

    def __init__(self, root: Path) -> None:
        super().__init__(root)
        self.full = self.uncertain = False
        self.refused = threading.Event()

    def create(self, key: str, data: bytes) -> None:
        self._refuse(self.full, key)
        super().create(key, data)
        self._refuse(self.uncertain, key)

    def put(self, key: str, data: bytes | Path) -> None:
        self._refuse(self.full, key)
        super().put(key, data)
        self._refuse(self.uncertain, key)

    def _refuse(self, asked: bool, key: str) -> None:
        if asked:
            self.refused.set()
            raise StorageError(f"cannot write {key}: No space left on device")


class MortalStorage(LocalStorage):
    """Numbers its operations from 0; at number `fatal` it ends the whole process, before or after.

    With None it only notes them in `operations`.
    """

    def __init__(
        self, root: Path, fatal: int | None = None, moment: Moment = "before", code: int = 77
    ) -> None:
        super().__init__(root)
        self._fatal, self._moment, self._code = fatal, moment, code
        self.operations: list[str] = []

    def create(self, key: str, data: bytes) -> None:
        with self._operation(f"create {key}"):
            super().create(key, data)

    def put(self, key: str, data: bytes | Path) -> None:
        with self._operation(f"put {key}"):
            super().put(key, data)

    def get(self, key: str, start: int = 0, length: int | None = None) -> bytes:
        with self._operation(f"get {key}"):
            return super().get(key, start, length)

    def stat(self, key: str) -> ObjectInfo:
        with self._operation(f"stat {key}"):
            return super().stat(key)

    def list(self, prefix: str) -> Iterator[ObjectInfo]:
        with self._operation(f"list {prefix}"):
            yield from super().list(prefix)

    def delete(self, key: str) -> None:
        with self._operation(f"delete {key}"):
            super().delete(key)

    @contextmanager
    def _operation(self, what: str) -> Iterator[None]:
        number = len(self.operations)
        self.operations.append(what)
        if (number, self._moment) == (self._fatal, "before"):
            os._exit(self._code)
        try:
            yield
        finally:
            if (number, self._moment) == (self._fatal, "after"):
                os._exit(self._code)


def in_a_process(work: Callable[[], object]) -> int:
    """Run `work` in a forked child; its exit code: 0 when it came to its end, 1 when it raised."""
    child = os.fork()
    if child == 0:
        code = 1
        try:
            work()
            code = 0
        finally:
            os._exit(code)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
