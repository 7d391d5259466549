"""One installation with a real server and a real Ray for all end-to-end tests that do not need
their own.
"""

from collections.abc import Iterator
from pathlib import Path

import pytest

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
