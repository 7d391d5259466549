"""What tests of every part share: properties are proved on the same examples each time, however
busy the machine is, a look for cycles does not walk through modules and tests that stay to the end,
and a broker's socket has a place whose path is short enough.
"""

import gc
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import settings

settings.register_profile("dovetail", deadline=None, derandomize=True, database=None)
settings.load_profile("dovetail")


def pytest_sessionstart() -> None:
    gc.disable()  # what is imported and collected stays


def pytest_collection_finish() -> None:
    gc.collect()
    gc.freeze()
    gc.enable()


@pytest.fixture
def place() -> Iterator[Path]:
    with tempfile.TemporaryDirectory(prefix="dt-") as folder:  # a socket's path has 107 bytes
        yield Path(folder, "broker.sock")
