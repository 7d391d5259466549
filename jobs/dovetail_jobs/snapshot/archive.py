"""A folder's code as one archive with one name: the sha256 of its content.

The content is a plain tar in one form only: sorted names, no times, no owners, modes 644 and 755.
It is kept compressed, which the name does not depend on. Of an archive nothing but names, kinds,
contents, the right to execute and the targets of links is ever taken.
"""

from __future__ import annotations

import gzip
import hashlib
import io
import os
import stat
import tarfile
import tempfile
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO

from dovetail_jobs.errors import UserError
from dovetail_jobs.snapshot.limits import ENTRY_LIMIT, LIMIT_BYTES, WAY_OUT
from dovetail_jobs.snapshot.workdir import Survey, WorkdirRefused
from dovetail_jobs.units import format_bytes

_READ_TRIES = 5
_CHUNK_BYTES = 1 << 20
_HEADERS_BYTES = 4096  # of one entry, at most and then some: names may be long


@dataclass(frozen=True, slots=True, kw_only=True)
class Snapshot:
    """What an archive holds: `bytes` of `files`, unpacked; folders and links are not counted."""

    sha256: str
    bytes: int
    files: int


class SnapshotDamaged(UserError):
    """An archive that does not hold what its name says, or what no archive of ours would."""


def largest_archive_bytes(limit_bytes: int = LIMIT_BYTES) -> int:
    """The size that no archive of code within `limit_bytes` reaches, compressed or not."""
    return limit_bytes + ENTRY_LIMIT * _HEADERS_BYTES


def pack(survey: Survey, archive: Path) -> Snapshot:
    """Write the code that `survey` found into the new file `archive`.

    Raises WorkdirRefused for a file that cannot be read, or that changes all the time.
    """
    with archive.open("xb") as file, gzip.GzipFile("", "wb", 6, file, mtime=0) as compressed:
        content = _Hashed(compressed)
        packed_bytes = 0
        with tarfile.open(mode="w|", fileobj=content, format=tarfile.PAX_FORMAT) as tar:
            for entry in survey.entries:
                member = tarfile.TarInfo(entry.name)
                if entry.kind == "folder":
                    member.type, member.mode = tarfile.DIRTYPE, 0o755
                    tar.addfile(member)
                elif entry.kind == "link":
                    member.type, member.mode, member.linkname = tarfile.SYMTYPE, 0o777, entry.target
                    tar.addfile(member)
                else:
                    room_bytes = survey.limit_bytes - packed_bytes
                    data, executable = _read(survey.folder, entry.name, room_bytes)
                    packed_bytes += len(data)
                    member.size, member.mode = len(data), 0o755 if executable else 0o644
                    tar.addfile(member, io.BytesIO(data))
    return Snapshot(sha256=content.digest.hexdigest(), bytes=packed_bytes, files=survey.files)


def verify(archive: IO[bytes], sha256: str, *, limit_bytes: int | None = LIMIT_BYTES) -> Snapshot:
    """What an archive holds, if it is that of `sha256`; SnapshotDamaged otherwise.

    Without a limit, its sender is trusted to have kept one.
    """
    with _content(archive, sha256, limit_bytes) as tar:
        return _snapshot(sha256, _members(tar, sha256, limit_bytes))


def unpack(
    archive: IO[bytes], sha256: str, into: Path, *, limit_bytes: int | None = LIMIT_BYTES
) -> Snapshot:
    """Write an archive's files into the new folder `into`; SnapshotDamaged if it is not whole.

    Links come last, so that nothing is ever written through one.
    """
    with _content(archive, sha256, limit_bytes) as tar:
        members = _members(tar, sha256, limit_bytes)
        into.mkdir()
        for name, member in members.items():
            path = into / name
            if member.isdir():
                path.mkdir()
            elif not member.issym():
                _write(tar, member, path)
        links = [name for name, member in members.items() if member.issym()]
        for name in links:
            (into / name).symlink_to(members[name].linkname)
        top = os.path.realpath(into)
        for name in links:
            if not f"{os.path.realpath(into / name)}/".startswith(f"{top}/"):
                raise _damaged(sha256, f"its link {name} leads out of it")
        return _snapshot(sha256, members)


def entry_names(folder: Path, limit: int = ENTRY_LIMIT) -> set[str]:
    """Names of what lies in `folder` now, apart from compiled Python; about `limit` at most."""
    found: set[str] = set()
    for above, folders, names in os.walk(folder):
        folders[:] = [name for name in folders if name != "__pycache__"]
        inner = os.path.relpath(above, folder)
        found.update(
            os.path.normpath(os.path.join(inner, name))
            for name in names
            if not name.endswith(".pyc")
        )
        if len(found) > limit:
            break
    return found


class _Hashed(io.RawIOBase):
    """Passes on what is written, and knows its sha256."""

    def __init__(self, to: gzip.GzipFile) -> None:
        self._to = to
        self.digest = hashlib.sha256()

    def write(self, data: bytes) -> int:  # type: ignore[override]
        self.digest.update(data)
        return self._to.write(data)


