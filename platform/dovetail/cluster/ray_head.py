"""Start and stop the Ray head of this home: loopback only, token-guarded, in processes that outlive
server and bridge.

Every process of it carries `DOVETAIL_RAY_SESSION=<id>` in its environment, so that exactly these
are ended, and nobody else's Ray.
"""

from __future__ import annotations

import contextlib
import json
import os
import secrets
import shutil
import signal
import socket
import sys
import tempfile
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import psutil

from dovetail_jobs.errors import DovetailError, Unreachable
from dovetail_workers import process_tree

SESSION_VARIABLE = "DOVETAIL_RAY_SESSION"
OBJECT_STORE_BYTES = (
    80 * 2**20
)  # Ray's minimum is 75 MiB; bytes of ours travel through storage, not through Ray
START_TIMEOUT_S = 60.0
_FIRST_PORT, _LAST_PORT = 6380, 10001  # Ray gives 10002-19999 to its workers


class PortTaken(DovetailError):
    """One of the ports that Ray was to use was taken between our look and its start."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Head:
    """A running Ray head of ours, as `ray.json` holds it."""

    session: str
    pid: int
    address: str
    dashboard_url: str
    temp_dir: str


def environment(token_file: Path) -> dict[str, str]:
    """What every process that speaks to this Ray has in its environment, head, bridge and workers
    alike.
    """
    return {
        "RAY_AUTH_MODE": "token",
        "RAY_AUTH_TOKEN_PATH": str(token_file),
        "RAY_USAGE_STATS_ENABLED": "0",
        "RAY_ENABLE_UV_RUN_RUNTIME_ENV": "0",
        # Makes Ray's nodes live at 127.0.0.1 instead of the machine's address, so that every port
        # is bound to loopback.
        "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0",
    }


def ensure_token(token_file: Path) -> None:
    """A token of 64 hex digits that only its owner may read."""
    with contextlib.suppress(FileExistsError):
        descriptor = os.open(token_file, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        with os.fdopen(descriptor, "w") as file:
            file.write(secrets.token_hex(32))
    token_file.chmod(0o600)


def ensure(record: Path, token_file: Path, log: Path, resources: dict[str, float]) -> Head:
    """The head that `record` names if it lives, else a new one. A stale record is cleaned away with
    what it left.

    Raises Unreachable with Ray's own last words when it does not come up.
    """
    known = read(record)
    if known is not None:
        if _answers(known.address) and any(_processes(known)):
            return known
        stop(record)
    for attempt in (1, 2, 3):
        try:
            head = _start(token_file, log, resources)
            break
        except PortTaken:
            if attempt == 3:
                raise
    temporary = record.with_suffix(".tmp")
    temporary.write_text(json.dumps(asdict(head)))
    temporary.chmod(0o600)
    temporary.replace(record)
    return head


def read(record: Path) -> Head | None:
    """The recorded head; None for no record, or for one that is not whole."""
    try:
        value: dict[str, Any] = json.loads(record.read_text())
        return Head(**value)
    except (OSError, ValueError, TypeError):
        return None


def stop(record: Path) -> int:
    """End every process of the recorded head, workers included, and remove its files; how many had
    to be killed.
    """
    head = read(record)
    killed = 0
    if head is not None:
        processes = list(_processes(head))
        for process in processes:
            if process.pid == head.pid:
                with contextlib.suppress(psutil.NoSuchProcess):
                    process.terminate()
                process_tree.wait_gone([process.pid], timeout_s=4.0)
        for process in _processes(head):
            with contextlib.suppress(psutil.NoSuchProcess):
                process.kill()
                killed += 1
                process_tree.wait_gone([process.pid], timeout_s=2.0)
        with contextlib.suppress(ChildProcessError):
            os.waitpid(head.pid, os.WNOHANG)  # where this very process had started it
        shutil.rmtree(head.temp_dir, ignore_errors=True)
    record.unlink(missing_ok=True)
    return killed


def _start(token_file: Path, log: Path, resources: dict[str, float]) -> Head:
    session = secrets.token_hex(8)
    temp_dir = tempfile.mkdtemp(
        prefix="dovetail-ray-", dir="/tmp"
    )  # short: sockets below it have at most 107 bytes
    port, dashboard, client, metrics, agent = _free_ports(5)
    command = [
        sys.executable, "-m", "ray.scripts.scripts", "start", "--head", "--block",
        f"--port={port}", "--dashboard-host=127.0.0.1", f"--dashboard-port={dashboard}",
        f"--ray-client-server-port={client}", f"--metrics-export-port={metrics}",
        f"--dashboard-agent-listen-port={agent}", "--min-worker-port=0", "--max-worker-port=0",
        f"--temp-dir={temp_dir}", f"--num-cpus={os.cpu_count() or 1}", "--num-gpus=0",
        f"--object-store-memory={OBJECT_STORE_BYTES}", f"--resources={json.dumps(resources)}",
        "--disable-usage-stats", "--log-color=false",
    ]  # fmt: skip
    values = {
        **{k: v for k, v in os.environ.items() if not k.startswith("RAY_")},
        **environment(token_file),
        SESSION_VARIABLE: session,
        "RAY_worker_niceness": "0",  # Ray would run workers at nice 15
        # Memory is ours to plan; Ray would kill by a rule of its own
        "RAY_memory_monitor_refresh_ms": "0",
        "RAY_GRACEFUL_SHUTDOWN_DRAIN_TIMEOUT_S": "1",
        "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "1",
    }
    start = log.stat().st_size if log.exists() else 0
    pid = _spawn_detached(command, values, log)
    head = Head(
        session=session,
        pid=pid,
        address=f"127.0.0.1:{port}",
        dashboard_url=f"http://127.0.0.1:{dashboard}",
        temp_dir=temp_dir,
    )
    end = time.monotonic() + START_TIMEOUT_S
    while not (_answers(head.address) and _answers(f"127.0.0.1:{dashboard}")):
        process_tree.wait_gone([pid], timeout_s=0.1)
        ended, _ = os.waitpid(pid, os.WNOHANG)
        if ended or time.monotonic() > end:
            said = log.read_bytes()[start:].decode(errors="replace").strip()
            _end(head)
            if "port" in said and ("already" in said or "in use" in said):
                raise PortTaken(f"Ray could not take a port: {said[-300:]}")
            raise Unreachable(
                f"Ray did not start within {START_TIMEOUT_S:g} s; see {log}: {said[-600:]}"
            )
    return head


def _spawn_detached(command: list[str], environment: dict[str, str], log: Path) -> int:
    """Start a process that outlives this one, in a session of its own; its pid."""
    flags = os.O_WRONLY | os.O_CREAT | os.O_APPEND
    return os.posix_spawn(
        command[0],
        command,
        environment,
        file_actions=[
            (os.POSIX_SPAWN_OPEN, 0, os.devnull, os.O_RDONLY, 0),
            (os.POSIX_SPAWN_OPEN, 1, str(log), flags, 0o600),
            (os.POSIX_SPAWN_DUP2, 1, 2),
        ],
        setsid=True,
    )


def _end(head: Head) -> None:
    for process in _processes(head):
        with contextlib.suppress(psutil.NoSuchProcess):
            process.send_signal(signal.SIGKILL)
    shutil.rmtree(head.temp_dir, ignore_errors=True)


def _processes(head: Head) -> list[psutil.Process]:
    return list(process_tree.processes_with(SESSION_VARIABLE, head.session))


def _answers(address: str) -> bool:
    host, _, port = address.partition(":")
    try:
        socket.create_connection((host, int(port)), timeout=1).close()
    except OSError:
        return False
    return True


def _free_ports(count: int) -> list[int]:
    """Ports of the loopback address that are free now, below those that Ray gives to its
    workers.
    """
    found: list[int] = []
    candidates = list(range(_FIRST_PORT, _LAST_PORT))
    secrets.SystemRandom().shuffle(candidates)
    for port in candidates:
        with socket.socket() as probe:
            try:
                probe.bind(("127.0.0.1", port))
            except OSError:
                continue
        found.append(port)
        if len(found) == count:
            return found
    raise Unreachable(f"no free ports from {_FIRST_PORT} to {_LAST_PORT - 1} for Ray")
