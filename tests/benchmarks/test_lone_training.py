"""What is in a process of `benchmarks/lone_training.py` before its bytes are counted."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import lone_training
import pytest

_SAYS = """
from lone_training import Task, _warm_up
from tensile import freed_memory

_warm_up(Task(model="ResNet-like", steps=1, threads=1))
print(freed_memory.lent_bytes(), freed_memory.waiting_bytes())
"""


@pytest.mark.long
def test_the_bare_process_holds_nothing_of_its_warm_up() -> None:
    done = subprocess.run(
        [sys.executable, "-c", _SAYS],
        cwd=Path(lone_training.__file__).parent,
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.stdout.split() == ["0", "0"], done.stderr
