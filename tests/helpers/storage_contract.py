"""What every storage must do: a test class inherits `StorageContract` and gives `storage`."""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from dovetail_workers.storage.protocol import (
    KeyExists,
    KeyNotFound,
    ObjectInfo,
    Storage,
    StorageError,
)

RACERS = 8


class StorageContract:
    @pytest.fixture
    def storage(self) -> Storage:
        raise NotImplementedError("a contract needs the storage that it holds for")

    def test_what_was_put_is_read_back(self, storage: Storage) -> None:
        storage.put("jobs/a/log", b"first")
        assert storage.get("jobs/a/log") == b"first"
        assert storage.stat("jobs/a/log") == ObjectInfo("jobs/a/log", 5)

    def test_a_put_replaces_the_whole_object(self, storage: Storage) -> None:
        storage.put("key", b"a long first version")
        storage.put("key", b"short")
        assert storage.get("key") == b"short"

    def test_an_empty_object_is_an_object(self, storage: Storage) -> None:
        storage.put("empty", b"")
        assert storage.get("empty") == b""
        assert list(storage.list("")) == [ObjectInfo("empty", 0)]

    def test_a_file_can_be_put(self, storage: Storage, tmp_path: Path) -> None:
        file = tmp_path / "weights.bin"
        file.write_bytes(bytes(range(256)) * 9000)
        storage.put("weights", file)
        assert storage.get("weights") == file.read_bytes()

    def test_a_file_that_does_not_exist_is_named_and_leaves_the_old_object(
        self, storage: Storage, tmp_path: Path
    ) -> None:
        storage.put("weights", b"old")
        with pytest.raises(StorageError, match=r"weights.*missing\.bin"):
            storage.put("weights", tmp_path / "missing.bin")
        assert storage.get("weights") == b"old"

    @pytest.mark.parametrize(
        ("start", "length", "expected"),
        [
            (0, None, b"0123456789"),
            (4, None, b"456789"),
            (2, 3, b"234"),
            (8, 100, b"89"),
            (10, None, b""),
            (50, 5, b""),
            (3, 0, b""),
        ],
    )
    def test_a_range_is_short_at_the_end(
        self, storage: Storage, start: int, length: int | None, expected: bytes
    ) -> None:
        storage.put("digits", b"0123456789")
        assert storage.get("digits", start, length) == expected

    def test_a_missing_key_is_named(self, storage: Storage) -> None:
        storage.put("folder/object", b"x")
        for key in ("nothing", "folder", "folder/object/below"):
            with pytest.raises(KeyNotFound, match=key):
                storage.get(key)
            with pytest.raises(KeyNotFound, match=key):
                storage.stat(key)

    def test_create_refuses_a_key_that_exists(self, storage: Storage) -> None:
        storage.create("manifest", b"one")
        with pytest.raises(KeyExists, match="manifest"):
            storage.create("manifest", b"two")
        assert storage.get("manifest") == b"one"

    def test_create_may_follow_a_delete(self, storage: Storage) -> None:
        storage.create("a/b/c", b"one")
        storage.delete("a/b/c")
        storage.create("a/b/c", b"two")
        assert storage.get("a/b/c") == b"two"

    def test_of_racing_creates_exactly_one_wins(self, storage: Storage) -> None:
        for round_number in range(10):
            key = f"race/{round_number}/manifest"
            gate = threading.Barrier(RACERS)

            def attempt(racer: int, key: str = key, gate: threading.Barrier = gate) -> bytes | None:
                data = b"%d" % racer * 10_000
                gate.wait()
                try:
                    storage.create(key, data)
                except KeyExists:
                    return None
                return data

            with ThreadPoolExecutor(RACERS) as pool:
                winners = [data for data in pool.map(attempt, range(RACERS)) if data is not None]
            assert winners == [storage.get(key)]

    def test_a_reader_beside_writers_sees_only_whole_objects(self, storage: Storage) -> None:
        versions = [bytes([letter]) * 50_000 for letter in b"abcd"]
        storage.put("shared", versions[0])
        gate = threading.Barrier(len(versions) + 1)

        def write(data: bytes) -> None:
            gate.wait()
            for _ in range(5):
                storage.put("shared", data)

        with ThreadPoolExecutor(len(versions)) as pool:
            writers = [pool.submit(write, data) for data in versions]
            gate.wait()
            seen = {storage.get("shared")}
            while not all(writer.done() for writer in writers):
                seen.add(storage.get("shared"))
            for writer in writers:
                writer.result()
        assert seen <= set(versions)

    def test_creates_and_deletes_in_one_folder_do_not_disturb_each_other(
        self, storage: Storage
    ) -> None:
        gate = threading.Barrier(RACERS)

        def come_and_go(racer: int) -> None:
            gate.wait()
            for turn in range(10):
                storage.create(f"deep/er/folder/{racer}", b"%d" % turn)
                storage.delete(f"deep/er/folder/{racer}")
            storage.create(f"deep/er/folder/{racer}", b"stays")

        with ThreadPoolExecutor(RACERS) as pool:
            list(pool.map(come_and_go, range(RACERS)))
        assert [found.key for found in storage.list("deep/")] == [
            f"deep/er/folder/{racer}" for racer in range(RACERS)
        ]

    def test_a_list_is_in_key_order_and_keeps_to_its_prefix(self, storage: Storage) -> None:
        keys = ["a.txt", "a/x", "a/y/z", "a0", "ab/c", "b", "é"]
        for key in reversed(keys):
            storage.put(key, key.encode())
        expected = [ObjectInfo(key, len(key.encode())) for key in keys]
        assert list(storage.list("")) == expected
        assert [found.key for found in storage.list("a")] == keys[:5]
        assert [found.key for found in storage.list("a/")] == ["a/x", "a/y/z"]
        assert [found.key for found in storage.list("a/y/z")] == ["a/y/z"]
        assert list(storage.list("a/q")) == []
        assert list(storage.list("nothing/here/")) == []

    def test_delete_removes_and_forgives_what_is_not_there(self, storage: Storage) -> None:
        storage.put("a/b", b"x")
        storage.put("a/c", b"y")
        storage.delete("a/b")
        storage.delete("a/b")
        storage.delete("never/was")
        assert [found.key for found in storage.list("")] == ["a/c"]

    @pytest.mark.parametrize(
        "key", ["", "/etc/passwd", "../up", "a/../b", "a/..", "a//b", "a/", "./a", "a/./b", "a\0b"]
    )
    def test_a_key_that_is_no_key_is_refused(self, storage: Storage, key: str) -> None:
        calls = (
            lambda: storage.put(key, b"x"),
            lambda: storage.create(key, b"x"),
            lambda: storage.get(key),
            lambda: storage.stat(key),
            lambda: storage.delete(key),
        )
        for call in calls:
            with pytest.raises(StorageError, match="is no key"):
                call()
