"""The real app around a `FakeService` on a real socket: in a thread, or as a process.

As a process it stands for `dovetail.serve`: it takes `--ready-fd N` and the DOVETAIL_* environment.
"""

from __future__ import annotations

import json
import os
import socket
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, cast

import uvicorn

from dovetail.api.app import create_app
from dovetail.service.contract import ServerOptions, Service
from dovetail.service.use_cases import Platform
from dovetail.settings import Settings
from helpers.fake_service import FakeService

TOKEN = "a-token-of-the-tests"


def listener() -> socket.socket:
    """A socket that listens on a free port already, so that nobody has to wait for it."""
    bound = socket.socket(socket.AF_INET, socket.SOCK_STREAM, socket.IPPROTO_TCP)
    bound.bind(("127.0.0.1", 0))
    bound.listen(64)
    return bound


def make_server(service: FakeService | Stage | Platform) -> uvicorn.Server:
    config = uvicorn.Config(
        create_app(cast(Service, service), TOKEN), log_level="critical", lifespan="off", ws="none"
    )
    return uvicorn.Server(config)


class Stage:
    """One running server for many tests: it answers for the service that plays now."""

    def __init__(self, url: str) -> None:
        self.url = url
        self._playing = FakeService()

    @contextmanager
    def play(self) -> Iterator[FakeService]:
        """A fresh service, for the block."""
        self._playing = FakeService(self.url)
        try:
            yield self._playing
        finally:
            self._playing.close()

    def __getattr__(self, name: str) -> Any:
        return getattr(self._playing, name)


@contextmanager
def served(service: FakeService | Stage) -> Iterator[str]:
    """The URL at which `service` answers while the block runs."""
    with listener() as bound:
        service.url = f"http://127.0.0.1:{bound.getsockname()[1]}"
        server = make_server(service)
        thread = threading.Thread(target=server.run, kwargs={"sockets": [bound]})
        thread.start()
        try:
            yield service.url
        finally:
            service.close()
            server.should_exit = True
            thread.join()


@contextmanager
def staged() -> Iterator[Stage]:
    stage = Stage("")
    with served(stage) as stage.url:
        yield stage


def main(ready_fd: int) -> None:
    with os.fdopen(ready_fd, "w") as ready:
        settings = Settings.from_environment()
        service = FakeService()
        bound = listener()
        service.url, service.pid = f"http://127.0.0.1:{bound.getsockname()[1]}", os.getpid()
        service.options = ServerOptions.model_validate(settings.server_options())
        server = make_server(service)
        service.on_shutdown = lambda: setattr(server, "should_exit", True)
        settings.token_file.write_text(TOKEN)
        settings.token_file.chmod(0o600)
        said = json.dumps({"url": service.url, "pid": service.pid})
        settings.server_file.write_text(said)
        ready.write(said + "\n")
    server.run(sockets=[bound])
    settings.server_file.unlink()


if __name__ == "__main__":
    main(int(sys.argv[2]))
