"""The server process: composition root of settings, store, storage, cluster, daemon and API.
`python -m dovetail.serve`.

It listens on loopback only, holds its home's lock for as long as it lives, and never imports ray or
torch. `--ready-fd N` gets one JSON line: `{"url", "pid"}` when it listens, or `{"error",
"exit_code"}` with a sentence for the user.
"""

from __future__ import annotations

import argparse
import contextlib
import fcntl
import json
import logging
import os
import secrets
import socket
import sys
from collections.abc import Iterator
from pathlib import Path

import uvicorn

from dovetail.api.app import create_app
from dovetail.cluster.ray_cluster import RayCluster
from dovetail.cluster.wire import BridgeSettings
from dovetail.daemon import Daemon
from dovetail.scheduler.policies import POLICIES
from dovetail.service.changes import Changes
from dovetail.service.cluster_state import ClusterState
from dovetail.service.code import CodeShelf
from dovetail.service.forecasts import Forecasts
from dovetail.service.foresight import Foresight
from dovetail.service.outlooks import Outlooks
from dovetail.service.server_state import ServerState
from dovetail.service.use_cases import Platform
from dovetail.settings import Settings
from dovetail.store.store import Store
from dovetail_jobs.errors import Conflict, DovetailError, UserError
from dovetail_workers.storage.open import open_storage

log = logging.getLogger("dovetail.serve")

NAMESPACE = "dovetail"


def serve(settings: Settings, ready_fd: int | None) -> None:
    """Run until told to end. Raises DovetailError when it cannot begin."""
    settings.create_folders()
    with contextlib.ExitStack() as stack:
        stack.enter_context(_only_server(settings))
        token = _token(settings.token_file)
        listener = stack.enter_context(contextlib.closing(_listen(settings.port)))
        url = f"http://127.0.0.1:{listener.getsockname()[1]}"
        store = Store(settings.database_url)
        stack.callback(store.close)
        storage = open_storage(settings.storage_uri)
        changes, state, standing = Changes(), ClusterState(), ServerState()
        outlooks = Outlooks()
        code = CodeShelf(storage, settings.code_limit_bytes)
        forecasts = Forecasts(settings.home / "forecasts")
        daemon = Daemon(
            store=store,
            storage=storage,
            storage_uri=settings.storage_uri,
            state=state,
            changes=changes,
            policy=POLICIES["priority"],
            cluster=lambda deliver: RayCluster(
                _bridge_settings(settings), deliver, settings.home / "bridge.log"
            ),
            holder=_holder(settings),
            server=standing,
            foresight=lambda deliver: Foresight(forecasts, code, deliver),
            outlooks=outlooks,
        )
        platform = Platform(
            store=store,
            storage=storage,
            state=state,
            server=standing,
            changes=changes,
            nudge=daemon.nudge,
            code=code,
            forecasts=forecasts,
            outlooks=outlooks,
            settings=settings,
            url=url,
        )
        config = uvicorn.Config(
            create_app(platform, token, code_limit_bytes=settings.code_limit_bytes),
            log_level="warning",
            access_log=False,
            lifespan="off",
            timeout_graceful_shutdown=2,
        )
        server = uvicorn.Server(config)

        def end() -> None:
            # Gone first: who loses the connection knows that this was wanted (server_again).
            settings.server_file.unlink(missing_ok=True)
            changes.close()  # whoever waits for news is answered now, and not after a grace
            server.should_exit = True

        platform.on_shutdown = end
        daemon.start()
        _write_private(settings.server_file, json.dumps({"url": url, "pid": os.getpid()}))
        stack.callback(settings.server_file.unlink, missing_ok=True)
        _tell(ready_fd, {"url": url, "pid": os.getpid()})
        log.info("listening url=%s pid=%s home=%s", url, os.getpid(), settings.home)
        try:
            server.run(sockets=[listener])
        finally:
            changes.close()
            daemon.stop(stop_cluster=platform.stop_ray)
            log.info("ended stop_ray=%s", platform.stop_ray)


def _holder(settings: Settings) -> str:
    """This server's name among all on its database: host, home, and the mark of that home.

    The mark tells apart two machines that call themselves and their homes alike.
    """
    with contextlib.suppress(FileExistsError), settings.server_mark.open("x") as file:
        file.write(secrets.token_hex(4))
    mark = settings.server_mark.read_text().strip()
    return f"{socket.gethostname()}:{settings.home} ({mark})"


def _bridge_settings(settings: Settings) -> BridgeSettings:
    return BridgeSettings(
        namespace=NAMESPACE,
        address=settings.ray_address,
        cpu_devices=settings.cpu_devices,
        device_bytes=settings.device_memory_bytes,
        ray_record=str(settings.ray_file),
        ray_token=str(settings.ray_token_file),
        ray_log=str(settings.ray_log),
    )


@contextlib.contextmanager
def _only_server(settings: Settings) -> Iterator[None]:
    """Hold the lock that says: one server on this home. It falls with the process, however that
    ends.
    """
    with settings.server_lock.open("a+") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            file.seek(0)
            raise Conflict(
                f"a server already runs on {settings.home} "
                f"(pid {file.read().strip() or 'unknown'}); use it, "
                "end it with `dovetail down`, or set another DOVETAIL_HOME"
            ) from None
        file.truncate(0)
        file.write(str(os.getpid()))
        file.flush()
        yield


def _listen(port: int | None) -> socket.socket:
    # Only where TCP is named, asyncio sends a short answer at once and not after some 40 ms.
    listener = socket.socket(socket.AF_INET, socket.SOCK_STREAM, socket.IPPROTO_TCP)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listener.bind(("127.0.0.1", port or 0))
        listener.listen(128)
    except OSError as error:
        listener.close()
        raise UserError(
            f"port {port}: {os.strerror(error.errno or 0).lower()} on 127.0.0.1; "
            "choose another with --port or DOVETAIL_PORT, or leave it out for a free one"
        ) from None
    return listener


def _token(path: Path) -> str:
    """The token that callers must show, made at the first start, readable by its owner only."""
    with contextlib.suppress(FileNotFoundError):
        path.chmod(0o600)
        if text := path.read_text().strip():
            return text
    token = secrets.token_urlsafe(32)
    _write_private(path, token)
    return token


def _write_private(path: Path, text: str) -> None:
    temporary = path.with_name(f"{path.name}.{os.getpid()}")
    descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
    with os.fdopen(descriptor, "w") as file:
        file.write(text)
    temporary.replace(path)


def _tell(ready_fd: int | None, message: dict[str, object]) -> None:
    if ready_fd is not None:
        with contextlib.suppress(OSError):
            os.write(ready_fd, json.dumps(message).encode() + b"\n")
            os.close(ready_fd)


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m dovetail.serve")
    parser.add_argument("--ready-fd", type=int)
    ready_fd: int | None = parser.parse_args().ready_fd
    logging.basicConfig(
        level=logging.INFO,
        format="%(asctime)s %(levelname)s %(name)s %(message)s",
        stream=sys.stderr,
    )
    try:
        serve(Settings.from_environment(), ready_fd)
    except DovetailError as error:
        _tell(ready_fd, {"error": str(error), "exit_code": error.exit_code})
        print(f"error: {error}", file=sys.stderr)
        return error.exit_code
    return 0


if __name__ == "__main__":
    sys.exit(main())
