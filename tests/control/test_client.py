"""The client: errors come back as they were raised; a local server is started once, by event."""

from __future__ import annotations

import json
import os
import signal
import sys
import threading
from pathlib import Path
from typing import Any

import pytest

import helpers.fake_server
from dovetail import local_server
from dovetail.client import Client
from dovetail.local_server import ensure_server, find_server, wait_until_gone
from dovetail.service.contract import JobView, RayStatus
from dovetail.settings import Settings
from dovetail_jobs.errors import (
    AuthError,
    Conflict,
    DovetailError,
    NotFound,
    Problem,
    SpecError,
    Unreachable,
    UserError,
)
from dovetail_jobs.spec import JobSpec
from helpers.fake_server import TOKEN
from helpers.fake_service import FakeService, job_view

SPEC = JobSpec(name="hello", script="true").to_json()


@pytest.fixture
def client(service: FakeService) -> Client:
    return Client(service.url, TOKEN, user="ada")


@pytest.fixture
def settings(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Settings:
    monkeypatch.setenv("PYTHONPATH", str(Path(helpers.fake_server.__file__).parents[1]))
    return Settings.from_environment({"DOVETAIL_HOME": str(tmp_path / "home")})


def command(program: str, *deed: str) -> tuple[str, ...]:
    return (sys.executable, "-m", f"helpers.{program}", *deed)


@pytest.mark.parametrize(
    "error",
    [
        UserError("params: nothing given; give some"),
        NotFound("no job ünknown; `dovetail ps` lists them"),
        Conflict("it is over; submit it again"),
        Unreachable("the cluster is away; wait"),
        DovetailError("failed"),
        SpecError([Problem(key="train.steps", rule="must be at least 1", value="0"),
                   Problem(key="name", rule="is required", file="a.yaml", line=3)]),
    ],
    ids=lambda error: type(error).__name__,
)  # fmt: skip
def test_an_error_of_the_service_comes_back_whole(
    client: Client, service: FakeService, monkeypatch: pytest.MonkeyPatch, error: DovetailError
) -> None:
    def refuse(ref: str) -> JobView:
        raise error

    monkeypatch.setattr(service, "job", refuse)
    with pytest.raises(DovetailError) as caught:
        client.job("k3f9qz")
    assert type(caught.value) is type(error)
    assert caught.value.message == error.message
    assert getattr(caught.value, "problems", None) == getattr(error, "problems", None)


def test_a_wrong_token_is_an_auth_error(client: Client) -> None:
    with pytest.raises(AuthError, match="refused the token"):
        Client(client.url, "wrong").jobs()


def test_a_port_where_nobody_listens_is_unreachable() -> None:
    with helpers.fake_server.listener() as bound:
        url = f"http://127.0.0.1:{bound.getsockname()[1]}"
    with pytest.raises(Unreachable, match="does not answer"):
        Client(url, TOKEN).jobs()
    assert not Client(url, TOKEN).healthy()


def test_something_that_is_no_dovetail_server_is_said_to_be_none() -> None:
    with helpers.fake_server.listener() as bound:

        def answer() -> None:
            connection, _ = bound.accept()
            with connection:
                connection.recv(65536)
                connection.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\n<html")

        thread = threading.Thread(target=answer)
        thread.start()
        with pytest.raises(Unreachable, match="no Dovetail server"):
            Client(f"http://127.0.0.1:{bound.getsockname()[1]}", TOKEN).jobs()
        thread.join()


@pytest.mark.parametrize("url", ["nowhere", "ftp://a", "http://"])
def test_an_address_that_is_none_is_refused(url: str) -> None:
    with pytest.raises(UserError, match="no server's address"):
        Client(url, TOKEN)


def test_submitting_twice_under_a_key_makes_one_job(client: Client, service: FakeService) -> None:
    first, created = client.submit(SPEC, "key")
    again, created_again = client.submit(SPEC, "key")
    assert (created, created_again) == (True, False)
    assert first == again
    assert len(service.records) == 1
    assert service.users == ["ada", "ada"]


def test_a_spec_larger_than_the_server_reads_is_refused_in_words(client: Client) -> None:
    with pytest.raises(UserError, match="longer than"):
        client.submit({**SPEC, "labels": {"a": "x" * 3 * 2**20}}, "key")


def test_a_ref_with_odd_characters_stays_one_segment(client: Client) -> None:
    with pytest.raises(NotFound, match=r"no job \.\. a&b\?ü#;"):
        client.job(".. a&b?ü#")


@pytest.mark.parametrize("ref", ["", "../status", "/"])
def test_a_ref_that_leads_elsewhere_finds_no_job(client: Client, ref: str) -> None:
    with pytest.raises(NotFound, match="no job"):
        client.job(ref)


def test_waiting_for_the_cluster_ends_when_it_is_up(client: Client, service: FakeService) -> None:
    up = service.ray
    service.ray = RayStatus(state="starting")
    service.script = [lambda: None, lambda: setattr(service, "ray", up)]
    assert client.wait_for_cluster()["ray"]["state"] == "up"


def test_a_cluster_that_stays_away_is_named(client: Client, service: FakeService) -> None:
    service.ray = RayStatus(state="lost", message="the head ended with exit code 1")
    with pytest.raises(Unreachable, match="the head ended with exit code 1"):
        client.wait_for_cluster(timeout_s=0.05)


def test_a_server_is_started_once_and_found_again(settings: Settings) -> None:
    said: list[str] = []
    found: list[Client] = []

    def start() -> None:
        found.append(ensure_server(settings, said.append, command("fake_server")))

    threads = [threading.Thread(target=start) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    pid = found[0].status()[0]["server"]["pid"]
    try:
        assert {client.url for client in found} == {found[0].url}
        assert said == ["started a local server and Ray (`dovetail down` stops both)"]
        assert os.getsid(pid) == pid  # it outlives the terminal of whoever started it
    finally:
        found[0].shutdown()
        os.waitpid(pid, 0)
    assert find_server(settings) is None


def test_a_server_that_says_an_error_raises_it(settings: Settings) -> None:
    with pytest.raises(UserError, match="port 1: permission denied"):
        ensure_server(settings, print, command("failing_server", "refuse"))


def test_a_server_that_ends_without_a_word_is_noticed_at_once(settings: Settings) -> None:
    with pytest.raises(Unreachable, match=r"exit code 9\): Segmentation fault; see .*server\.log"):
        ensure_server(settings, print, command("failing_server", "vanish"))


def test_what_a_dead_server_left_does_not_count(settings: Settings) -> None:
    settings.create_folders()
    settings.server_file.write_text('{"url": "http://127.0.0.1:9", "pid": 1}')
    assert find_server(settings) is None
    settings.server_file.write_text('{"url": ')
    assert find_server(settings) is None


def test_a_server_whose_token_cannot_be_read_is_an_auth_error(
    settings: Settings, client: Client
) -> None:
    settings.create_folders()
    settings.server_file.write_text(json.dumps({"url": client.url, "pid": 1}))
    with pytest.raises(AuthError, match="cannot be read"):
        find_server(settings)


def test_a_server_elsewhere_needs_its_token_too() -> None:
    with pytest.raises(AuthError, match="DOVETAIL_TOKEN"):
        find_server(Settings.from_environment({"DOVETAIL_URL": "http://127.0.0.1:9"}))


def test_waiting_for_a_process_to_end() -> None:
    pid = os.spawnl(os.P_NOWAIT, "/bin/sleep", "sleep", "60")
    assert not wait_until_gone(pid, timeout_s=0.01)
    os.kill(pid, signal.SIGKILL)
    assert wait_until_gone(pid)
    os.waitpid(pid, 0)
    assert wait_until_gone(pid)


def test_home_overrides_all_folders_and_is_closed_to_others(tmp_path: Path) -> None:
    home = tmp_path / "a" / "home"
    settings = Settings.from_environment({"DOVETAIL_HOME": str(home)})
    settings.create_folders()
    assert home.stat().st_mode & 0o777 == 0o700
    assert settings.storage_uri == str(home / "storage")
    assert settings.database_url == f"sqlite:///{home}/store.sqlite3"


def test_a_child_gets_the_settings_by_environment(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    given = {
        "DOVETAIL_HOME": str(tmp_path),
        "DOVETAIL_CPU_DEVICES": "2",
        "DOVETAIL_DEVICE_MEMORY": "4GiB",
        "DOVETAIL_PORT": "8123",
        "DOVETAIL_RAY_ADDRESS": "127.0.0.1:6379",
    }
    settings = Settings.from_environment(given)
    monkeypatch.setenv("DOVETAIL_CPU_DEVICES", "7")
    assert Settings.from_environment(settings.child_environment()) == settings
    assert settings.device_memory_bytes == 4 * 2**30


@pytest.mark.parametrize(
    ("name", "text", "rule"),
    [
        ("DOVETAIL_CPU_DEVICES", "0", "whole number of at least 1"),
        ("DOVETAIL_CPU_DEVICES", "two", "whole number of at least 1"),
        ("DOVETAIL_DEVICE_MEMORY", "4 apples", "must be a size"),
        ("DOVETAIL_PORT", "70000", "from 1 to 65535"),
    ],
)
def test_a_wrong_setting_names_its_variable(name: str, text: str, rule: str) -> None:
    with pytest.raises(UserError, match=f"{name}={text}  .*{rule}"):
        Settings.from_environment({name: text})


def test_every_answer_is_what_the_service_said(client: Client, service: FakeService) -> None:
    service.put(job_view())
    expected: Any = json.loads(service.job("k3f9qz").model_dump_json())
    assert client.jobs() == [expected]
    assert client.job("k3f9qz")[0] == expected
    assert client.plan(SPEC)["placement"] == {"node": "n1", "device": "cpu:0"}
    assert client.events("k3f9qz") == []
    assert client.metrics("k3f9qz", metric="loss") == []
    assert client.logs("k3f9qz")["attempt"] is None


def test_the_command_of_the_server_is_the_real_one() -> None:
    assert [sys.executable, "-m", "dovetail.serve"] == list(local_server.COMMAND)
