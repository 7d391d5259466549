"""A part of a checkpoint on its way to or from storage: a nameless file, never whole in memory.

The file is on a disk where there is one, and is gone with the process, however that ends.
"""

from __future__ import annotations

import ctypes
import mmap
import tempfile
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import IO, Any, Self

import torch
from torch.utils._pytree import tree_leaves

from dovetail_workers.storage.protocol import StorageError
from tensile.lower_tier import LowerTier, TierError

MakeRoom = Callable[[int], None]  # bytes that are touched next
_SMALL_BYTES = 64 * 2**10

_libc = ctypes.CDLL(None)
_libc.madvise.argtypes = (ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int)


class PartFile:
    """Written by `save` or piece by piece; read by whoever opens `path` in this process."""

    def __init__(self) -> None:
        folder = _folder()
        try:
            self._file = tempfile.TemporaryFile(dir=folder)  # noqa: SIM115  closed by __exit__
        except OSError as error:
            raise StorageError(_refused(folder, error)) from error
        self.path = Path(f"/proc/self/fd/{self._file.fileno()}")
        self._folder = folder
        self._begin = self._end = 0  # addresses of what `load` mapped

    def save(self, value: Any, make_room: MakeRoom) -> None:
        """`torch.save`, storage by storage: before each there is room for the largest. Raises
        StorageError where the disk has none.
        """
        largest = max((t.untyped_storage().nbytes() for t in _tensors(value)), default=0)
        make_room(largest)
        try:
            torch.save(value, _Writer(self._file, lambda: make_room(largest)))  # type: ignore[arg-type]
            self._file.flush()
        except (OSError, RuntimeError) as error:
            # torch's own complaint about the file that was cut short comes on top of the cause
            cause = error if isinstance(error, OSError) else error.__context__
            if not isinstance(cause, OSError):
                raise
            raise StorageError(_refused(self._folder, cause)) from cause

    def write(self, data: bytes) -> None:
        """Append. Raises StorageError where the disk has no room."""
        try:
            self._file.write(data)
        except OSError as error:
            raise StorageError(_refused(self._folder, error)) from error

    def load(self) -> Any:
        """What was saved. Its tensors are pages of the file: read them, and never write to them."""
        try:
            self._file.flush()
        except OSError as error:
            raise StorageError(_refused(self._folder, error)) from error
        value = torch.load(str(self.path), map_location="cpu", weights_only=True, mmap=True)
        ranges = [(t.data_ptr(), t.nbytes) for t in map(_whole, _tensors(value)) if t.nbytes]
        if ranges:
            self._begin = min(at for at, _ in ranges) // mmap.PAGESIZE * mmap.PAGESIZE
            self._end = max(at + size for at, size in ranges)
        return value

    def holds(self, tensor: torch.Tensor) -> bool:
        """Whether it is still one of those that `load` gave."""
        return self._begin <= tensor.data_ptr() < self._end

    def let_go(self) -> None:
        """Pages of what `load` gave that were read leave memory; they come again when read."""
        if self._begin < self._end:
            _libc.madvise(self._begin, self._end - self._begin, mmap.MADV_DONTNEED)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        with suppress(OSError):  # of a full disk: `save` and `load` have said so
            self._file.close()


class _Writer:
    """What `torch.save` writes to, storage by storage."""

    def __init__(self, file: IO[bytes], written: Callable[[], None]) -> None:
        self._file = file
        self._written = written

    def write(self, data: memoryview | bytes) -> int:
        count = self._file.write(data)
        if len(data) >= _SMALL_BYTES:
            self._written()
        return count

    def flush(self) -> None:
        self._file.flush()


def _tensors(value: Any) -> Iterator[torch.Tensor]:
    return (leaf for leaf in tree_leaves(value) if isinstance(leaf, torch.Tensor))


def _whole(tensor: torch.Tensor) -> torch.Tensor:
    """All of its storage, as bytes."""
    return torch.empty(0, dtype=torch.uint8).set_(tensor.untyped_storage())


def _folder() -> Path:
    """A disk if there is one: files of a tmpfs would be memory."""
    try:
        return LowerTier().folder
    except TierError:
        return Path(tempfile.gettempdir())


def _refused(folder: Path, error: OSError) -> str:
    return (
        f"a checkpoint could not be put together in {folder}: {error.strerror or error}; make "
        "room on that disk, or name another folder with TENSILE_FOLDER"
    )