def _read(folder: Path, name: str, room_bytes: int) -> tuple[bytes, bool]:
    """A file as it is between two looks that agree, and whether it may be executed."""
    try:
        for _ in range(_READ_TRIES):
            # Neither follows a link nor waits for a pipe that took the file's place meanwhile.
            flags = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
            with open(os.open(folder / name, flags), "rb") as file:
                before = os.fstat(file.fileno())
                if not stat.S_ISREG(before.st_mode):
                    raise WorkdirRefused(str(folder), f"{name} is no file any more; submit again")
                if before.st_size > room_bytes:
                    raise WorkdirRefused(str(folder), f"{name} has grown over the limit; {WAY_OUT}")
                data = file.read(before.st_size + 1)
                after = os.fstat(file.fileno())
            as_before = (before.st_size, before.st_mtime_ns) == (after.st_size, after.st_mtime_ns)
            if as_before and len(data) == before.st_size:
                return data, bool(before.st_mode & stat.S_IXUSR)
    except OSError as error:
        rule = f"{name} cannot be read: {error.strerror}; make it readable or add it to .gitignore"
        raise WorkdirRefused(str(folder), rule) from None
    rule = f"{name} changes while it is read; add it to .gitignore, or submit when nobody writes it"
    raise WorkdirRefused(str(folder), rule)


@contextmanager
def _content(archive: IO[bytes], sha256: str, limit_bytes: int | None) -> Iterator[tarfile.TarFile]:
    """The archive's content, after its hash was compared."""
    digest, size = hashlib.sha256(), 0
    with tempfile.TemporaryFile() as content:
        try:
            with gzip.GzipFile(fileobj=archive, mode="rb") as compressed:
                while chunk := compressed.read(_CHUNK_BYTES):
                    size += len(chunk)
                    if limit_bytes is not None and size > largest_archive_bytes(limit_bytes):
                        raise _too_large(sha256, limit_bytes)
                    digest.update(chunk)
                    content.write(chunk)
        except (gzip.BadGzipFile, EOFError, zlib.error) as error:
            raise _damaged(sha256, str(error)) from None
        if digest.hexdigest() != sha256:
            raise _damaged(sha256, f"its content has the sha256 {digest.hexdigest()}")
        content.seek(0)
        try:
            with tarfile.open(mode="r:", fileobj=content) as tar:
                yield tar
        except tarfile.TarError as error:
            raise _damaged(sha256, str(error)) from None


def _members(
    tar: tarfile.TarFile, sha256: str, limit_bytes: int | None
) -> dict[str, tarfile.TarInfo]:
    """The members by name, folders before what is in them; nothing that could reach outside."""
    found: dict[str, tarfile.TarInfo] = {}
    for member in tar:
        above = member.name.rpartition("/")[0]
        if not set(member.name.split("/")).isdisjoint({"", ".", ".."}) or "\0" in member.name:
            raise _damaged(sha256, f"{member.name!r} is no name of ours")
        if member.name in found or (above and not (above in found and found[above].isdir())):
            raise _damaged(sha256, f"{member.name!r} is out of its place")
        if member.issym():
            target = os.path.normpath(os.path.join(above, member.linkname))
            if os.path.isabs(target) or target.partition("/")[0] == "..":
                raise _damaged(sha256, f"its link {member.name} leads out of it")
        elif not (member.isdir() or member.type in (tarfile.REGTYPE, tarfile.AREGTYPE)):
            raise _damaged(sha256, f"{member.name!r} is neither file nor folder nor link")
        found[member.name] = member
        if len(found) > ENTRY_LIMIT:
            raise _damaged(sha256, f"it holds more than {ENTRY_LIMIT} files and folders")
    if limit_bytes is not None and sum(member.size for member in found.values()) > limit_bytes:
        raise _too_large(sha256, limit_bytes)
    return found


def _write(tar: tarfile.TarFile, member: tarfile.TarInfo, path: Path) -> None:
    source = tar.extractfile(member)
    assert source is not None
    mode = 0o755 if member.mode & stat.S_IXUSR else 0o644
    with open(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, mode), "wb") as file:
        while chunk := source.read(_CHUNK_BYTES):
            file.write(chunk)


def _snapshot(sha256: str, members: dict[str, tarfile.TarInfo]) -> Snapshot:
    files = [member for member in members.values() if not (member.isdir() or member.issym())]
    return Snapshot(sha256=sha256, bytes=sum(member.size for member in files), files=len(files))


def _damaged(sha256: str, what: str) -> SnapshotDamaged:
    return SnapshotDamaged(f"code {sha256[:12]}: is damaged: {what}; submit the job again")


def _too_large(sha256: str, limit_bytes: int) -> SnapshotDamaged:
    limit = format_bytes(limit_bytes)
    return SnapshotDamaged(f"code {sha256[:12]}: holds more than {limit}; {WAY_OUT}")
