"""The way of a job's code from the user's folder to the storage: packed, asked for, sent, kept."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any, cast

import httpx
import pytest
from fastapi.testclient import TestClient

from dovetail.api.app import PREFIX, create_app
from dovetail.cli.main import main
from dovetail.client import Client
from dovetail.service.code import CodeShelf
from dovetail.service.contract import Service
from dovetail_jobs.errors import DovetailError, NotFound, SpecError, UserError
from dovetail_jobs.load import load_data
from dovetail_jobs.snapshot.archive import Snapshot, largest_archive_bytes, pack
from dovetail_jobs.snapshot.limits import LIMIT_BYTES
from dovetail_jobs.snapshot.workdir import survey
from dovetail_workers import keys
from dovetail_workers.storage.local import LocalStorage
from helpers.fake_server import TOKEN
from helpers.fake_service import FakeService
from helpers.faulty_storage import RefusingStorage
from helpers.trees import write_tree

FAMILY = {"name": "own", "family": "mine", "train": {"steps": 1}}
MINE = b"def build(params, context): ...\n"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    folder = tmp_path / "job"
    write_tree(folder, {"hello.yaml": b"name: hello\nscript: python train.py\n", "train.py": b"1"})
    return folder


@pytest.fixture
def storage(tmp_path: Path) -> LocalStorage:
    return LocalStorage(tmp_path / "storage")


@pytest.fixture
def shelf(storage: LocalStorage) -> CodeShelf:
    return CodeShelf(storage, LIMIT_BYTES)


def packed(folder: Path) -> tuple[Snapshot, Path]:
    archive = folder.with_suffix(".tar.gz")
    archive.unlink(missing_ok=True)
    return pack(survey(folder), archive), archive


class Cli:
    def __init__(self, capfd: pytest.CaptureFixture[str]) -> None:
        self._capfd = capfd

    def __call__(self, *arguments: str | Path) -> tuple[int, str, str]:
        self._capfd.readouterr()
        code = main([str(argument) for argument in arguments])
        said = self._capfd.readouterr()
        return code, said.out, said.err


@pytest.fixture
def dovetail(
    service: FakeService,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> Cli:
    monkeypatch.setenv("DOVETAIL_HOME", str(tmp_path / "job" / ".demo"))
    monkeypatch.setenv("DOVETAIL_URL", service.url)
    monkeypatch.setenv("DOVETAIL_TOKEN", TOKEN)
    return Cli(capfd)


def test_a_submitted_job_has_the_code_of_its_folder(
    dovetail: Cli, service: FakeService, folder: Path
) -> None:
    code, out, err = dovetail("submit", folder / "hello.yaml", "--json")
    assert (code, err) == (0, "submitted hello as job0\n")
    snapshot, _ = packed(folder)
    assert json.loads(out)["code"] == snapshot.sha256
    assert service.uploads == [snapshot.sha256]
    shown = dovetail("show", "hello")[1].splitlines()
    assert f"code      {snapshot.sha256[:12]}" in shown


def test_unchanged_code_is_not_sent_again_and_edited_code_is(
    dovetail: Cli, service: FakeService, folder: Path
) -> None:
    first = json.loads(dovetail("submit", folder / "hello.yaml", "--json")[1])
    again = json.loads(dovetail("submit", folder / "hello.yaml", "--json")[1])
    (folder / "train.py").write_text("2")
    edited = json.loads(dovetail("submit", folder / "hello.yaml", "--json")[1])
    assert first["code"] == again["code"] != edited["code"]
    assert service.uploads == [first["code"], edited["code"]]


def test_two_jobs_of_one_folder_share_its_code(
    dovetail: Cli, service: FakeService, folder: Path
) -> None:
    dovetail("submit", folder / "hello.yaml", folder / "hello.yaml")
    assert len(service.uploads) == 1
    assert {job.code for job in service.records.values()} == set(service.uploads)


def test_a_job_of_a_built_in_family_brings_no_code(
    dovetail: Cli, service: FakeService, folder: Path
) -> None:
    path = folder / "digits.yaml"
    path.write_text(
        "name: digits\nfamily: image_classification\n"
        "params: {dataset: digits, batch_size: 8}\ntrain: {steps: 1}\n"
    )
    assert json.loads(dovetail("submit", path, "--json")[1])["code"] is None
    assert service.uploads == []


def test_the_same_key_with_edited_code_is_another_request(dovetail: Cli, folder: Path) -> None:
    assert dovetail("submit", folder / "hello.yaml", "--key", "monday")[0] == 0
    assert dovetail("submit", folder / "hello.yaml", "--key", "monday")[0] == 0
    (folder / "train.py").write_text("2")
    assert dovetail("submit", folder / "hello.yaml", "--key", "monday")[0] == 6


def test_a_dry_run_says_how_much_code_there_is(
    dovetail: Cli, service: FakeService, folder: Path
) -> None:
    snapshot, _ = packed(folder)
    code, out, _ = dovetail("submit", folder / "hello.yaml", "--dry-run")
    assert code == 0
    assert f"# code: 2 files, 37B, sha256 {snapshot.sha256[:12]}\n" in out
    plan = json.loads(dovetail("submit", folder / "hello.yaml", "--dry-run", "--json")[1])
    assert plan["code"] == {"sha256": snapshot.sha256, "bytes": 37, "files": 2}
    assert service.records == {}


@pytest.mark.parametrize("how", [(), ("--dry-run",)])
def test_code_that_cannot_be_packed_is_refused_before_anything_is_asked(
    dovetail: Cli, service: FakeService, folder: Path, how: tuple[str, ...]
) -> None:
    with (folder / "data.bin").open("wb") as file:
        file.truncate(5 * 2**30)
    (folder / "sub").mkdir()
    (folder / "sub" / "out.yaml").write_text("name: hello\nscript: python train.py\n")
    (folder / "sub" / "data").symlink_to("/etc")
    code, out, err = dovetail("submit", folder / "hello.yaml", folder / "sub" / "out.yaml", *how)
    assert (code, out) == (2, "")
    assert err.splitlines() == [
        f"error: {folder}/hello.yaml  workdir: {folder}  holds more than 100MiB "
        "(5GiB so far: data.bin 5GiB); "
        "add what is no code to .gitignore, or set workdir to a smaller folder",
        f"error: {folder}/sub/out.yaml  workdir: {folder}/sub  data is a link to /etc, outside; "
        "copy it here, ignore it in .gitignore, or name its target by an absolute path",
    ]
    assert (service.uploads, service.records) == ([], {})


def test_the_limit_is_a_setting(
    dovetail: Cli, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("DOVETAIL_CODE_LIMIT", "20B")
    yaml = folder / "hello.yaml"
    code, _, err = dovetail("submit", yaml)
    assert code == 2
    assert "holds more than 20B (36B so far: hello.yaml 36B)" in err
    monkeypatch.setenv("DOVETAIL_CODE_LIMIT", "much")
    assert "DOVETAIL_CODE_LIMIT=much  must be a size" in dovetail("submit", yaml)[2]


def test_the_platforms_own_folder_and_sockets_are_not_sent(
    dovetail: Cli, service: FakeService, folder: Path
) -> None:
    plain, _ = packed(folder)
    write_tree(folder, {".demo/token": b"secret", ".demo/store.sqlite3": b""})
    os.mkfifo(folder / "pipe")
    code, _, err = dovetail("submit", folder / "hello.yaml")
    assert code == 0
    assert err.startswith(f"{folder}: pipe is a pipe and is not part of the code\n")
    assert service.uploads == [plain.sha256]


def test_much_code_is_worth_a_line(dovetail: Cli, folder: Path) -> None:
    (folder / "weights.bin").write_bytes(bytes(11 * 2**20))
    err = dovetail("submit", folder / "hello.yaml")[2]
    assert err.startswith(f"{folder}: 3 files of 11MiB are sent with the job\n")


# The routes


@pytest.fixture
def api(service: FakeService) -> Iterator[httpx.Client]:
    headers = {"Authorization": f"Bearer {TOKEN}"}
    with httpx.Client(base_url=service.url + PREFIX, headers=headers) as client:
        yield client


def test_code_is_asked_for_sent_and_known_then(api: httpx.Client, folder: Path) -> None:
    snapshot, archive = packed(folder)
    place = f"/code/{snapshot.sha256}"
    assert api.get(place).status_code == 404
    sent = api.put(place, content=archive.read_bytes())
    known: dict[str, Any] = {"sha256": snapshot.sha256, "bytes": 37, "files": 2}
    assert (sent.status_code, sent.json()) == (201, known)
    assert (api.get(place).status_code, api.get(place).json()) == (200, known)


@pytest.mark.parametrize("name", ["abc", "A" * 64, "../" + "a" * 61, "a" * 65])
def test_a_name_that_is_no_hash_is_refused(api: httpx.Client, name: str) -> None:
    assert api.put(f"/code/{name}", content=b"").status_code in (404, 422)
    assert api.post(f"/jobs?code={name}", json=FAMILY).status_code == 422


def test_an_archive_of_other_content_is_refused(
    api: httpx.Client, service: FakeService, folder: Path
) -> None:
    _, archive = packed(folder)
    answer = api.put(f"/code/{'0' * 64}", content=archive.read_bytes())
    assert (answer.status_code, answer.json()["code"]) == (400, "refused")
    assert "its content has the sha256" in answer.json()["detail"]
    assert service.archives == {}


def test_more_than_the_limit_is_not_read() -> None:
    service = FakeService()
    app = create_app(cast(Service, service), TOKEN, code_limit_bytes=0)
    with TestClient(app, base_url="http://localhost") as client:
        answer = client.put(
            f"{PREFIX}/code/{'0' * 64}",
            content=bytes(largest_archive_bytes(0) + 1),
            headers={"Authorization": f"Bearer {TOKEN}"},
        )
    assert answer.status_code == 413
    assert f"longer than {largest_archive_bytes(0)} bytes" in answer.json()["detail"]
    assert service.archives == {}


def test_the_client_sends_what_is_not_kept(service: FakeService, folder: Path) -> None:
    client = Client(service.url, TOKEN)
    snapshot, archive = packed(folder)
    assert client.keep_code(snapshot.sha256, archive)
    assert not client.keep_code(snapshot.sha256, archive)
    assert service.archives == {snapshot.sha256: archive.read_bytes()}


# The shelf


def test_what_is_kept_lies_under_its_hash_and_is_found(
    shelf: CodeShelf, storage: LocalStorage, folder: Path
) -> None:
    snapshot, archive = packed(folder)
    with pytest.raises(NotFound):
        shelf.find(snapshot.sha256)
    kept = shelf.keep(snapshot.sha256, archive)
    assert shelf.keep(snapshot.sha256, archive) == kept == shelf.find(snapshot.sha256)
    assert storage.get(keys.code_archive(snapshot.sha256)) == archive.read_bytes()


def test_damaged_code_is_asked_for_again_and_mended(
    shelf: CodeShelf, storage: LocalStorage, folder: Path
) -> None:
    snapshot, archive = packed(folder)
    shelf.keep(snapshot.sha256, archive)
    storage.put(keys.code_archive(snapshot.sha256), archive.read_bytes()[:-20])
    with pytest.raises(NotFound):
        shelf.find(snapshot.sha256)
    with pytest.raises(UserError, match="is damaged"):
        shelf.resolve(load_data({"name": "s", "script": "true"}), snapshot.sha256)
    shelf.keep(snapshot.sha256, archive)
    assert shelf.find(snapshot.sha256).files == 2


def test_a_larger_archive_than_the_servers_limit_is_refused(
    storage: LocalStorage, folder: Path
) -> None:
    snapshot, archive = packed(folder)
    with pytest.raises(UserError, match="holds more than 20B"):
        CodeShelf(storage, 20).keep(snapshot.sha256, archive)


def test_a_full_disk_is_told_as_it_is(tmp_path: Path, folder: Path) -> None:
    snapshot, archive = packed(folder)
    storage = RefusingStorage(tmp_path / "storage")
    storage.full = True
    with pytest.raises(DovetailError, match="No space left on device"):
        CodeShelf(storage, LIMIT_BYTES).keep(snapshot.sha256, archive)


def test_a_job_with_code_that_is_not_kept_is_refused(shelf: CodeShelf) -> None:
    with pytest.raises(UserError, match="is not kept here; send it first with PUT"):
        shelf.resolve(load_data({"name": "s", "script": "true"}), "0" * 64)


def test_what_runs_is_what_is_checked(shelf: CodeShelf, folder: Path) -> None:
    """The folder is on another machine, or has been edited since."""
    write_tree(folder, {"mine.py": MINE})
    snapshot, archive = packed(folder)
    shelf.keep(snapshot.sha256, archive)
    spec = load_data({**FAMILY, "workdir": "/on/another/machine"})
    resolved, view = shelf.resolve(spec, snapshot.sha256)
    assert resolved.workdir == "/on/another/machine"
    assert view is not None
    assert view.files == 3
    with pytest.raises(SpecError, match="is no folder"):
        shelf.resolve(spec, None)


def test_a_module_that_gitignore_leaves_out_is_missed_before_it_runs(
    shelf: CodeShelf, folder: Path
) -> None:
    write_tree(folder, {"acme/mine.py": MINE, ".gitignore": b"mine.py"})
    snapshot, archive = packed(folder)
    shelf.keep(snapshot.sha256, archive)
    spec = load_data({**FAMILY, "family": "acme.mine", "workdir": str(folder)})
    with pytest.raises(SpecError) as caught:
        shelf.resolve(spec, snapshot.sha256)
    assert str(caught.value) == (
        f"family: acme.mine  is no module in the code of {folder} (without what .gitignore names) "
        "or on the Python path; correct its name or set workdir"
    )
