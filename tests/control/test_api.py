"""The HTTP API: who is let in, what a problem looks like, long polls, the published contract."""

from __future__ import annotations

import asyncio
import json
import socket
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from fastapi.testclient import TestClient

from dovetail import serve
from dovetail.api.app import create_app
from dovetail.api.auth import BODY_LIMIT_BYTES, is_loopback
from dovetail.service.contract import JobView, MetricPointView, Service
from dovetail_jobs.lifecycle import State
from dovetail_jobs.spec import JobSpec
from helpers.fake_server import TOKEN
from helpers.fake_service import (
    FakeService,
    attempt_view,
    job_view,
    running_changes,
    succeeded_changes,
)

GOLDEN = Path(__file__).parents[1] / "golden" / "openapi.json"
API = "/api/v1"
SPEC = JobSpec(name="hello", script="true").to_json()


@pytest.fixture
def api(service: FakeService) -> Iterator[httpx.Client]:
    headers = {"Authorization": f"Bearer {TOKEN}"}
    with httpx.Client(base_url=service.url + API, headers=headers) as client:
        yield client


def problem(answer: httpx.Response) -> dict[str, Any]:
    assert answer.headers["content-type"] == "application/problem+json"
    document: dict[str, Any] = answer.json()
    assert document["status"] == answer.status_code
    assert document["type"] == f"urn:dovetail:problem:{document['code']}"
    return document


def test_health_needs_no_token_and_says_nothing_else(api: httpx.Client) -> None:
    answer = api.get("/health", headers={"Authorization": ""})
    assert (answer.status_code, answer.json()) == (200, {"ok": True})


@pytest.fixture(scope="module")
def paths() -> dict[str, Any]:
    found: dict[str, Any] = create_app(FakeService(), TOKEN).openapi()["paths"]
    return found


@pytest.mark.parametrize("given", ["", "Bearer", "Bearer wrong", f"Basic {TOKEN}", TOKEN])
def test_nothing_else_answers_without_the_token(
    api: httpx.Client, service: FakeService, paths: dict[str, Any], given: str
) -> None:
    for path, methods in paths.items():
        if path == f"{API}/health":
            continue
        for method in methods:
            where = path.removeprefix(API).replace("{ref}", "k3f9qz")
            answer = api.request(method, where, headers={"Authorization": given})
            assert answer.status_code == 401, (method, path)
            assert answer.headers["www-authenticate"] == "Bearer"
            assert problem(answer)["code"] == "unauthorized"
    assert api.get("/openapi.json", headers={"Authorization": given}).status_code == 401
    assert service.ended == []


def test_an_answer_in_two_parts_does_not_wait_for_the_callers_acknowledgement() -> None:
    """Its head and its body are sent apart; a connection of the listener holds back neither."""

    async def accepted() -> int:
        writers: asyncio.Queue[asyncio.StreamWriter] = asyncio.Queue()
        listener = serve._listen(None)
        async with await asyncio.start_server(lambda _, w: writers.put(w), sock=listener):
            _, ours = await asyncio.open_connection(*listener.getsockname())
            its = await writers.get()
            at_once: int = its.get_extra_info("socket").getsockopt(
                socket.IPPROTO_TCP, socket.TCP_NODELAY
            )
            for writer in (ours, its):
                writer.close()
                await writer.wait_closed()
            return at_once

    assert asyncio.run(accepted())


def test_a_server_without_a_token_is_not_built() -> None:
    app = create_app(FakeService(), "")
    with pytest.raises(ValueError, match="token"), TestClient(app):
        pass


@pytest.mark.parametrize(
    "host", ["evil.example", "evil.example:80", "10.0.0.1", "127.0.0.1.nip.io", ""]
)
def test_a_host_that_is_not_this_machine_is_refused(api: httpx.Client, host: str) -> None:
    answer = api.get("/health", headers={"Host": host})
    assert answer.status_code == 400
    assert host in problem(answer)["detail"]


@pytest.mark.parametrize(
    "host", ["127.0.0.1", "127.0.0.1:80", "localhost:1", "LOCALHOST", "[::1]:8"]
)
def test_loopback_names_are_this_machine(host: str) -> None:
    assert is_loopback(host)


def test_no_answer_opens_itself_to_other_pages(api: httpx.Client) -> None:
    answer = api.options("/jobs", headers={"Origin": "https://evil.example"})
    assert not [name for name in answer.headers if name.startswith("access-control")]


