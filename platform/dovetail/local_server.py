"""The server of this machine: find it, start it, see it end. Waits are for events, with a limit.

`server.json` names the running server. A server that we start says `{"url", "pid"}` through a pipe
once it listens, or `{"error", "exit_code"}`; a pipe that closes without a word means that it ended.
"""

from __future__ import annotations

import fcntl
import getpass
import json
import os
import select
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from dovetail.client import Client
from dovetail.settings import Settings
from dovetail_jobs.errors import AuthError, Conflict, NotFound, Unreachable, UserError

COMMAND = (sys.executable, "-m", "dovetail.serve")
START_S = 60.0
STOP_S = 60.0
REMOTE_AGAIN_S = 60.0  # how long a server elsewhere may be away before a follower gives up
_STARTED = "started a local server and Ray (`dovetail down` stops both)"
_JOINED = "started a local server on the Ray at {} (`dovetail down` stops the server)"
_KINDS = {kind.exit_code: kind for kind in (UserError, NotFound, AuthError, Conflict)}


def find_server(settings: Settings, timeout_s: float = 5.0) -> Client | None:
    """A client of the server that answers for this home, or None; starts nothing.

    Raises AuthError when a server answers but its token cannot be read.
    """
    if settings.server_url:
        if not settings.server_token:
            raise AuthError("DOVETAIL_URL is set without DOVETAIL_TOKEN; set both or neither")
        return Client(settings.server_url, settings.server_token, user=_user())
    said = _read_json(settings.server_file)
    if said is None or not isinstance(said.get("url"), str):
        return None
    if not Client(said["url"], "", timeout_s=timeout_s).healthy():
        return None
    try:
        token = settings.token_file.read_text().strip()
    except OSError as error:
        raise AuthError(
            f"{settings.token_file}: cannot be read ({error.strerror}); "
            "it holds the server's token and belongs to whoever started the server"
        ) from None
    return Client(said["url"], token, user=_user())


def ensure_server(
    settings: Settings, say: Callable[[str], None], command: Sequence[str] = COMMAND
) -> Client:
    """A client of this home's server, started if none answers; says so in one line.

    Raises Unreachable when it does not start, or the error that it named.
    """
    if client := find_server(settings):
        return client
    settings.create_folders()
    with _alone(settings.start_lock):
        if client := find_server(settings):
            return client
        _start(settings, command)
        client = find_server(settings)
    if client is None:
        raise Unreachable(
            f"a server was started but {settings.server_file} names none that answers; "
            f"see {settings.server_log}"
        )
    address = settings.ray_address
    say(_JOINED.format(address) if address else _STARTED)
    return client


def server_again(settings: Settings, lost: Unreachable, say: Callable[[str], None]) -> Client:
    """The server of this home after it stopped answering: found, awaited, or started anew.

    One that was stopped on purpose has taken `server.json` with it; then, and when a server
    elsewhere stays away, `lost` is raised again.
    """
    if settings.server_url:
        say(f"{lost.message}; waiting up to {REMOTE_AGAIN_S:.0f} s for it")
        client = find_server(settings)
        deadline_s = time.monotonic() + REMOTE_AGAIN_S
        while client is not None and time.monotonic() < deadline_s:
            if client.healthy():
                return client
            time.sleep(1.0)  # nothing of a machine elsewhere wakes us
        raise lost
    if server_pid(settings) is None:
        raise lost
    return ensure_server(settings, say)


def server_pid(settings: Settings) -> int | None:
    """The process that server.json names, whether it lives or not."""
    said = _read_json(settings.server_file) or {}
    pid = said.get("pid")
    return pid if isinstance(pid, int) else None


def wait_until_gone(pid: int, timeout_s: float = STOP_S) -> bool:
    """Wait for the end of a process, not necessarily our child; False when the time is over."""
    try:
        handle = os.pidfd_open(pid)
    except ProcessLookupError:
        return True
    try:
        return bool(select.select([handle], [], [], timeout_s)[0])
    finally:
        os.close(handle)


def _start(settings: Settings, command: Sequence[str]) -> None:
    """Start a detached server and wait for its word."""
    reader, writer = os.pipe()
    try:
        with settings.server_log.open("ab") as log:
            os.fchmod(log.fileno(), 0o600)
            process = subprocess.Popen(
                [*command, "--ready-fd", str(writer)],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                env=settings.child_environment(),
                pass_fds=(writer,),
                start_new_session=True,
            )
        os.close(writer)
        writer = -1
        word = _read_line(reader, START_S)
    finally:
        os.close(reader)
        if writer >= 0:
            os.close(writer)
    if not word:
        _raise_silent(process, settings)
    said = json.loads(word)
    if "error" in said:
        process.wait()
        raise _KINDS.get(said.get("exit_code", 5), Unreachable)(said["error"])
    # The server outlives this command; nobody here waits for it.
    process.returncode = 0


def _raise_silent(process: subprocess.Popen[bytes], settings: Settings) -> None:
    try:
        code = process.wait(timeout=1.0)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()
        raise Unreachable(
            f"the server was not ready after {START_S:.0f} s and was stopped; "
            f"see {settings.server_log}"
        ) from None
    raise Unreachable(
        f"the server ended while it started (exit code {code}): "
        f"{_last_line(settings.server_log)}; see {settings.server_log}"
    )


def _read_line(reader: int, timeout_s: float) -> bytes:
    """One line from a pipe; empty when it closed or the time was over first."""
    deadline_s = time.monotonic() + timeout_s
    line = b""
    while not line.endswith(b"\n"):
        left_s = deadline_s - time.monotonic()
        if left_s <= 0 or not select.select([reader], [], [], left_s)[0]:
            return b""
        part = os.read(reader, 65536)
        if not part:
            return b""
        line += part
    return line


def _last_line(log: Path) -> str:
    lines = log.read_text(errors="replace")[-4000:].splitlines()
    return next((line.strip() for line in reversed(lines) if line.strip()), "it said nothing")


@contextmanager
def _alone(path: Path) -> Iterator[None]:
    with path.open("a") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def _read_json(path: Path) -> dict[str, Any] | None:
    try:
        value = json.loads(path.read_text())
    except (OSError, ValueError):
        return None
    return value if isinstance(value, dict) else None


def _user() -> str:
    try:
        return getpass.getuser()
    except (KeyError, OSError):
        return str(os.getuid())
