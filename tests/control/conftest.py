"""One running server for a module's tests, and a scripted service behind it for each of them."""

from collections.abc import Iterator

import pytest

from helpers.fake_server import Stage, staged
from helpers.fake_service import FakeService


@pytest.fixture(scope="module")
def stage() -> Iterator[Stage]:
    with staged() as stage:
        yield stage


@pytest.fixture
def service(stage: Stage) -> Iterator[FakeService]:
    with stage.play() as service:
        yield service
