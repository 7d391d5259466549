"""Where bytes wait that are not on the device: a folder on a real file system.

Its files have no names (`O_TMPFILE`), so they are gone with the process that made them, however it
ends. Where the file system cannot do that, a file has a name for a moment, under a lock; a name
that nobody locks was left by a killed process and is removed at the next start.
"""

from __future__ import annotations

import ctypes
import errno
import fcntl
import os
import secrets
from contextlib import suppress
from pathlib import Path

_PREFIX = "tensile-"
_VARIABLE = "TENSILE_FOLDER"
# statfs(2): file systems whose files are memory, where nothing would be saved
_MEMORY_KINDS = {0x01021994: "tmpfs", 0x858458F6: "ramfs", 0x958458F6: "hugetlbfs"}
# what a file system answers that lacks O_TMPFILE or O_DIRECT
_UNSUPPORTED = frozenset({errno.EINVAL, errno.EOPNOTSUPP, errno.EISDIR, errno.ENOENT})
_SPARE_BYTES = 64 * 2**20  # a disk is never filled to its last block


class TierError(OSError):
    """The lower tier cannot be used, or a transfer failed; everything on the device is valid."""


class LowerTier:
    """A checked folder. Raises TierError where no file can be made or files would be memory."""

    def __init__(self, folder: str | os.PathLike[str] | None = None) -> None:
        self.folder = Path(folder) if folder is not None else default_folder()
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            kind = _kind(self.folder)
        except OSError as error:
            raise TierError(
                error.errno,
                f"the lower tier {self.folder} cannot be used ({error.strerror}); "
                f"name another folder with folder=... or {_VARIABLE}",
            ) from error
        if kind in _MEMORY_KINDS:
            raise TierError(
                errno.EINVAL,
                f"the lower tier {self.folder} is on {_MEMORY_KINDS[kind]}, which is memory "
                f"itself; name a folder on a disk with folder=... or {_VARIABLE}",
            )
        self._remove_stale()

    def open(self, *, direct: bool = False) -> int:
        """A descriptor of a new nameless file; `direct` goes round the page cache if possible."""
        flags = os.O_RDWR | os.O_CLOEXEC
        extras = (os.O_DIRECT, 0) if direct else (0,)
        ways = [(make, extra) for make in (self._nameless, self._named) for extra in extras]
        for number, (make, extra) in enumerate(ways):
            try:
                return make(flags | extra)
            except OSError as error:
                if error.errno in _UNSUPPORTED and number + 1 < len(ways):
                    continue
                raise TierError(
                    error.errno,
                    f"no file can be made in the lower tier {self.folder} ({error.strerror}); "
                    f"name another folder with folder=... or {_VARIABLE}",
                ) from error
        raise AssertionError("the last way returns or raises")

    def require_room(self, needed_bytes: int) -> None:
        """Raises TierError unless `needed_bytes` more fit on the disk."""
        status = os.statvfs(self.folder)
        free_bytes = status.f_bavail * status.f_frsize
        if free_bytes < needed_bytes + _SPARE_BYTES:
            raise TierError(
                errno.ENOSPC,
                f"the lower tier {self.folder} has {free_bytes} bytes of room and the step may "
                f"need {needed_bytes}; free some, raise the budget, or name another folder with "
                f"folder=... or {_VARIABLE}",
            )

    def _nameless(self, flags: int) -> int:
        return os.open(self.folder, flags | os.O_TMPFILE, 0o600)

    def _named(self, flags: int) -> int:
        path = self.folder / f"{_PREFIX}{os.getpid()}-{secrets.token_hex(6)}"
        descriptor = os.open(path, flags | os.O_CREAT | os.O_EXCL, 0o600)
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        path.unlink()
        return descriptor

    def _remove_stale(self) -> None:
        for path in self.folder.glob(f"{_PREFIX}*"):
            with suppress(OSError):  # somebody else was quicker, or it is in use
                descriptor = os.open(path, os.O_RDWR | os.O_CLOEXEC)
                try:
                    fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
                    path.unlink()
                finally:
                    os.close(descriptor)


def default_folder() -> Path:
    """`$TENSILE_FOLDER`, or a folder of the user's cache."""
    named = os.environ.get(_VARIABLE)
    return Path(named) if named else cache_folder()


def cache_folder() -> Path:
    """This user's own folder for what can be made again."""
    cache = os.environ.get("XDG_CACHE_HOME")
    return (Path(cache) if cache else Path.home() / ".cache") / "tensile"


def _kind(folder: Path) -> int:
    """The file system's magic number: the first word of `struct statfs` on 64-bit Linux."""
    libc = ctypes.CDLL(None, use_errno=True)
    buffer = ctypes.create_string_buffer(256)
    if libc.statfs(os.fsencode(folder), buffer) != 0:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number), str(folder))
    return ctypes.c_long.from_buffer(buffer).value & 0xFFFFFFFF
