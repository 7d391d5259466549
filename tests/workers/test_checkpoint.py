"""A checkpoint is whole or it does not exist."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dovetail_jobs.errors import UserError
from dovetail_workers import checkpoint
from dovetail_workers.keys import checkpoint_prefix, checkpoints_prefix
from dovetail_workers.storage.local import LocalStorage

ALL = checkpoints_prefix("job")
PARTS = {"models.pt": b"weights" * 100, "loop.pt": b"position"}


@pytest.fixture
def storage(tmp_path: Path) -> LocalStorage:
    return LocalStorage(tmp_path / "storage")


def save(storage: LocalStorage, step: int, attempt: int = 1) -> checkpoint.Checkpoint:
    return checkpoint.save(storage, checkpoint_prefix("job", step, attempt), step, "train", PARTS)


def keys(storage: LocalStorage) -> list[str]:
    return [found.key for found in storage.list("")]


def test_a_saved_checkpoint_is_found_with_its_parts(storage: LocalStorage) -> None:
    saved = save(storage, 100)
    found = checkpoint.newest(storage, [ALL])
    assert found == saved
    assert found is not None
    assert (found.step, found.manifest.phase, found.bytes) == (100, "train", 708)
    assert {name: checkpoint.read(storage, found, name) for name in PARTS} == PARTS
    assert set(found.manifest.versions) == {"dovetail", "torch"}


def test_the_manifest_is_written_last_and_only_once(storage: LocalStorage) -> None:
    class Recording(LocalStorage):
        written: list[str] = []  # noqa: RUF012

        def put(self, key: str, data: bytes | Path) -> None:
            super().put(key, data)
            self.written.append(key)

        def create(self, key: str, data: bytes) -> None:
            super().create(key, data)
            self.written.append(key)

    recording = Recording(Path(storage.uri("")))
    save(recording, 100)
    assert recording.written[-1] == "jobs/job/checkpoints/0000000100-1/manifest.json"
    with pytest.raises(UserError, match=r"checkpoint of step 100: .*exists already"):
        save(recording, 100)
    assert len(recording.written) == len(PARTS) + 1


def test_parts_without_a_manifest_are_no_checkpoint(storage: LocalStorage) -> None:
    storage.put(checkpoint_prefix("job", 100, 1) + "parts/models.pt", b"half")
    said: list[checkpoint.Skipped] = []
    assert checkpoint.newest(storage, [ALL], said.append) is None
    assert said == []


def flip(storage: LocalStorage, prefix: str) -> None:
    data = bytearray(storage.get(prefix + "parts/models.pt"))
    data[50] ^= 1
    storage.put(prefix + "parts/models.pt", bytes(data))


def cut(storage: LocalStorage, prefix: str) -> None:
    storage.put(prefix + "parts/models.pt", storage.get(prefix + "parts/models.pt", 0, 699))


def lose(storage: LocalStorage, prefix: str) -> None:
    storage.delete(prefix + "parts/loop.pt")


def tear(storage: LocalStorage, prefix: str) -> None:
    storage.put(prefix + "manifest.json", storage.get(prefix + "manifest.json", 0, 40))


def forget(storage: LocalStorage, prefix: str) -> None:
    manifest = json.loads(storage.get(prefix + "manifest.json"))
    del manifest["step"]
    storage.put(prefix + "manifest.json", json.dumps(manifest).encode())


@pytest.mark.parametrize(
    ("damage", "sentence"),
    [
        (flip, "models.pt does not have the sha256 that its manifest says"),
        (cut, "models.pt has 699 bytes; its manifest says 700"),
        (lose, "loop.pt is missing"),
        (tear, "manifest.json: Invalid JSON"),
        (forget, "manifest.json: step Field required"),
    ],
)
def test_a_damaged_checkpoint_is_named_and_the_one_before_serves(
    storage: LocalStorage, damage: Callable[[LocalStorage, str], None], sentence: str
) -> None:
    older, newer = save(storage, 100), save(storage, 200)
    damage(storage, newer.prefix)
    said: list[checkpoint.Skipped] = []
    assert checkpoint.newest(storage, [ALL], said.append) == older
    assert len(said) == 1
    assert str(said[0]).startswith(
        f"checkpoint {newer.prefix} is damaged and is skipped: {sentence}"
    )
    assert (said[0].attempt, said[0].step) == (1, 200)


def test_a_later_attempt_supersedes_an_earlier_one(storage: LocalStorage) -> None:
    save(storage, 200, attempt=1)
    continued = save(storage, 150, attempt=2)
    assert checkpoint.newest(storage, [ALL]) == continued


def test_prefixes_are_tried_in_their_order(storage: LocalStorage) -> None:
    origin = save(storage, 300)
    assert checkpoint.newest(storage, ["jobs/new/checkpoints/", ALL]) == origin
    assert checkpoint.newest(storage, [origin.prefix]) == origin
    own = checkpoint.save(storage, checkpoint_prefix("new", 310, 1), 310, "train", PARTS)
    assert checkpoint.newest(storage, ["jobs/new/checkpoints/", ALL]) == own


def test_retention_keeps_the_newest_and_clears_what_is_older(storage: LocalStorage) -> None:
    first, second, third = (save(storage, step) for step in (100, 200, 300))
    storage.put(checkpoint_prefix("job", 150, 1) + "parts/models.pt", b"never finished")
    storage.put(checkpoint_prefix("job", 400, 1) + "parts/models.pt", b"being written")
    assert checkpoint.retain(storage, ALL, 2) == [first.prefix]
    left = {key.split("/")[3] for key in keys(storage)}
    assert left == {"0000000200-1", "0000000300-1", "0000000400-1"}
    assert checkpoint.retain(storage, ALL, 2) == []
    assert checkpoint.newest(storage, [ALL]) == third
    assert checkpoint.retain(storage, ALL, 1) == [second.prefix]


def test_retention_interrupted_at_any_delete_leaves_no_false_checkpoint(
    storage: LocalStorage,
) -> None:
    class Interrupted(Exception):
        pass

    class Fragile(LocalStorage):
        left = 0

        def delete(self, key: str) -> None:
            if self.left == 0:
                raise Interrupted
            self.left -= 1
            super().delete(key)

    fragile = Fragile(Path(storage.uri("")))
    for deletes in range(3):
        save(storage, 100 + deletes), save(storage, 200 + deletes)
        fragile.left = deletes
        with pytest.raises(Interrupted):
            checkpoint.retain(fragile, ALL, 1)
        said: list[checkpoint.Skipped] = []
        found = checkpoint.newest(storage, [ALL], said.append)
        assert found is not None
        assert found.step == 200 + deletes
        assert said == []
        checkpoint.retain(storage, ALL, 1)


def test_a_folder_comes_back_as_it_was(storage: LocalStorage, tmp_path: Path) -> None:
    folder, back = tmp_path / "written", tmp_path / "back"
    (folder / "shards" / "deep").mkdir(parents=True)
    (folder / "shards" / "deep" / "0.bin").write_bytes(bytes(range(256)))
    (folder / "manifest.json").write_text("the script's own")
    (folder / "empty").write_bytes(b"")
    (folder / "latest.bin").symlink_to(folder / "shards" / "deep" / "0.bin")
    back.mkdir()
    saved = checkpoint.save_folder(storage, checkpoint_prefix("job", 7, 1), 7, "train", folder)
    checkpoint.fetch_folder(storage, saved, back)
    names = ["empty", "latest.bin", "manifest.json", "shards/deep/0.bin"]
    files = [path.relative_to(back).as_posix() for path in back.rglob("*") if path.is_file()]
    assert sorted(files) == names
    for name in names:
        assert (back / name).read_bytes() == (folder / name).read_bytes()


def test_a_folder_with_a_link_that_leaves_it_is_refused(
    storage: LocalStorage, tmp_path: Path
) -> None:
    (tmp_path / "secret").write_text("x")
    for number, target in enumerate((tmp_path / "secret", tmp_path)):
        folder = tmp_path / f"folder-{number}"
        folder.mkdir()
        (folder / "weights").write_bytes(b"w")
        (folder / "link").symlink_to(target)
        with pytest.raises(UserError, match="outside; copy it instead"):
            checkpoint.save_folder(storage, checkpoint_prefix("job", 1, 1), 1, "train", folder)
    assert keys(storage) == []


def test_a_folder_without_files_is_refused(storage: LocalStorage, tmp_path: Path) -> None:
    (tmp_path / "folder" / "sub").mkdir(parents=True)
    prefix = checkpoint_prefix("job", 1, 1)
    with pytest.raises(UserError, match="holds no files"):
        checkpoint.save_folder(storage, prefix, 1, "train", tmp_path / "folder")
    with pytest.raises(UserError, match="no such folder"):
        checkpoint.save_folder(storage, prefix, 1, "train", tmp_path / "nowhere")


def test_a_part_that_would_leave_the_folder_is_not_written(
    storage: LocalStorage, tmp_path: Path
) -> None:
    saved = save(storage, 1)
    part = saved.manifest.parts["loop.pt"]
    manifest = saved.manifest.model_copy(update={"parts": {"../escaped": part}})
    (tmp_path / "into").mkdir()
    with pytest.raises(checkpoint.CheckpointDamaged, match="outside"):
        checkpoint.fetch_folder(
            storage,
            checkpoint.Checkpoint(prefix=saved.prefix, manifest=manifest),
            tmp_path / "into",
        )
    assert not (tmp_path / "escaped").exists()


@settings(max_examples=40)
@given(
    saves=st.lists(st.tuples(st.integers(1, 3), st.integers(1, 50)), unique=True, max_size=8),
    keep=st.integers(1, 4),
)
def test_after_retention_the_newest_are_exactly_those_kept(
    tmp_path_factory: pytest.TempPathFactory, saves: list[tuple[int, int]], keep: int
) -> None:
    storage = LocalStorage(tmp_path_factory.mktemp("storage"))
    prefixes = {
        age: checkpoint.save(
            storage, checkpoint_prefix("job", age[1], age[0]), age[1], "train", {"p": b"x"}
        ).prefix
        for age in saves
    }
    expected = sorted(saves)[:-keep]
    assert checkpoint.retain(storage, ALL, keep) == [prefixes[age] for age in expected]
    left = {key.rpartition("parts/")[0] for key in keys(storage) if "parts/" in key}
    assert left == {prefixes[age] for age in sorted(saves)[-keep:]}
