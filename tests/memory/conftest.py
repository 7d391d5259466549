"""What holds for every test of the memory manager: one thread, and a clean start.

What earlier tests left behind counts to a session's base, and would make room for it when it goes:
so it goes first. What is there even so stays, and no look for cycles need walk through it again.
"""

import gc
from collections.abc import Iterator

import pytest
import torch

from tensile.freed_memory import trim


@pytest.fixture(scope="module", autouse=True)
def _nothing_left_of_other_tests() -> None:
    gc.collect()
    gc.freeze()
    trim()


@pytest.fixture(autouse=True)
def _one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)
