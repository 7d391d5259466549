"""The HTTP client of the CLI: typed methods, plain dicts, errors of the DovetailError tree.

Standard library only, for a fast start.

client.job("k3f9qz")                    ({"id": "k3f9qz", …}, 41): the job and its change number
client.job("k3f9qz", after=41)          waits until something has changed
"""

from __future__ import annotations

import contextlib
import http.client
import json
import time
from collections.abc import Iterable
from pathlib import Path
from typing import Any, BinaryIO
from urllib.parse import quote, urlencode, urlsplit

from dovetail_jobs.errors import (
    AuthError,
    Conflict,
    DatabaseLost,
    DovetailError,
    NotFound,
    Problem,
    SpecError,
    Unreachable,
    UserError,
)

Json = dict[str, Any]
FORECAST_S = 300.0
SUBMIT_S = 30.0  # for the server to foresee the memory of what it does not know yet
_KINDS = (DovetailError, UserError, NotFound, AuthError, Unreachable, DatabaseLost, Conflict)
_ERRORS: dict[str, type[DovetailError]] = {kind.code: kind for kind in _KINDS}
UPLOAD_S = 60.0  # for the server to look through an archive and to store it
NODES_S = 90.0  # a node starts within a minute, or is given up
_BY_STATUS: dict[int, type[DovetailError]] = {401: AuthError, 404: NotFound, 409: Conflict}


