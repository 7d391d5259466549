"""How busy an attempt keeps its processors: what it computes, whoever else wants them too."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import pytest

from dovetail_workers.busyness import EVERY_S, FIRST_S, NEWS, Busyness, busy
from dovetail_workers.reports import Busy, Report
from helpers.attempts import entries, script_launch, start, wait_for

BURN = """
import os, sys, time
os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})
for line in sys.stdin:
    end_s = time.process_time() + float(line)
    while time.process_time() < end_s:
        pass
    print(flush=True)
"""


@contextmanager
def burner() -> Iterator[subprocess.Popen[str]]:
    """Computes as many seconds as it is told, on the first processor."""
    process = subprocess.Popen(
        [sys.executable, "-c", BURN], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    try:
        tell(process, 0)
        heard(process)
        yield process
    finally:
        process.kill()
        process.communicate()


def tell(process: subprocess.Popen[str], seconds: float) -> None:
    assert process.stdin is not None
    print(seconds, file=process.stdin, flush=True)


def heard(process: subprocess.Popen[str]) -> None:
    assert process.stdout is not None
    process.stdout.readline()


@pytest.mark.parametrize(
    ("computed_s", "waited_s", "elapsed_s", "threads", "share"),
    [
        (3.0, 0.0, 10.0, 1, 0.3),
        (3.0, 0.0, 10.0, 2, 0.15),
        (5.0, 5.0, 10.0, 1, 1.0),  # all the time, of which a neighbour had half
        (3.0, 4.0, 10.0, 1, 0.5),
        (12.0, 0.0, 10.0, 1, 1.0),  # more threads than it asked for
        (0.0, 20.0, 10.0, 1, 0.0),
        (0.0, 0.0, 0.0, 1, 0.0),
    ],
)
def test_what_is_waited_for_a_processor_is_not_idle(
    computed_s: float, waited_s: float, elapsed_s: float, threads: int, share: float
) -> None:
    assert busy(computed_s, waited_s, elapsed_s, threads) == share


class Watched:
    """A `Busyness` whose time passes when told."""

    def __init__(self) -> None:
        self.now_s = 100.0
        self.told: list[float] = []
        self.busyness = Busyness(1, self._hear, lambda: self.now_s)

    def _hear(self, report: Report) -> None:
        assert isinstance(report, Busy)
        self.told.append(report.share)

    def look(self, process: subprocess.Popen[str], after_s: float = 0.0) -> None:
        self.now_s += after_s
        self.busyness.look([process.pid])


def test_it_is_told_after_some_seconds_of_training_and_when_it_has_changed() -> None:
    watched = Watched()
    with burner() as process:
        watched.look(process, 1000.0)  # it does not train yet
        watched.busyness.begin()
        watched.look(process)
        tell(process, 0.3)
        heard(process)
        watched.look(process, FIRST_S - 0.1)
        assert watched.told == []
        watched.look(process, 0.1)
        (first,) = watched.told
        assert 0.05 < first < 0.1
        watched.look(process, EVERY_S - 0.1)
        assert watched.told == [first]
        watched.look(process, 0.1)
        assert len(watched.told) == 2
        assert watched.told[-1] < first - NEWS
    watched.look(process, EVERY_S)  # it is gone, and what it computed still counts
    assert watched.told[-1] > 0


@pytest.mark.long
def test_two_that_share_a_processor_are_found_to_want_all_of_it() -> None:
    with ExitStack() as stack:
        processes = [stack.enter_context(burner()) for _ in range(2)]
        told: list[list[float]] = [[], []]
        watches = [
            Busyness(1, lambda report, told=each: told.append(report.share)) for each in told
        ]
        for watch in watches:
            watch.begin()
        for process in processes:
            tell(process, 60.0)

        def both_told() -> bool:
            for watch, process in zip(watches, processes, strict=True):
                watch.look([process.pid])
            return all(told)

        wait_for("both", both_told, deadline_s=3 * FIRST_S)
    assert [shares[0] > 0.9 for shares in told] == [True, True]


@pytest.mark.long
def test_the_supervisor_tells_how_busy_a_script_is(tmp_path: Path) -> None:
    launch = script_launch(tmp_path, f"{sys.executable} -c 'while True: pass'")
    process = start(launch, tmp_path)
    (told, *_) = wait_for(
        "its word", lambda: [e.report for e in entries(launch) if isinstance(e.report, Busy)]
    )
    assert told.share > 0.8
    process.terminate()
    process.wait(30)