def test_a_body_over_the_limit_is_refused_whatever_its_headers_say(api: httpx.Client) -> None:
    text = json.dumps({**SPEC, "labels": {"a": "x" * BODY_LIMIT_BYTES}}).encode()
    parts = (text[start : start + 65536] for start in range(0, len(text), 65536))
    answer = api.post("/jobs", content=parts, headers={"Content-Type": "application/json"})
    assert answer.status_code == 413
    assert str(BODY_LIMIT_BYTES) in problem(answer)["detail"]


def test_a_job_is_submitted_once_per_key(api: httpx.Client, service: FakeService) -> None:
    headers = {"Idempotency-Key": "abc", "Dovetail-User": "ada"}
    first = api.post("/jobs", json=SPEC, headers=headers)
    again = api.post("/jobs", json=SPEC, headers=headers)
    assert (first.status_code, again.status_code) == (201, 200)
    assert first.json() == again.json()
    assert service.users == ["ada", "ada"]
    other = api.post("/jobs", json={**SPEC, "priority": 1}, headers=headers)
    assert other.status_code == 409
    assert problem(other)["code"] == "conflict"


def test_a_wrong_spec_is_refused_with_all_its_problems(api: httpx.Client) -> None:
    answer = api.post("/jobs", json={"name": "hello", "priority": 101, "retry": {"max": -1}})
    assert answer.status_code == 422
    document = problem(answer)
    assert document["code"] == "bad_spec"
    keys = {item["key"] for item in document["problems"]}
    assert {"priority", "retry.max"} <= keys


@pytest.mark.parametrize("content", ["{", "[]", "", '"text"'])
def test_a_body_that_is_no_object_is_a_problem_not_a_crash(api: httpx.Client, content: str) -> None:
    answer = api.post("/jobs", content=content, headers={"Content-Type": "application/json"})
    assert answer.status_code == 422
    assert problem(answer)["code"] == "bad_spec"


@pytest.mark.parametrize(
    ("method", "path", "status", "code"),
    [
        ("GET", "/jobs/nothing", 404, "not_found"),
        ("GET", "/nowhere", 404, "not_found"),
        ("DELETE", "/jobs", 405, "refused"),
        ("POST", "/jobs/nothing/cancel", 404, "not_found"),
        ("POST", "/jobs/k3f9qz/retry", 409, "conflict"),
        ("GET", "/jobs?limit=0", 422, "bad_spec"),
        ("GET", "/jobs?state=SLEEPING", 422, "bad_spec"),
    ],
)
def test_every_refusal_is_a_problem_document(
    api: httpx.Client, service: FakeService, method: str, path: str, status: int, code: str
) -> None:
    service.put(job_view())
    answer = api.request(method, path)
    assert answer.status_code == status
    assert problem(answer)["code"] == code


def test_an_unexpected_failure_shows_no_inside(service: FakeService) -> None:
    class Broken(FakeService):
        def job(self, ref: str) -> JobView:
            raise RuntimeError("secret inside")

    client = TestClient(
        create_app(Broken(), TOKEN),
        base_url="http://localhost",
        headers={"Authorization": f"Bearer {TOKEN}"},
        raise_server_exceptions=False,
    )
    answer = client.get(f"{API}/jobs/k3f9qz")
    assert answer.status_code == 500
    assert answer.json()["code"] == "internal"
    assert "secret" not in answer.text


def test_jobs_are_chosen_by_state_project_and_number(
    api: httpx.Client, service: FakeService
) -> None:
    service.put(job_view(id="a1", state=State.SUCCEEDED))
    service.put(job_view(id="b2", project="other"))
    service.put(job_view(id="c3"))

    def ids(**query: Any) -> list[str]:
        return [job["id"] for job in api.get("/jobs", params=query).json()]

    assert ids() == ["c3", "b2", "a1"]
    assert ids(state=["SUCCEEDED", "RUNNING"]) == ["a1"]
    assert ids(project="other") == ["b2"]
    assert ids(limit=1) == ["c3"]


def test_a_long_poll_returns_with_the_change(api: httpx.Client, service: FakeService) -> None:
    service.put(job_view())
    before = api.get("/jobs/k3f9qz")
    number = before.headers["dovetail-change"]
    service.script = [lambda: service.change("k3f9qz", **running_changes())]
    after = api.get("/jobs/k3f9qz", params={"after": number})
    assert (before.json()["state"], after.json()["state"]) == ("QUEUED", "RUNNING")
    assert int(after.headers["dovetail-change"]) > int(number)


