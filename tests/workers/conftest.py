"""No attempt outlives its test, also when the test fails."""

from collections.abc import Iterator

import pytest

from helpers.attempts import STARTED


@pytest.fixture(autouse=True)
def no_attempt_is_left() -> Iterator[None]:
    yield
    while STARTED:
        process = STARTED.pop()
        process.terminate()
        try:
            process.wait(10)
        finally:
            process.kill()
            process.wait()
