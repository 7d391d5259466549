"""The code snapshots in storage, by the sha256 of their content."""

from __future__ import annotations

import io
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

from dovetail.service.contract import CodeView
from dovetail_jobs.errors import DovetailError, NotFound, SpecError, UserError
from dovetail_jobs.resolve import resolve
from dovetail_jobs.snapshot.archive import Snapshot, SnapshotDamaged, unpack, verify
from dovetail_jobs.spec import JobSpec
from dovetail_workers import keys
from dovetail_workers.storage.protocol import KeyNotFound, Storage, StorageError


class CodeShelf:
    """Takes archives, and unpacks them to look at. An object that has a name never changes."""

    def __init__(self, storage: Storage, limit_bytes: int) -> None:
        self._storage, self._limit_bytes = storage, limit_bytes

    def find(self, sha256: str) -> CodeView:
        """What an archive holds. NotFound, so that it is sent again, also for a damaged one."""
        try:
            archive = io.BytesIO(self._read(sha256))
            return _view(verify(archive, sha256, limit_bytes=self._limit_bytes))
        except (KeyNotFound, SnapshotDamaged):
            raise NotFound(f"code {sha256}: is not kept here; send it with PUT") from None

    def keep(self, sha256: str, archive: Path) -> CodeView:
        """Store an archive under its name, over a damaged one of that name too.

        UserError for one whose content is not that of `sha256`, or too large.
        """
        with archive.open("rb") as file:
            snapshot = verify(file, sha256, limit_bytes=self._limit_bytes)
        with _storage_failures():
            self._storage.put(keys.code_archive(sha256), archive)
        return _view(snapshot)

    def resolve(self, spec: JobSpec, sha256: str | None) -> tuple[JobSpec, CodeView | None]:
        """`spec` resolved against the code that it will run, and what that code is.

        SpecError for the spec, UserError for code that is not kept here or damaged. Relative paths
        start where the server runs; the command line has made them absolute.
        """
        if sha256 is None:
            return resolve(spec, base=Path.cwd()), None
        with self._unpacked(sha256) as (folder, snapshot):
            try:
                return resolve(spec, base=Path.cwd(), code=folder), _view(snapshot)
            except SpecError as error:
                raise _told_of_the_copy(error, folder, spec) from None

    @contextmanager
    def opened(self, sha256: str | None) -> Iterator[Path | None]:
        """A copy of that code for a while; None for none."""
        if sha256 is None:
            yield None
            return
        with self._unpacked(sha256) as (folder, _):
            yield folder

    @contextmanager
    def _unpacked(self, sha256: str) -> Iterator[tuple[Path, Snapshot]]:
        with tempfile.TemporaryDirectory(prefix="dovetail-code-") as scratch:
            folder = Path(scratch, "code")
            try:
                archive = io.BytesIO(self._read(sha256))
            except KeyNotFound:
                raise UserError(
                    f"code {sha256}: is not kept here; send it first with PUT /api/v1/code/{sha256}"
                ) from None
            yield folder, unpack(archive, sha256, folder, limit_bytes=self._limit_bytes)

    def _read(self, sha256: str) -> bytes:
        with _storage_failures():
            return self._storage.get(keys.code_archive(sha256))


def _view(snapshot: Snapshot) -> CodeView:
    return CodeView(sha256=snapshot.sha256, bytes=snapshot.bytes, files=snapshot.files)


def _told_of_the_copy(error: SpecError, folder: Path, spec: JobSpec) -> SpecError:
    """The same problems, in terms of the folder that the user knows."""
    return SpecError(
        [
            replace(
                problem,
                rule=problem.rule.replace(
                    str(folder), f"the code of {spec.workdir} (without what .gitignore names)"
                ),
            )
            for problem in error.problems
        ]
    )


@contextmanager
def _storage_failures() -> Iterator[None]:
    """A storage that refuses is something to tell whoever submits."""
    try:
        yield
    except KeyNotFound:
        raise
    except StorageError as error:
        raise DovetailError(f"the code could not be kept or read: {error}") from None