def test_a_long_poll_ends_without_a_change_after_its_time(
    api: httpx.Client, service: FakeService
) -> None:
    service.put(job_view())
    number = service.change_number()
    answer = api.get("/jobs/k3f9qz", params={"after": number, "timeout": 0.01})
    assert answer.json()["state"] == "QUEUED"
    assert answer.headers["dovetail-change"] == str(number)


def test_a_crowd_that_waits_does_not_keep_others_waiting(
    api: httpx.Client, service: FakeService
) -> None:
    service.put(job_view())
    number = service.change_number()
    crowd = 60  # more than the threads of the pool that the other routes share
    arrived = threading.Semaphore(0)
    wait = service.wait_change

    def counted(after: int, timeout_s: float) -> int:
        arrived.release()
        return wait(after, timeout_s)

    service.wait_change = counted  # type: ignore[method-assign]
    polls = [
        threading.Thread(
            target=api.get, args=("/jobs/k3f9qz",), kwargs={"params": {"after": number}}
        )
        for _ in range(crowd)
    ]
    for poll in polls:
        poll.start()
    for _ in range(crowd):
        assert arrived.acquire(timeout=20)
    assert api.post("/jobs/k3f9qz/cancel").json()["state"] == "STOPPING"
    for poll in polls:
        poll.join()


def test_a_log_is_read_in_pieces_and_waited_for(api: httpx.Client, service: FakeService) -> None:
    service.put(job_view(attempts=(attempt_view(),)))
    service.print("k3f9qz", "one\ntwo\n")
    piece = api.get("/jobs/k3f9qz/logs", params={"limit_bytes": 4}).json()
    assert piece == {
        "attempt": 1,
        "offset": 0,
        "next_offset": 4,
        "data": "one\n",
        "complete": False,
    }
    service.script = [
        lambda: service.change("k3f9qz", priority=51),
        lambda: service.print("k3f9qz", "three\n"),
    ]
    waited = api.get("/jobs/k3f9qz/logs", params={"offset": 8, "after": 0}).json()
    assert waited["data"] == "three\n"
    service.change("k3f9qz", **succeeded_changes())
    end = api.get("/jobs/k3f9qz/logs", params={"offset": 14, "after": 0}).json()
    assert (end["data"], end["complete"]) == ("", True)


def test_curves_and_story_can_be_asked_for_in_part(api: httpx.Client, service: FakeService) -> None:
    service.put(job_view())
    service.points["k3f9qz"] = [
        MetricPointView(metric=name, step=1, attempt=1, value=0.1) for name in ("loss", "accuracy")
    ]
    found = api.get("/jobs/k3f9qz/metrics", params={"metric": "loss"}).json()
    assert found == [{"metric": "loss", "phase": "train", "step": 1, "attempt": 1, "value": 0.1}]
    assert api.get("/jobs/k3f9qz/events").json() == []


def test_shutdown_is_passed_on(api: httpx.Client, service: FakeService) -> None:
    assert api.post("/shutdown", json={"stop_ray": False}).status_code == 202
    assert service.ended == [False]


def test_the_fake_is_a_service() -> None:
    service: Service = FakeService()
    assert service.jobs(None, None, None) == []


def test_times_are_rfc_3339_in_utc() -> None:
    view = job_view(created_at="2026-03-01T13:00:00+01:00")
    assert json.loads(view.model_dump_json())["created_at"] == "2026-03-01T12:00:00Z"


def test_a_time_without_a_zone_is_refused() -> None:
    with pytest.raises(ValueError, match="timezone"):
        job_view(created_at="2026-03-01T13:00:00")


def test_the_published_contract_changes_only_on_purpose(tmp_path: Path) -> None:
    """Fields may be added, never renamed or removed: then copy the file that the failure names."""
    published = create_app(FakeService(), TOKEN).openapi()
    now = tmp_path / "openapi.json"
    now.write_text(json.dumps(published, indent=1, sort_keys=True) + "\n")
    assert json.loads(GOLDEN.read_text()) == published, f"if this is wanted: cp {now} {GOLDEN}"


def test_every_field_of_the_contract_is_described() -> None:
    schemas = create_app(FakeService(), TOKEN).openapi()["components"]["schemas"]
    silent = [
        f"{name}.{field}"
        for name, schema in schemas.items()
        if name.endswith(("View", "Status", "Options", "Chunk"))
        for field, about in schema["properties"].items()
        if not about.get("description")
    ]
    assert silent == []
