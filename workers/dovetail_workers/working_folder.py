"""The folder that an attempt's program runs in.

A job with code runs in a fresh copy of its snapshot, so that no edit and no earlier attempt shows;
the copy goes with the attempt. A job without one runs in `workdir` itself, or in an empty folder.
"""

from __future__ import annotations

import io
from pathlib import Path

from dovetail_jobs.errors import UserError
from dovetail_jobs.snapshot.archive import entry_names, unpack
from dovetail_workers import keys
from dovetail_workers.launch import Launch
from dovetail_workers.storage.protocol import KeyNotFound, Storage

_NAMED = 3


class WorkingFolder:
    """`path` is where the program starts, and what `PYTHONPATH` begins with."""

    def __init__(self, path: Path, *, copied: bool) -> None:
        self.path = path
        self._before = entry_names(path) if copied else None
        self._kept: list[Path] = []

    def keep(self, folder: Path) -> None:
        """What lies in `folder` was stored elsewhere."""
        self._kept.append(folder.resolve())

    def farewell(self) -> str | None:
        """A sentence about new files that go with the copy; None if there are none."""
        if self._before is None:
            return None
        lost = sorted(
            name
            for name in entry_names(self.path) - self._before
            if not any((self.path / name).resolve().is_relative_to(kept) for kept in self._kept)
        )
        if not lost:
            return None
        named = ", ".join([*lost[:_NAMED], *(["…"] if len(lost) > _NAMED else [])])
        several = f"{len(lost)} new files" if len(lost) > 1 else "1 new file"
        are = "are" if len(lost) > 1 else "is"
        return (
            f"{several} in the working folder {are} not kept ({named}); "
            "write to an absolute path, or to $DOVETAIL_CHECKPOINTS and report it"
        )


def open_working_folder(launch: Launch, storage: Storage, scratch: Path) -> WorkingFolder:
    """The folder for this attempt, with the job's code in it, made in `scratch` if need be.

    Raises UserError for code that is missing or damaged, StorageError when it cannot be read now.
    """
    if launch.code is not None:
        path = scratch / "code"
        try:
            archive = storage.get(keys.code_archive(launch.code))
        except KeyNotFound:
            place = storage.uri(keys.code_archive(launch.code))
            raise UserError(
                f"code {launch.code[:12]}: is no longer at {place}; submit the job again"
            ) from None
        unpack(io.BytesIO(archive), launch.code, path, limit_bytes=None)
        return WorkingFolder(path, copied=True)
    workdir = launch.spec.get("workdir")
    return WorkingFolder(Path(workdir) if workdir else scratch, copied=False)
