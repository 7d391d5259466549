"""Storage in a local folder, with the guarantees of an object store.

An object is written to a temporary file under `<root>/.tmp`, flushed to the disk, and then given
its name in one step of the file system: `os.link` for a create (it fails when the name exists),
`os.replace` for a put. A crash leaves at most a temporary file, which no key can name and no list
shows, and which goes a day later, when a storage is opened there.
"""

from __future__ import annotations

import errno
import os
import shutil
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from operator import itemgetter
from pathlib import Path
from uuid import uuid4

from dovetail_workers.storage.protocol import KeyExists, KeyNotFound, ObjectInfo, StorageError

_TEMPORARY = ".tmp"
_ABSENT = (FileNotFoundError, NotADirectoryError, IsADirectoryError)
_PUBLISH_TRIES = 100
_ABANDONED_S = 86_400.0  # no write of a living process pauses that long
_WAYS_OUT = {
    errno.ENOSPC: "; make room on that disk",
    errno.EDQUOT: "; make room in the quota",
    errno.EACCES: "; give this user the right to it",
    errno.EROFS: "; mount that file system for writing",
}


class LocalStorage:
    """Objects as files below `root`, which is made when it does not exist."""

    def __init__(self, root: Path) -> None:
        self._root = root.absolute()
        try:
            (self._root / _TEMPORARY).mkdir(parents=True, exist_ok=True)
            _remove_abandoned(self._root / _TEMPORARY)
        except OSError as error:
            raise StorageError(
                f"cannot keep objects in {root}: {error.strerror or error}"
            ) from error

    def uri(self, key: str) -> str:
        return str(self._root / key)

    def put(self, key: str, data: bytes | Path) -> None:
        self._write(key, data, os.replace)

    def create(self, key: str, data: bytes) -> None:
        try:
            self._write(key, data, os.link)
        except FileExistsError:
            raise KeyExists(f"{key}: exists already; a create never replaces an object") from None

    def get(self, key: str, start: int = 0, length: int | None = None) -> bytes:
        path = self._path(key)
        if start < 0 or (length is not None and length < 0):
            raise ValueError(f"{key}: a range of {start} and {length} bytes; both count from 0 up")
        with _failures(key, "read"):
            try:
                with path.open("rb") as file:
                    file.seek(start)
                    return file.read(-1 if length is None else length)
            except _ABSENT:
                raise KeyNotFound(f"{key}: no object has this key") from None

    def stat(self, key: str) -> ObjectInfo:
        path = self._path(key)
        with _failures(key, "read"):
            if not path.is_file():
                raise KeyNotFound(f"{key}: no object has this key")
            return ObjectInfo(key, path.stat().st_size)

    def list(self, prefix: str) -> Iterator[ObjectInfo]:
        if ".." in prefix.split("/"):
            raise StorageError(f"{prefix!r} is no prefix of a key: it has a part '..'")
        folder = prefix.rpartition("/")[0]
        with _failures(prefix, "list"):
            yield from self._walk(self._root / folder, f"{folder}/" if folder else "", prefix)

    def delete(self, key: str) -> None:
        path = self._path(key)
        with _failures(key, "delete"):
            try:
                path.unlink()
            except _ABSENT:
                return
            self._prune(path.parent)

    def _path(self, key: str) -> Path:
        parts = key.split("/")
        if not all(parts) or {".", ".."} & set(parts) or "\0" in key or parts[0] == _TEMPORARY:
            raise StorageError(
                f"{key!r} is no key: write parts joined by single slashes, none of them empty, "
                f"'.' or '..', the first not {_TEMPORARY!r}"
            )
        return self._root.joinpath(*parts)

    def _write(self, key: str, data: bytes | Path, publish: Callable[[Path, Path], None]) -> None:
        path = self._path(key)
        temporary = self._root / _TEMPORARY / uuid4().hex
        with _failures(key, "write"):
            try:
                with temporary.open("xb") as file:
                    if isinstance(data, Path):
                        with data.open("rb") as source:
                            shutil.copyfileobj(source, file, 1 << 20)
                    else:
                        file.write(data)
                    file.flush()
                    os.fsync(file.fileno())
                self._publish(temporary, path, publish)
            finally:
                temporary.unlink(missing_ok=True)

    def _publish(self, temporary: Path, path: Path, publish: Callable[[Path, Path], None]) -> None:
        for left in reversed(range(_PUBLISH_TRIES)):
            try:
                self._make_folder(path.parent)
                publish(temporary, path)
                break
            except FileNotFoundError:
                # A delete beside us has just pruned the folder that was empty until now.
                if not left or not temporary.exists():
                    raise
        _sync_folder(path.parent)

    def _make_folder(self, folder: Path) -> None:
        """Make `folder` and its parents, and flush each new name to the disk with its parent."""
        if folder.is_dir():
            return
        self._make_folder(folder.parent)
        with suppress(FileExistsError):
            folder.mkdir()
        _sync_folder(folder.parent)

    def _prune(self, folder: Path) -> None:
        while folder != self._root:
            try:
                folder.rmdir()
            except OSError:
                return
            folder = folder.parent

    def _walk(self, folder: Path, above: str, prefix: str) -> Iterator[ObjectInfo]:
        try:
            with os.scandir(folder) as found:
                # A folder sorts as its keys do, with the slash: `a.txt` comes before `a/x`.
                entries = sorted(
                    (
                        (above + entry.name + "/" * entry.is_dir(follow_symlinks=False), entry)
                        for entry in found
                        if above or entry.name != _TEMPORARY
                    ),
                    key=itemgetter(0),
                )
        except _ABSENT:
            return
        for name, entry in entries:
            if name.endswith("/"):
                if name.startswith(prefix) or prefix.startswith(name):
                    yield from self._walk(folder / entry.name, name, prefix)
            elif name.startswith(prefix):
                with suppress(FileNotFoundError):
                    yield ObjectInfo(name, entry.stat(follow_symlinks=False).st_size)


def _remove_abandoned(folder: Path) -> None:
    """What writers that were killed left behind."""
    with os.scandir(folder) as found:
        for entry in found:
            with suppress(FileNotFoundError):
                if time.time() - entry.stat().st_mtime > _ABANDONED_S:
                    os.unlink(entry.path)


def _sync_folder(folder: Path) -> None:
    """Flush the names in a folder; a delete beside us may have pruned it with its last name."""
    try:
        descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    except FileNotFoundError:
        return
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


@contextmanager
def _failures(key: str, verb: str) -> Iterator[None]:
    """Turn errors of the system into StorageError with the key; create judges a taken name."""
    try:
        yield
    except FileExistsError:
        raise
    except OSError as error:
        way_out = _WAYS_OUT.get(error.errno or 0, "")
        file = f" ({error.filename})" if isinstance(error.filename, str) else ""
        raise StorageError(
            f"cannot {verb} {key}: {error.strerror or error}{file}{way_out}"
        ) from error
