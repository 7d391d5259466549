"""A program that stops moving is noticed; what it prints is no movement."""

from __future__ import annotations

import threading
from pathlib import Path

import pytest

from dovetail_workers.hang import HangWatch
from dovetail_workers.reports import Ended, Progress
from helpers.attempts import alive, entries, run, script_launch


def test_a_watch_calls_when_nothing_moves() -> None:
    hung = threading.Event()
    watch = HangWatch(0.05, hung.set)
    assert hung.wait(10)
    watch.close()


def test_a_watch_that_is_held_expects_nothing_until_the_next_move() -> None:
    hung = threading.Event()
    watch = HangWatch(0.1, hung.set)
    watch.hold()
    assert not hung.wait(0.3)
    watch.moved()
    assert hung.wait(10)
    watch.close()


def test_a_closed_watch_never_calls() -> None:
    hung = threading.Event()
    watch = HangWatch(3600, hung.set)
    watch.close()
    assert not hung.is_set()


def test_a_script_that_hangs_is_lost_with_its_whole_tree(tmp_path: Path) -> None:
    script = (
        "echo $$ > pid; echo '{\"step\": 4}' >> $DOVETAIL_REPORTS; "
        "(while true; do echo still here; sleep 0.1; done) & kill -STOP $$"
    )
    launch = script_launch(tmp_path / "storage", script, progress_timeout=1, workdir=str(tmp_path))
    assert run(launch, tmp_path) == Ended(
        outcome="lost", exit_code=-9, message="no progress for 1s (progress_timeout)"
    )
    assert Progress(step=4) in [entry.report for entry in entries(launch)]
    assert not alive(int((tmp_path / "pid").read_text()))


@pytest.mark.long
def test_a_script_that_moves_may_take_longer_than_the_timeout(tmp_path: Path) -> None:
    script = (
        "for step in 1 2 3 4 5 6; do "
        'echo "{\\"step\\": $step}" >> $DOVETAIL_REPORTS; sleep 0.5; done'
    )
    launch = script_launch(tmp_path, script, progress_timeout=2)
    assert run(launch, tmp_path).outcome == "succeeded"
