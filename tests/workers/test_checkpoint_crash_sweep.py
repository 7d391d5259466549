"""A worker that dies at any point of a checkpoint leaves a whole one: the old or the new."""

from __future__ import annotations

import os
import shutil
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dovetail_workers import checkpoint
from dovetail_workers.keys import checkpoint_prefix, checkpoints_prefix
from dovetail_workers.storage.local import LocalStorage
from helpers.faulty_storage import Moment, MortalStorage, in_a_process

ALL = checkpoints_prefix("job")
DIED = 77
KEEP = 2


def parts(step: int) -> dict[str, bytes | Path]:
    return {name: f"{name} at {step} ".encode() * 200 for name in ("models.pt", "deep/loop.pt")}


def save(storage: LocalStorage, step: int, attempt: int) -> None:
    prefix = checkpoint_prefix("job", step, attempt)
    checkpoint.save(storage, prefix, step, "train", parts(step))
    checkpoint.retain(storage, ALL, KEEP)


@pytest.fixture
def before(tmp_path: Path) -> Path:
    """A storage that holds the checkpoints of steps 10 and 20."""
    folder = tmp_path / "before"
    for step in (10, 20):
        save(LocalStorage(folder), step, attempt=1)
    return folder


def copies(before: Path) -> Iterator[Path]:
    number = 0
    while True:
        number += 1
        yield Path(shutil.copytree(before, before.parent / f"copy-{number}"))


def check_what_is_left(folder: Path) -> int:
    """Which step a resume finds; it and its next checkpoint are whole, and nothing else is left."""
    storage, skipped = LocalStorage(folder), list[checkpoint.Skipped]()
    found = checkpoint.newest(storage, [ALL], skipped.append)
    assert skipped == []
    assert found is not None
    assert {name: checkpoint.read(storage, found, name) for name in found.manifest.parts} == parts(
        found.step
    )
    save(storage, found.step + 10, attempt=2)
    last = checkpoint.newest(storage, [ALL])
    assert last is not None
    assert last.prefix == checkpoint_prefix("job", found.step + 10, 2)
    expected = {
        f"{prefix}{name}"
        for prefix in (last.prefix, found.prefix)
        for name in ("manifest.json", "parts/models.pt", "parts/deep/loop.pt")
    }
    assert {item.key for item in storage.list("")} == expected
    return found.step


def test_after_a_crash_at_any_storage_operation_a_resume_finds_a_whole_checkpoint(
    before: Path,
) -> None:
    folders = copies(before)
    recorded = MortalStorage(next(folders))
    save(recorded, 30, attempt=1)
    operations = recorded.operations
    manifest = next(i for i, what in enumerate(operations) if what.startswith("create"))
    assert [what.split()[0] for what in operations] == [
        "stat", "put", "put", "create", "list", "delete", "delete", "delete",
    ]  # fmt: skip
    moments: tuple[Moment, ...] = ("before", "after")
    for number in range(len(operations)):
        for moment in moments:
            storage = MortalStorage(next(folders), number, moment, code=DIED)
            assert in_a_process(lambda: save(storage, 30, attempt=1)) == DIED  # noqa: B023
            is_new = number > manifest or (number, moment) == (manifest, "after")
            assert check_what_is_left(Path(storage.uri(""))) == (30 if is_new else 20)


def die_at(number: int, root: Path, work: Callable[[], object]) -> Callable[[], object]:
    """`work`, ended at the storage's step `number` in the file system: Python tells of each file
    that is opened, named, linked or removed before it happens.
    """

    def doomed() -> None:
        steps = iter(range(number))

        def hook(event: str, arguments: tuple[Any, ...]) -> None:
            names = {str(item) for item in arguments[:2]}
            touches = any(name.startswith(str(root)) for name in names)
            if event in FILE_EVENTS and touches and next(steps, None) is None:
                os._exit(DIED)

        sys.addaudithook(hook)
        work()

    return doomed


FILE_EVENTS = {"open", "os.link", "os.rename", "os.remove", "os.mkdir", "os.rmdir", "os.scandir"}


@pytest.mark.long
def test_after_a_crash_at_any_step_in_the_file_system_a_resume_finds_a_whole_checkpoint(
    before: Path,
) -> None:
    found: list[int] = []
    for number, folder in enumerate(copies(before)):
        storage = LocalStorage(folder)
        code = in_a_process(die_at(number, folder, lambda: save(storage, 30, attempt=1)))  # noqa: B023
        if code == 0:
            break
        assert code == DIED
        found.append(check_what_is_left(folder))
    assert found == sorted(found)
    assert set(found) == {20, 30}
    assert len(found) > 25


@settings(max_examples=60)
@given(data=st.data(), flip=st.integers(1, 255))
def test_a_flipped_byte_is_noticed_or_harmless(
    tmp_path_factory: pytest.TempPathFactory, data: st.DataObject, flip: int
) -> None:
    storage = LocalStorage(tmp_path_factory.mktemp("storage"))
    for step in (10, 20):
        save(storage, step, attempt=1)
    saved = checkpoint.newest(storage, [ALL])
    assert saved is not None
    keys = [item.key for item in storage.list(saved.prefix)]
    key = data.draw(st.sampled_from(keys))
    damaged = bytearray(storage.get(key))
    damaged[data.draw(st.integers(0, len(damaged) - 1))] ^= flip
    storage.put(key, bytes(damaged))
    skipped: list[checkpoint.Skipped] = []
    found = checkpoint.newest(storage, [ALL], skipped.append)
    assert found is not None
    if skipped:
        assert (found.step, [item.step for item in skipped]) == (10, [20])
    else:
        assert found == saved
    assert {name: checkpoint.read(storage, found, name) for name in found.manifest.parts} == parts(
        found.step
    )


def test_every_byte_of_a_manifest_counts(before: Path) -> None:
    storage = LocalStorage(before)
    key = checkpoint_prefix("job", 20, 1) + "manifest.json"
    whole = storage.get(key)
    saved = checkpoint.newest(storage, [ALL])
    noticed = 0
    for place in range(len(whole)):
        storage.put(key, whole[:place] + bytes([whole[place] ^ 1]) + whole[place + 1 :])
        skipped: list[checkpoint.Skipped] = []
        found = checkpoint.newest(storage, [ALL], skipped.append)
        assert found == saved or [item.step for item in skipped] == [20]
        noticed += bool(skipped)
    assert noticed > 0.9 * len(whole)


def test_a_manifest_of_the_first_format_is_still_read(before: Path) -> None:
    storage = LocalStorage(before)
    saved = checkpoint.newest(storage, [ALL])
    assert saved is not None
    old = saved.manifest.model_dump_json(exclude={"sha256"}).replace('"format":2', '"format":1')
    storage.put(saved.prefix + "manifest.json", old.encode())
    found = checkpoint.newest(storage, [ALL])
    assert found is not None
    assert found.manifest.parts == saved.manifest.parts
