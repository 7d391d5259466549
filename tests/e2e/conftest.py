"""One installation with a real server and a real Ray for all end-to-end tests that do not need
their own.
"""

import contextlib
from collections.abc import Iterator
from pathlib import Path

import pytest

from helpers.databases import KINDS, running_postgres
from helpers.installation import Installation


@pytest.fixture(scope="session")
def dovetail(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Installation]:
    installation = Installation(tmp_path_factory.mktemp("home"))
    try:
        up = installation.run("up", "--cpu-devices", "2", "--device-memory", "2GiB")
        assert up.returncode == 0, up.stderr
        yield installation
    finally:
        installation.close()


@pytest.fixture
def own(tmp_path: Path) -> Iterator[Installation]:
    """An installation that has not been started yet."""
    installation = Installation(tmp_path / "home")
    yield installation
    installation.close()


@pytest.fixture(scope="module", params=KINDS)
def on_each_database(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Installation]:
    """An installation that has not been started yet: on SQLite, then on a real PostgreSQL."""
    home = tmp_path_factory.mktemp("home")
    with contextlib.ExitStack() as stack:
        environment = {}
        if request.param == "postgresql":
            server = stack.enter_context(running_postgres())
            database = server.new_database(migrated=False)
            environment["DOVETAIL_DATABASE"] = server.url(database)
        installation = Installation(home, **environment)
        stack.callback(installation.close)
        yield installation
