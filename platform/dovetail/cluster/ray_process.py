"""What all processes of a Ray of our own have in common: their environment, their marks, and how
they are started, found and ended.

Every process of it carries `DOVETAIL_RAY_SESSION=<id>` in its environment, those of an extra local
node also `DOVETAIL_RAY_NODE=<mark>`, so that exactly these are ended, and nobody else's Ray.
"""

from __future__ import annotations

import contextlib
import os
import secrets
import socket
import time
from pathlib import Path

import psutil

from dovetail_jobs.errors import Unreachable
from dovetail_workers import process_tree

SESSION_VARIABLE = "DOVETAIL_RAY_SESSION"
NODE_VARIABLE = "DOVETAIL_RAY_NODE"
# Ray's minimum is 75 MiB; bytes of ours travel through storage, not through Ray
OBJECT_STORE_BYTES = 80 * 2**20
END_TIMEOUT_S = 10.0
_FIRST_PORT, _LAST_PORT = 6380, 10001  # Ray gives 10002-19999 to its workers


def environment(token_file: Path) -> dict[str, str]:
    """What every process that speaks to this Ray has in its environment: head, nodes, bridge and
    workers alike.
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


# Settings of another Ray, and secrets of ours that no worker needs.
_NOT_RAYS = ("RAY_", "DOVETAIL_DATABASE", "DOVETAIL_TOKEN", "DOVETAIL_URL")


def process_environment(token_file: Path, session: str) -> dict[str, str]:
    """The whole environment of a process that we start for this Ray."""
    return {
        **{k: v for k, v in os.environ.items() if not k.startswith(_NOT_RAYS)},
        **environment(token_file),
        SESSION_VARIABLE: session,
        "RAY_worker_niceness": "0",  # Ray would run workers at nice 15
        # Memory is ours to plan; Ray would kill by a rule of its own
        "RAY_memory_monitor_refresh_ms": "0",
        "RAY_GRACEFUL_SHUTDOWN_DRAIN_TIMEOUT_S": "1",
        "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "1",
        # A killed node is noticed by its closed socket at once. These are for a frozen one: three
        # checks of 5 s, so that a busy machine is not taken for a dead one.
        "RAY_health_check_initial_delay_ms": "5000",
        "RAY_health_check_period_ms": "1000",
        "RAY_health_check_timeout_ms": "5000",
        "RAY_health_check_failure_threshold": "3",
    }


def spawn_detached(
    command: list[str], environment: dict[str, str], log: Path, ready_fd: int | None = None
) -> int:
    """Start a process that outlives this one, in a session of its own; its pid. `ready_fd` becomes
    its descriptor 3.
    """
    flags = os.O_WRONLY | os.O_CREAT | os.O_APPEND
    ready = [] if ready_fd is None else [(os.POSIX_SPAWN_DUP2, ready_fd, 3)]
    return os.posix_spawn(
        command[0],
        command,
        environment,
        file_actions=[
            (os.POSIX_SPAWN_OPEN, 0, os.devnull, os.O_RDONLY, 0),
            (os.POSIX_SPAWN_OPEN, 1, str(log), flags, 0o600),
            (os.POSIX_SPAWN_DUP2, 1, 2),
            *ready,
        ],
        setsid=True,
    )


def of_session(session: str) -> list[psutil.Process]:
    return list(process_tree.processes_with(SESSION_VARIABLE, session))


def raylets(session: str) -> set[str | None]:
    """Which nodes of a session have a living raylet: marks of extra nodes, None for the head."""
    found: set[str | None] = set()
    for process in of_session(session):
        with contextlib.suppress(psutil.Error):
            if process.name() == "raylet":
                found.add(process.environ().get(NODE_VARIABLE))
    return found


def end_marked(variable: str, value: str, session_folder: Path | None = None) -> int:
    """Kill every process with this mark and wait until none is left; how many there were.

    Some of Ray's processes overwrite their environment with a title: they are found as children of
    a marked one, or by the files below `session_folder` that they write. Raises Unreachable
    naming those that SIGKILL did not end.
    """
    killed: set[int] = set()
    end = time.monotonic() + END_TIMEOUT_S
    while found := _of_session(variable, value, session_folder):
        if time.monotonic() > end:
            left = ", ".join(str(process.pid) for process in found)
            raise Unreachable(f"processes {left} did not end {END_TIMEOUT_S:g} s after SIGKILL")
        for process in found:
            with contextlib.suppress(psutil.NoSuchProcess):
                process.kill()
                killed.add(process.pid)
        process_tree.wait_gone([process.pid for process in found], timeout_s=1.0)
        for pid in killed:
            failed(pid)  # where this very process had started it
    return len(killed)


def _of_session(variable: str, value: str, folder: Path | None) -> list[psutil.Process]:
    marked = list(process_tree.processes_with(variable, value))
    found = {process.pid: process for process in marked}
    for process in marked:
        with contextlib.suppress(psutil.NoSuchProcess):
            found |= {child.pid: child for child in process.children(recursive=True)}
    if folder is not None:
        found |= {process.pid: process for process in process_tree.processes_writing(folder)}
    return [process for process in found.values() if process_tree.is_alive(process)]


def failed(pid: int) -> bool:
    """Whether a process that this very one has started has ended with an error; collects it."""
    try:
        ended, status = os.waitpid(pid, os.WNOHANG)
    except ChildProcessError:
        return False  # collected before, and it was well
    return ended == pid and status != 0


def answers(address: str, tries: int = 1) -> bool:
    """Whether something accepts connections at `host:port`, within a second each try."""
    host, _, port = address.rpartition(":")
    for _ in range(tries):
        try:
            socket.create_connection((host, int(port)), timeout=1).close()
        except OSError:
            continue
        return True
    return False


def free_ports(count: int) -> list[int]:
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