class Client:
    """One server. A connection per request, so that it survives the server's restarts.

    Every method raises Unreachable when nothing answers, and what a problem document says.
    """

    def __init__(
        self, url: str, token: str, *, user: str = "unknown", timeout_s: float = 30.0
    ) -> None:
        parts = urlsplit(url)
        if parts.scheme not in ("http", "https") or not parts.hostname:
            raise UserError(f"{url}  is no server's address; expected http://127.0.0.1:PORT")
        self.url = url.rstrip("/")
        self._secure = parts.scheme == "https"
        self._host, self._port = parts.hostname, parts.port
        self._path = parts.path.rstrip("/") + "/api/v1"
        sent_user = user.encode("ascii", "replace").decode()
        self._headers = {"Authorization": f"Bearer {token}", "Dovetail-User": sent_user}
        self._timeout_s = timeout_s

    def healthy(self) -> bool:
        """Whether a server answers there; raises nothing."""
        try:
            answer, _ = self._ask("GET", "/health")
        except DovetailError:
            return False
        return isinstance(answer, dict) and answer.get("ok") is True

    def submit(self, spec: Json, key: str, code: str | None = None) -> tuple[Json, bool]:
        """Submit a resolved spec under an idempotency key; the job, and whether it is new.

        `code` is the sha256 of code that the server keeps. A connection that broke is tried once
        more: the key makes that safe.
        """
        headers, query = {"Idempotency-Key": key}, _code_query(code)
        asked: Any = {"query": query, "body": spec, "headers": headers, "wait_s": SUBMIT_S}
        try:
            job, answer = self._ask("POST", "/jobs", **asked)
        except Unreachable:
            job, answer = self._ask("POST", "/jobs", **asked)
        return job, answer.status == 201

    def plan(self, spec: Json, code: str | None = None) -> Json:
        """Where the job would run now, and what it would take: tracing a step takes seconds."""
        plan: Json = self._value(
            "POST", "/jobs/plan", query=_code_query(code), body=spec, wait_s=FORECAST_S
        )
        return plan

    def keep_code(self, sha256: str, archive: Path) -> bool:
        """Send an archive of this content unless the server keeps it; whether it was sent."""
        try:
            self._value("GET", f"/code/{sha256}")
        except NotFound:
            self._value("PUT", f"/code/{sha256}", upload=archive, wait_s=UPLOAD_S)
            return True
        return False

    def job(
        self, ref: str, *, after: int | None = None, timeout_s: float = 20.0
    ) -> tuple[Json, int]:
        """One job and the change number to ask `after` next; with `after`, a long poll."""
        return self._changing(f"/jobs/{_segment(ref)}", after, timeout_s)

    def jobs(
        self,
        states: Iterable[str] = (),
        project: str | None = None,
        limit: int | None = None,
    ) -> list[Json]:
        """Jobs, newest first; no states means all of them."""
        query = [*(("state", state) for state in states)]
        query += [("project", project)] if project else []
        query += [("limit", str(limit))] if limit else []
        found: list[Json] = self._value("GET", "/jobs", query=query)
        return found

    def cancel(self, ref: str) -> Json:
        job: Json = self._value("POST", f"/jobs/{_segment(ref)}/cancel")
        return job

    def retry(self, ref: str, *, from_scratch: bool = False) -> Json:
        """The new job."""
        query = [("from_scratch", "true")] if from_scratch else []
        job: Json = self._value("POST", f"/jobs/{_segment(ref)}/retry", query=query)
        return job

    def events(self, ref: str, *, after: int = 0) -> list[Json]:
        query = [("after", str(after))]
        found: list[Json] = self._value("GET", f"/jobs/{_segment(ref)}/events", query=query)
        return found

    def metrics(self, ref: str, *, metric: str | None = None) -> list[Json]:
        query = [("metric", metric)] if metric else []
        found: list[Json] = self._value("GET", f"/jobs/{_segment(ref)}/metrics", query=query)
        return found

    def logs(
        self,
        ref: str,
        *,
        attempt: int | None = None,
        offset: int = 0,
        wait_s: float | None = None,
    ) -> Json:
        """A chunk of a log from byte `offset`; waits up to `wait_s` while there is nothing yet."""
        query = [("offset", str(offset))]
        query += [("attempt", str(attempt))] if attempt is not None else []
        query += [("after", "0"), ("timeout", str(wait_s))] if wait_s is not None else []
        path = f"/jobs/{_segment(ref)}/logs"
        chunk: Json = self._value("GET", path, query=query, wait_s=wait_s or 0.0)
        return chunk

    def status(self, *, after: int | None = None, timeout_s: float = 20.0) -> tuple[Json, int]:
        """Server, cluster, devices and counts, and the change number; with `after`, a long poll."""
        return self._changing("/status", after, timeout_s)

    def wait_for_cluster(self, timeout_s: float = 120.0) -> Json:
        """The status once the cluster is up with its devices, or of a server that stands by.

        Raises Unreachable after the time.
        """
        deadline_s = time.monotonic() + timeout_s
        status, change = self.status()
        while status["ray"]["state"] != "up" or not status["nodes"]:
            if status["server"]["role"] == "standby":
                return status  # the server that decides follows the cluster
            left_s = deadline_s - time.monotonic()
            if left_s <= 0:
                cause = status["ray"].get("message") or f"it is {status['ray']['state']}"
                raise Unreachable(
                    f"Ray was not up after {timeout_s:.0f} s: {cause}; "
                    "`dovetail doctor` says what is missing here"
                )
            status, change = self.status(after=change, timeout_s=min(20.0, left_s))
        return status

    def wait_for_database(self) -> None:
        """Until the server reaches its database again; raises Unreachable if it ends itself."""
        status, change = self.status()
        while status["database"]["state"] != "up":
            status, change = self.status(after=change)

    def devices(self) -> list[Json]:
        """Every device, with those who hold or share it."""
        found: list[Json] = self._value("GET", "/devices")
        return found

    def device_histories(self) -> list[Json]:
        """How the devices that jobs shared were shared of late."""
        found: list[Json] = self._value("GET", "/devices/history")
        return found

    def add_nodes(self, count: int = 1) -> list[str]:
        """Start extra nodes on the server's machine; their names. They are in the status soon."""
        return self._names("POST", "/nodes", body={"count": count}, wait_s=NODES_S)

    def remove_node(self, name: str, *, force: bool = False) -> list[str]:
        """End an extra node; it leaves the status soon."""
        query = [("force", "true")] if force else []
        return self._names("DELETE", f"/nodes/{quote(name, safe='')}", query=query, wait_s=NODES_S)

    def wait_for_nodes(
        self, *, here: Iterable[str] = (), gone: Iterable[str] = (), timeout_s: float = 60.0
    ) -> Json:
        """The status once these nodes are there and those are not; Unreachable after the time."""
        deadline_s = time.monotonic() + timeout_s
        wanted, unwanted = set(here), set(gone)
        status, change = self.status()
        while True:
            seen = {node["name"] for node in status["nodes"]}
            if status["ray"]["state"] == "up" and wanted <= seen and not unwanted & seen:
                return status
            left_s = deadline_s - time.monotonic()
            if left_s <= 0:
                late = ", ".join(sorted((wanted - seen) | (unwanted & seen))) or "Ray"
                raise Unreachable(
                    f"after {timeout_s:.0f} s the cluster has not noticed the change: {late}; "
                    "`dovetail status` shows what it has"
                )
            status, change = self.status(after=change, timeout_s=min(20.0, left_s))

    def shutdown(self, *, stop_ray: bool = True) -> None:
        self._value("POST", "/shutdown", body={"stop_ray": stop_ray})

    def _names(self, method: str, path: str, **request: Any) -> list[str]:
        names: list[str] = self._value(method, path, **request)["names"]
        return names

    def _changing(self, path: str, after: int | None, timeout_s: float) -> tuple[Json, int]:
        query = [] if after is None else [("after", str(after)), ("timeout", f"{timeout_s:g}")]
        value, answer = self._ask(
            "GET", path, query=query, wait_s=0.0 if after is None else timeout_s
        )
        return value, int(answer.getheader("Dovetail-Change", "0"))

    def _value(self, method: str, path: str, **request: Any) -> Any:
        return self._ask(method, path, **request)[0]

    def _ask(
        self,
        method: str,
        path: str,
        *,
        query: Iterable[tuple[str, str]] = (),
        body: Json | None = None,
        upload: Path | None = None,
        headers: dict[str, str] | None = None,
        wait_s: float = 0.0,
    ) -> tuple[Any, http.client.HTTPResponse]:
        kind = http.client.HTTPSConnection if self._secure else http.client.HTTPConnection
        connection = kind(self._host, self._port, timeout=self._timeout_s + wait_s)
        encoded = urlencode(list(query))
        target = f"{self._path}{path}?{encoded}" if encoded else self._path + path
        sent = {**self._headers, **(headers or {}), "Connection": "close"}
        if body is not None:
            sent["Content-Type"] = "application/json"
        with contextlib.ExitStack() as stack:
            stack.callback(connection.close)
            payload: str | BinaryIO | None = None if body is None else json.dumps(body)
            if upload is not None:
                sent["Content-Type"] = "application/gzip"
                sent["Content-Length"] = str(upload.stat().st_size)
                payload = stack.enter_context(upload.open("rb"))
            answer, content = self._exchange(connection, method, target, payload, sent)
        return self._read(answer, content), answer

    def _exchange(
        self,
        connection: http.client.HTTPConnection,
        method: str,
        target: str,
        payload: str | BinaryIO | None,
        sent: dict[str, str],
    ) -> tuple[http.client.HTTPResponse, bytes]:
        try:
            # The server answers a request that it refuses before it has read all of it.
            with contextlib.suppress(BrokenPipeError, ConnectionResetError):
                connection.request(method, target, payload, sent)
            answer = connection.getresponse()
            return answer, answer.read()
        except (OSError, http.client.HTTPException) as error:
            raise Unreachable(
                f"the server at {self.url} does not answer "
                f"({type(error).__name__}: {error}); `dovetail status` says what runs here"
            ) from None

    def _read(self, answer: http.client.HTTPResponse, content: bytes) -> Any:
        try:
            value = json.loads(content) if content else None
        except ValueError:
            raise Unreachable(f"what answers at {self.url} is no Dovetail server") from None
        if answer.status < 400:
            return value
        if not isinstance(value, dict) or "code" not in value:
            raise Unreachable(
                f"what answers at {self.url} is no Dovetail server (HTTP {answer.status})"
            )
        raise _error(value, answer.status, self.url)


def _code_query(code: str | None) -> list[tuple[str, str]]:
    return [] if code is None else [("code", code)]


def _error(document: Json, status: int, url: str) -> DovetailError:
    """The error of our tree that a problem document stands for."""
    if document["code"] == SpecError.code:
        fields = ("key", "rule", "value", "file", "line")
        return SpecError(
            [Problem(**{name: item.get(name) for name in fields}) for item in document["problems"]]
        )
    kind = _ERRORS.get(document["code"], _BY_STATUS.get(status, DovetailError))
    if kind is AuthError:
        return AuthError(f"{url} refused the token: {document['detail']}")
    return kind(str(document["detail"]))


def _segment(ref: str) -> str:
    """A job's ref as one segment of a path, which an empty one or one with a slash cannot be."""
    if not ref or "/" in ref:
        raise NotFound(f"no job {ref!r}; name one by id, beginning of an id, or name")
    return quote(ref, safe="")
