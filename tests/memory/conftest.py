"""What earlier tests left behind counts to a session's base, and would make room for it when it
goes: so it goes first.
"""

import gc

import pytest

from tensile.freed_memory import trim


@pytest.fixture(scope="module", autouse=True)
def _nothing_left_of_other_tests() -> None:
    gc.collect()
    trim()
