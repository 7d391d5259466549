"""Training in a session gives the bits that training without one gives.

These models are so small that the process itself outweighs them; `test_fifty_steps.py` and
`test_random_graphs.py` also judge the peak.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from helpers.invented_costs import COSTS
from helpers.small_trainings import KINDS, Training, contents, differences
from tensile import Session, Stats

STEPS = 8


def without_session(kind: str, steps: int = STEPS) -> Training:
    training = KINDS[kind]()
    for number in range(steps):
        training.step(training.batches[number % len(training.batches)])
    return training


def inside(session: Session, training: Training, steps: int = STEPS) -> Stats:
    for number in range(steps):
        with session.step():
            training.step(training.batches[number % len(training.batches)])
    return session.stats()


QUICK = ("perceptron", "convolutions")


@pytest.mark.parametrize(
    "kind", [*QUICK, *(pytest.param(k, marks=pytest.mark.long) for k in KINDS if k not in QUICK)]
)
def test_a_planned_step_at_half_the_peak_gives_the_same_bits(kind: str, tmp_path: Path) -> None:
    expected = contents(without_session(kind))
    training = KINDS[kind]()
    with Session(training.model, training.optimizer, 0.5, folder=tmp_path) as session:
        session.prepare(training.step, training.batches[0], costs=COSTS)
        stats = inside(session, training)
        assert differences(contents(training), expected) == []
    assert stats.deviations == 0, stats.notes
    assert stats.swapped_out_bytes + stats.recomputed_bytes > 0
    assert differences(contents(training), expected) == []


@pytest.mark.long
@pytest.mark.parametrize("kind", KINDS)
def test_a_budget_that_nothing_fits_moves_everything_and_gives_the_same_bits(
    kind: str, tmp_path: Path
) -> None:
    expected = contents(without_session(kind))
    training = KINDS[kind]()
    with Session(
        training.model, training.optimizer, 1, folder=tmp_path, smallest_bytes=0
    ) as session:
        stats = inside(session, training)
        assert differences(contents(training), expected) == []
    assert stats.swapped_out_bytes > 0
    assert stats.swapped_in_bytes > 0
    assert differences(contents(training), expected) == []


@pytest.mark.long
@pytest.mark.parametrize("kind", ["perceptron", "language"])
def test_training_goes_on_with_the_same_bits_after_the_session_is_closed(
    kind: str, tmp_path: Path
) -> None:
    expected = contents(without_session(kind))
    training = KINDS[kind]()
    with Session(
        training.model, training.optimizer, 1, folder=tmp_path, smallest_bytes=0
    ) as session:
        inside(session, training, STEPS // 2)
    for number in range(STEPS // 2, STEPS):
        training.step(training.batches[number % len(training.batches)])
    assert differences(contents(training), expected) == []


@pytest.mark.long
def test_two_shapes_that_were_both_prepared_alternate_without_leaving_their_plans(
    tmp_path: Path,
) -> None:
    def alternating(training: Training) -> Iterator[torch.Tensor]:
        for number in range(STEPS):
            batch = training.batches[number % len(training.batches)]
            yield batch if number % 2 else batch[:2, :40]

    free, training = KINDS["language"](), KINDS["language"]()
    for batch in alternating(free):
        free.step(batch)
    expected = contents(free)
    training.start()
    with Session(training.model, training.optimizer, 0.5, folder=tmp_path) as session:
        for batch in (training.batches[0], training.batches[0][:2, :40]):
            session.prepare(training.step, batch, costs=COSTS)
        for batch in alternating(training):
            with session.step():
                training.step(batch)
        stats = session.stats()
        assert differences(contents(training), expected) == []
    assert stats.deviations == 0, stats.notes
    assert stats.swapped_out_bytes + stats.recomputed_bytes > 0


@pytest.mark.long
def test_a_plan_that_waits_is_improved_in_the_background_and_gives_the_same_bits(
    tmp_path: Path,
) -> None:
    slow = replace(COSTS, out_bytes_per_s=2e8, in_bytes_per_s=2e8, overhead_s=1e-4)
    expected = contents(without_session("attention"))
    training = KINDS["attention"]()
    with Session(training.model, training.optimizer, 0.5, folder=tmp_path) as session:
        session.prepare(training.step, training.batches[0], costs=slow)
        inside(session, training, 1)
        assert [t.name for t in threading.enumerate() if "planner" in t.name] == [
            "tensile planner_0"
        ]
        for number in range(1, STEPS):
            with session.step():
                training.step(training.batches[number % len(training.batches)])
    assert differences(contents(training), expected) == []
    assert not any("planner" in thread.name for thread in threading.enumerate())
