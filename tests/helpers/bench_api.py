"""The use cases over a bench, called as they are or over HTTP."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager

from dovetail.client import Client
from dovetail.service.code import CodeShelf
from dovetail.service.forecasts import Forecasts
from dovetail.service.outlooks import Outlooks
from dovetail.service.use_cases import Platform
from dovetail.settings import Settings
from helpers.bench import Bench
from helpers.fake_server import TOKEN, listener, make_server


def platform_of(
    bench: Bench, forecasts: Forecasts | None = None, outlooks: Outlooks | None = None
) -> Platform:
    home = bench.folder
    return Platform(
        store=bench.store,
        storage=bench.storage,
        state=bench.state,
        server=bench.server,
        changes=bench.changes,
        nudge=bench.daemon.nudge,
        code=CodeShelf(bench.storage, limit_bytes=2**20),
        forecasts=forecasts or Forecasts(home / "forecasts"),
        outlooks=outlooks or Outlooks(),
        settings=Settings.from_environment({"DOVETAIL_HOME": str(home)}),
        url="http://127.0.0.1",
    )


@contextmanager
def api_of(bench: Bench, forecasts: Forecasts | None = None) -> Iterator[Client]:
    with listener() as bound:
        server = make_server(platform_of(bench, forecasts))
        thread = threading.Thread(target=server.run, kwargs={"sockets": [bound]})
        thread.start()
        try:
            yield Client(f"http://127.0.0.1:{bound.getsockname()[1]}", TOKEN)
        finally:
            bench.changes.close()
            server.should_exit = True
            thread.join()
