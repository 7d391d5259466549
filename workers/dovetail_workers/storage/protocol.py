"""The storage interface: only what an object store has. No append, no rename, no directories.

Keys are `/`-separated relative paths (`jobs/ab12/checkpoints/…`). Every write is a whole object and
is atomic: a reader sees the old object, the new one, or none. `tests/helpers/storage_contract.py`
holds what each implementation must pass.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol


class StorageError(Exception):
    """The storage refused or failed (full disk, permission, network); the message names the key."""


class KeyNotFound(StorageError):
    """No object has this key."""


class KeyExists(StorageError):
    """A create-only put met an object with this key; nothing was changed."""


@dataclass(frozen=True, slots=True)
class ObjectInfo:
    key: str
    bytes: int


class Storage(Protocol):
    def uri(self, key: str) -> str:
        """Where a person finds this key: a path for a folder, `s3://…` for a bucket."""

    def put(self, key: str, data: bytes | Path) -> None:
        """Write an object, replacing one of that key. A Path is read as a file."""

    def create(self, key: str, data: bytes) -> None:
        """Write an object that must not exist yet; raises KeyExists, and of several racing writers
        one wins.
        """

    def get(self, key: str, start: int = 0, length: int | None = None) -> bytes:
        """Bytes `start` to `start + length` (to the end if None; short at the end); raises
        KeyNotFound.
        """

    def stat(self, key: str) -> ObjectInfo:
        """Size of an object; raises KeyNotFound."""

    def list(self, prefix: str) -> Iterator[ObjectInfo]:
        """All objects whose key starts with `prefix`, in key order."""

    def delete(self, key: str) -> None:
        """Remove an object; one that does not exist is no error."""
