"""The budget is kept by the operating system's count, taken from outside of the process."""

from __future__ import annotations

import json
import subprocess
import sys
import threading
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest

from tensile import resident

TESTS = Path(__file__).parents[1]
BUDGET_BYTES = 140 * 10**6
STEPS = 3


@dataclass
class Watched:
    """What a training process said, and the most that it held over the bare process."""

    said: dict[str, Any] = field(default_factory=dict)
    peak_bytes: int = 0


def watched(folder: Path, budget_bytes: int, steps: int = STEPS, kind: str = "traced") -> Watched:
    command = (sys.executable, "-m", "helpers.budgeted_process")
    child = subprocess.Popen(
        [*command, str(folder), str(budget_bytes), str(steps), kind],
        cwd=TESTS,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    result = Watched()
    over = threading.Event()
    with child:
        assert child.stdin is not None
        assert child.stdout is not None
        assert child.stdout.readline() == "ready\n"
        base = held_bytes(child.pid)

        def sample() -> None:
            while not over.wait(0.004):
                result.peak_bytes = max(result.peak_bytes, held_bytes(child.pid) - base)

        sampler = threading.Thread(target=sample)
        sampler.start()
        print("go", file=child.stdin, flush=True)
        for line in child.stdout:
            if line.startswith("{"):
                result.said = json.loads(line)
                break
        over.set()
        sampler.join()
        child.communicate("go\n")
    return result


def held_bytes(pid: int) -> int:
    """All resident pages: anonymous, shared, and of files. Those of libraries are in the base, so
    what comes later are the lower tier's (and a few of libraries, which is the stricter rule).
    """
    measured = resident.measure(pid)
    assert measured is not None
    return measured.total_bytes


@pytest.mark.long
@pytest.mark.parametrize("times", [2, 4, 6])
def test_a_training_of_several_times_its_budget_stays_under_it_in_every_step(
    times: int, tmp_path: Path
) -> None:
    budget_bytes = 2 * BUDGET_BYTES // times
    bound = watched(tmp_path, budget_bytes)
    assert bound.said["forecast"] > times * budget_bytes > times * bound.said["floor"]
    assert bound.peak_bytes < 1.05 * budget_bytes
    assert bound.said["stats"]["swapped_out_bytes"] > budget_bytes
    assert abs(bound.said["stats"]["peak_bytes"] - bound.peak_bytes) < 0.1 * budget_bytes


@pytest.mark.long
def test_without_a_budget_it_takes_what_was_forecast_and_gives_the_same_bits(
    tmp_path: Path,
) -> None:
    free, bound = watched(tmp_path, 0), watched(tmp_path, BUDGET_BYTES)
    assert abs(free.peak_bytes - bound.said["forecast"]) < 0.1 * free.peak_bytes
    assert bound.said["losses"] == free.said["losses"]
    assert bound.said["digest"] == free.said["digest"]


@pytest.mark.long
def test_a_step_that_cannot_be_traced_stays_under_its_budget_from_the_first_on(
    tmp_path: Path,
) -> None:
    bound = watched(tmp_path, BUDGET_BYTES, steps=5, kind="branching")
    assert "forecast" not in bound.said
    assert bound.peak_bytes < 1.05 * BUDGET_BYTES
    assert bound.said["stats"]["swapped_out_bytes"] > BUDGET_BYTES
    first, _, *later = [b - a for a, b in pairwise([0, *bound.said["passive"]])]
    assert max(later[1:]) < first / 2


@pytest.mark.long
def test_what_had_to_leave_beyond_the_plan_is_back_before_it_is_used(tmp_path: Path) -> None:
    free = watched(tmp_path, 0, steps=8)
    bound = watched(tmp_path, BUDGET_BYTES // 2, steps=8, kind="crowded")
    assert bound.peak_bytes < 1.05 * BUDGET_BYTES // 2
    assert bound.said["passive"][-1] <= 0.01 * bound.said["fetches"][-1]
    assert bound.said["losses"][-8:] == free.said["losses"]
