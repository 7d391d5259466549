"""Checkpoints in storage: parts first, one create-only manifest last. Without it there is none.

    <prefix>parts/<name>       any number of objects
    <prefix>manifest.json      sizes and sha256 of all of them, step, phase, versions

A later attempt continues what an earlier one left, so checkpoints are ordered by attempt first and
by step second.
"""

from __future__ import annotations

import hashlib
import os
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from pydantic import ValidationError

from dovetail_jobs.errors import UserError
from dovetail_workers.manifest import Manifest, Part, of_parts
from dovetail_workers.reports import CheckpointSkipped
from dovetail_workers.storage.protocol import KeyExists, KeyNotFound, Storage, StorageError

_MANIFEST = "manifest.json"
_PARTS = "parts/"
_CHUNK_BYTES = 8 * 2**20
_KEY = re.compile(
    r"(?P<folder>(?:.*?/)??(?P<step>\d{10,})-(?P<attempt>\d+)/)(?:manifest\.json|parts/.+)"
)


class CheckpointDamaged(Exception):
    """What lies in storage is not what the manifest says; the message says what and how."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Checkpoint:
    """A whole checkpoint; `prefix` is where it lies in storage."""

    prefix: str
    manifest: Manifest

    @property
    def step(self) -> int:
        return self.manifest.step

    @property
    def bytes(self) -> int:
        return sum(part.bytes for part in self.manifest.parts.values())


@dataclass(frozen=True, slots=True, kw_only=True)
class Skipped:
    """A checkpoint that a resume could not use, and why."""

    prefix: str
    attempt: int
    step: int
    cause: str

    def __str__(self) -> str:
        return f"checkpoint {self.prefix} is damaged and is skipped: {self.cause}"

    def report(self, instead: Checkpoint | None) -> CheckpointSkipped:
        """The word for the journal; `instead` is what the resume found after all."""
        return CheckpointSkipped(
            key=self.prefix,
            step=self.step,
            attempt=self.attempt,
            cause=self.cause,
            instead_step=None if instead is None else instead.step,
        )


def save(
    storage: Storage, prefix: str, step: int, phase: str, parts: Mapping[str, bytes | Path]
) -> Checkpoint:
    """Write all parts, then the manifest. Raises UserError when `prefix` holds a checkpoint, and
    StorageError when the storage refuses: then what was written is taken back, which makes room.
    """
    if _exists(storage, prefix + _MANIFEST):
        raise UserError(f"checkpoint of step {step}: {prefix} exists already; save each step once")
    written: dict[str, Part] = {}
    try:
        for name, data in parts.items():
            storage.put(prefix + _PARTS + name, data)
            written[name] = _describe(data)
        manifest = of_parts(step, phase, written)
        storage.create(prefix + _MANIFEST, manifest.to_json())
    except KeyExists:
        raise
    except StorageError:
        with suppress(StorageError):
            _take_back(storage, prefix, parts)
        raise
    return Checkpoint(prefix=prefix, manifest=manifest)


def newest(
    storage: Storage, prefixes: Sequence[str], on_skipped: Callable[[Skipped], None] = print
) -> Checkpoint | None:
    """The newest checkpoint that verifies, below the first of `prefixes` that has one.

    `on_skipped` gets each that is damaged and therefore skipped, newest first.
    """
    for prefix in prefixes:
        for folder in reversed(_folders(storage, prefix)):
            if not folder.whole:
                continue
            try:
                return _verified(storage, folder.prefix)
            except CheckpointDamaged as damage:
                attempt, step = folder.age
                on_skipped(
                    Skipped(prefix=folder.prefix, attempt=attempt, step=step, cause=str(damage))
                )
    return None


def read(storage: Storage, checkpoint: Checkpoint, name: str) -> bytes:
    """A part, checked again; raises CheckpointDamaged."""
    return b"".join(_chunks(storage, checkpoint.prefix, name, checkpoint.manifest.parts[name]))


def fetch(
    storage: Storage, checkpoint: Checkpoint, name: str, write: Callable[[bytes], object]
) -> None:
    """Hand a part to `write` piece by piece, checked again; raises CheckpointDamaged."""
    for chunk in _chunks(storage, checkpoint.prefix, name, checkpoint.manifest.parts[name]):
        write(chunk)


def retain(storage: Storage, prefix: str, keep: int) -> list[str]:
    """Remove all below `prefix` that is older than its newest `keep` checkpoints.

    A manifest goes before its parts, so that what is half removed is no checkpoint. Returns the
    prefixes of the checkpoints that went. Parts that never got a manifest go silently once a newer
    checkpoint is whole: nobody writes them any more.
    """
    folders = _folders(storage, prefix)
    kept = [folder for folder in folders if folder.whole][-keep:]
    removed = []
    for folder in folders:
        if kept and folder.age < kept[0 if folder.whole else -1].age:
            if folder.whole:
                storage.delete(folder.prefix + _MANIFEST)
                removed.append(folder.prefix)
            for key in folder.parts:
                storage.delete(key)
    return removed


def save_folder(storage: Storage, prefix: str, step: int, phase: str, folder: Path) -> Checkpoint:
    """Save the files of a local folder; raises UserError for none, and for a link out of it."""
    return save(storage, prefix, step, phase, _files(folder))


def fetch_folder(storage: Storage, checkpoint: Checkpoint, into: Path) -> None:
    """Write the parts as files below the folder `into`; raises CheckpointDamaged."""
    root = into.resolve()
    for name, part in checkpoint.manifest.parts.items():
        path = (root / name).resolve()
        if not path.is_relative_to(root) or path == root:
            raise CheckpointDamaged(f"part {name!r} lies outside the checkpoint's folder")
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.open("wb") as file:
            for chunk in _chunks(storage, checkpoint.prefix, name, part):
                file.write(chunk)


@dataclass(frozen=True, slots=True, kw_only=True)
class _Folder:
    """What lies under one checkpoint prefix; `whole` where a manifest does."""

    prefix: str
    age: tuple[int, int]
    whole: bool
    parts: tuple[str, ...]


def _folders(storage: Storage, prefix: str) -> list[_Folder]:
    """Oldest first."""
    found: dict[str, tuple[tuple[int, int], list[str]]] = {}
    for item in storage.list(prefix):
        if match := _KEY.fullmatch(item.key):
            age = (int(match["attempt"]), int(match["step"]))
            found.setdefault(match["folder"], (age, []))[1].append(item.key)
    folders = [
        _Folder(
            prefix=folder,
            age=age,
            whole=folder + _MANIFEST in keys,
            parts=tuple(key for key in keys if key != folder + _MANIFEST),
        )
        for folder, (age, keys) in found.items()
    ]
    return sorted(folders, key=lambda folder: folder.age)


def _verified(storage: Storage, prefix: str) -> Checkpoint:
    try:
        manifest = Manifest.model_validate_json(storage.get(prefix + _MANIFEST))
    except KeyNotFound:
        # The retention of an attempt that was given up may still run beside us.
        raise CheckpointDamaged(f"{_MANIFEST} was removed meanwhile") from None
    except ValidationError as error:
        first = error.errors()[0]
        place = "".join(f"{step} " for step in first["loc"])
        raise CheckpointDamaged(f"{_MANIFEST}: {place}{first['msg']}") from None
    for name, part in manifest.parts.items():
        for _ in _chunks(storage, prefix, name, part):
            pass
    return Checkpoint(prefix=prefix, manifest=manifest)


def _take_back(storage: Storage, prefix: str, parts: Iterable[str]) -> None:
    """The manifest first: a create that failed may still have written it."""
    storage.delete(prefix + _MANIFEST)
    for name in parts:
        storage.delete(prefix + _PARTS + name)


def _chunks(storage: Storage, prefix: str, name: str, part: Part) -> Iterator[bytes]:
    """A part piece by piece; after the last, its digest is compared."""
    key = prefix + _PARTS + name
    digest = hashlib.sha256()
    try:
        size = storage.stat(key).bytes
        if size != part.bytes:
            raise CheckpointDamaged(f"{name} has {size} bytes; its manifest says {part.bytes}")
        for start in range(0, size, _CHUNK_BYTES):
            chunk = storage.get(key, start, _CHUNK_BYTES)
            digest.update(chunk)
            yield chunk
    except KeyNotFound:
        raise CheckpointDamaged(f"{name} is missing") from None
    if digest.hexdigest() != part.sha256:
        raise CheckpointDamaged(f"{name} does not have the sha256 that its manifest says")


def _describe(data: bytes | Path) -> Part:
    if isinstance(data, bytes):
        return Part(bytes=len(data), sha256=hashlib.sha256(data).hexdigest())
    with data.open("rb") as file:
        sha256 = hashlib.file_digest(file, "sha256").hexdigest()
        return Part(bytes=file.tell(), sha256=sha256)


def _files(folder: Path) -> dict[str, Path]:
    """Name → file of all files below `folder`; a link counts as what it points to, inside."""
    if not folder.is_dir():
        raise UserError(f"checkpoint {folder}: no such folder; write it before it is reported")
    root = folder.resolve()
    files: dict[str, Path] = {}
    for above, folders, names in os.walk(root):
        for name in sorted(folders + names):
            path = Path(above, name)
            target = path.resolve()
            if not target.is_relative_to(root):
                raise UserError(f"checkpoint {path}: links to {target}, outside; copy it instead")
            if path.is_symlink() and not target.is_file():
                raise UserError(f"checkpoint {path}: a link to {target}; only links to files work")
            if path.is_file():
                files[path.relative_to(root).as_posix()] = target
    if not files:
        raise UserError(f"checkpoint {folder}: holds no files; write them before it is reported")
    return dict(sorted(files.items()))


def _exists(storage: Storage, key: str) -> bool:
    try:
        storage.stat(key)
    except KeyNotFound:
        return False
    return True
