"""The local folder as a storage: the contract, and what is its own."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from dovetail_jobs.errors import UserError
from dovetail_workers.storage.local import LocalStorage
from dovetail_workers.storage.open import open_storage
from dovetail_workers.storage.protocol import KeyNotFound, Storage, StorageError
from helpers.storage_contract import StorageContract


class TestLocalStorage(StorageContract):
    @pytest.fixture
    def storage(self, tmp_path: Path) -> Storage:
        return LocalStorage(tmp_path / "objects")


def test_a_writer_killed_between_write_and_name_leaves_nothing_to_see(tmp_path: Path) -> None:
    program = (
        "import os, signal, sys; from pathlib import Path;"
        "from dovetail_workers.storage.local import LocalStorage;"
        "os.link = os.replace = lambda *_: os.kill(os.getpid(), signal.SIGKILL);"
        "getattr(LocalStorage(Path(sys.argv[1])), sys.argv[2])('a/manifest', b'x' * 100000)"
    )
    storage = LocalStorage(tmp_path)
    for method in ("put", "create"):
        ended = subprocess.run([sys.executable, "-c", program, str(tmp_path), method], check=False)
        assert ended.returncode == -signal.SIGKILL
    leftovers = [path for path in tmp_path.rglob("*") if path.is_file()]
    assert len(leftovers) == 2
    assert list(storage.list("")) == []
    with pytest.raises(KeyNotFound):
        storage.get("a/manifest")
    storage.create("a/manifest", b"whole")
    assert storage.get("a/manifest") == b"whole"


def test_temporary_files_cannot_be_named_by_a_key(tmp_path: Path) -> None:
    storage = LocalStorage(tmp_path)
    (tmp_path / ".tmp" / "half").write_bytes(b"half")
    with pytest.raises(StorageError, match="is no key"):
        storage.get(".tmp/half")
    storage.put("a/.tmp/b", b"a part deeper down may have that name")
    assert [found.key for found in storage.list("")] == ["a/.tmp/b"]


def test_what_a_killed_writer_left_goes_a_day_later(tmp_path: Path) -> None:
    LocalStorage(tmp_path)
    old, young = (tmp_path / ".tmp" / name for name in ("old", "young"))
    for path in (old, young):
        path.write_bytes(b"half")
    yesterday = time.time() - 90_000
    os.utime(old, (yesterday, yesterday))
    LocalStorage(tmp_path)
    assert list((tmp_path / ".tmp").iterdir()) == [young]


def test_a_write_that_finds_no_room_names_the_key_and_the_way_out(tmp_path: Path) -> None:
    program = (
        "import resource, signal, sys; from pathlib import Path;"
        "from dovetail_workers.storage.local import LocalStorage;"
        "signal.signal(signal.SIGXFSZ, signal.SIG_IGN);"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (1000, 1000));"
        "LocalStorage(Path(sys.argv[1])).put('a/model.pt', b'x' * 5000)"
    )
    storage = LocalStorage(tmp_path)
    storage.put("a/model.pt", b"old")
    ended = subprocess.run(
        [sys.executable, "-c", program, str(tmp_path)], check=False, capture_output=True, text=True
    )
    assert "StorageError: cannot write a/model.pt: File too large" in ended.stderr
    assert storage.get("a/model.pt") == b"old"
    assert list((tmp_path / ".tmp").iterdir()) == []


def test_a_key_below_an_object_is_an_error_that_names_it(tmp_path: Path) -> None:
    storage = LocalStorage(tmp_path)
    storage.put("a", b"object")
    with pytest.raises(StorageError, match="cannot write a/b: Not a directory"):
        storage.put("a/b", b"x")


def test_a_listing_does_not_leave_the_folder(tmp_path: Path) -> None:
    (tmp_path / "outside").write_bytes(b"secret")
    storage = LocalStorage(tmp_path / "objects")
    (tmp_path / "objects" / "door").symlink_to(tmp_path, target_is_directory=True)
    with pytest.raises(StorageError, match="no prefix"):
        list(storage.list("../"))
    assert list(storage.list("/")) == []
    assert all(not found.key.startswith("door/") for found in storage.list(""))


def test_a_root_that_is_a_file_is_refused(tmp_path: Path) -> None:
    file = tmp_path / "file"
    file.write_text("x")
    with pytest.raises(StorageError, match="cannot keep objects in"):
        LocalStorage(file)


def test_deleting_the_last_object_removes_its_empty_folders(tmp_path: Path) -> None:
    storage = LocalStorage(tmp_path)
    storage.put("a/b/c", b"x")
    storage.delete("a/b/c")
    assert os.listdir(tmp_path) == [".tmp"]


def test_a_storage_opens_by_path_and_by_file_address(tmp_path: Path) -> None:
    folder = tmp_path / "with space"
    open_storage(str(folder)).put("key", b"x")
    again = open_storage(folder.as_uri())
    assert again.get("key") == b"x"
    assert again.uri("key") == str(folder / "key")


@pytest.mark.parametrize("uri", ["s3://bucket/prefix", "ftp://host/x", "file://host/x"])
def test_other_addresses_are_refused_with_a_way_out(uri: str) -> None:
    with pytest.raises(UserError, match=f"storage {uri}: .*folder"):
        open_storage(uri)
