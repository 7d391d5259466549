"""Steps that no trace tells of: the second one is observed, and those that follow have a plan."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from helpers.invented_costs import COSTS
from helpers.small_trainings import KINDS, Training, contents, differences, language, perceptron
from tensile import Session, forecast, trace
from tensile.execution import Execution
from tensile.observation import Observation
from tensile.observed import observed_trace
from tensile.sequence import Kind, Trace
from tensile.simulator import simulate

Step = Callable[[Training, Any], None]


def deep(rows: int = 4096) -> Training:
    """Activations of 150 MB over parameters of 3 MB; fewer for fewer rows."""
    torch.manual_seed(0)
    layers = [
        layer for _ in range(12) for layer in (nn.Linear(256, 256), nn.Tanh(), nn.Dropout(0.1))
    ]
    model = nn.Sequential(*layers)
    return Training(
        model=model,
        optimizer=torch.optim.AdamW(model.parameters(), lr=1e-3),
        batches=[torch.randn(rows, 256) for _ in range(3)],
        loss=lambda m, x: m(x).square().mean(),
    )


def branching(training: Training, batch: Tensor) -> None:
    """A step that a trace without values cannot follow."""
    training.optimizer.zero_grad()
    loss = training.loss(training.model, batch)
    if loss > 0:
        loss.backward()
    training.optimizer.step()
    training.losses.append(loss.item())


def taken(training: Training, step: Step, count: int, session: Session | None = None) -> list[int]:
    """Passive fetches of each step."""
    found = []
    training.start()
    for number in range(count):
        batch = training.batches[number % len(training.batches)]
        if session is None:
            step(training, batch)
            continue
        before = session.stats().passive_fetches
        with session.step():
            step(training, batch)
        found.append(session.stats().passive_fetches - before)
    return found


@pytest.mark.long
def test_a_step_that_branches_on_a_tensor_follows_a_plan_from_the_third_on(tmp_path: Path) -> None:
    steps, budget = 6, 96 * 2**20
    expected = deep()
    taken(expected, branching, steps)
    wanted = contents(expected)
    del expected
    training = deep()
    with Session(training.model, training.optimizer, budget, folder=tmp_path) as session:
        session.prepare(lambda batch: branching(training, batch), training.batches[0], costs=COSTS)
        assert session.forecast is None
        passive = taken(training, branching, steps, session)
        stats = session.stats()
    assert differences(contents(training), wanted) == []
    assert any("a real one is observed" in note for note in stats.notes)
    assert any("a plan that was made of one that was observed" in note for note in stats.notes)
    assert passive[0] > 5
    assert max(passive[3:]) < passive[0] / 2
    assert stats.deviations == 0
    assert stats.swapped_out_bytes > steps * 40 * 2**20
    assert stats.peak_bytes < 1.05 * budget


def seen(training: Training, folder: Path, budget: int | str) -> Trace:
    """The second step of a training, as it was observed."""
    found: list[Trace] = []
    with Session(training.model, training.optimizer, budget, folder=folder) as session:
        training.start()
        with session.step():
            training.step(training.batches[0])
        execution: Execution = session._execution
        with session.step():
            observation = execution.observation
            assert isinstance(observation, Observation)
            training.step(training.batches[1])
        found.append(observed_trace(observation))
    return found[0]


@pytest.mark.long
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("budget", [1, "8GiB"])
def test_what_was_observed_is_what_a_trace_tells(
    kind: str, budget: int | str, tmp_path: Path
) -> None:
    training = KINDS[kind]()
    traced = trace(training.step, training.model, training.optimizer, training.batches[0])
    observed = seen(training, tmp_path, budget)
    moments = [(event.moment, event.number, event.name) for event in traced.events]
    assert [(event.moment, event.number, event.name) for event in observed.events] == moments
    assert observed.chunks == tuple(tuple(sorted(chunk)) for chunk in traced.chunks)

    def lasting(of: Trace) -> dict[str, int]:
        kinds = (Kind.PARAMETER, Kind.STATE, Kind.GRADIENT)
        return {s.name: s.bytes for s in of.storages if s.kind in kinds}

    assert lasting(observed) == lasting(traced)
    for mine, theirs in zip(observed.slots, traced.slots, strict=True):
        storage = observed.storages[mine.storage]
        assert storage.bytes == traced.storages[theirs.storage].bytes
        assert len(mine.unpacks) == len(theirs.unpacks)
        assert storage.birth < mine.packed <= storage.death
        assert mine.alone is None or mine.alone > mine.packed
    nothing = simulate(observed, plan_of_nothing(observed), COSTS)
    natural = forecast(traced).peak_bytes
    assert nothing.peak_bytes > 0.7 * natural
    assert nothing.peak_bytes < 1.5 * natural + 8 * 2**20  # what libraries take counts here


def plan_of_nothing(observed: Trace) -> Any:
    from tensile import plan

    return plan(observed, forecast(observed).peak_bytes * 2, COSTS)


@pytest.mark.long
def test_steps_that_leave_their_plan_in_a_row_get_one_of_their_own(tmp_path: Path) -> None:
    training, expected = language(), language()
    whole, short = training.batches[0], training.batches[1][:, :40]
    order = [whole, short, short, short, short, short, short, whole, short]
    for batch in order:
        expected.step(batch)
    training.start()
    deviations = []
    with Session(
        training.model, training.optimizer, 0.6, folder=tmp_path, smallest_bytes=2**14
    ) as session:
        session.prepare(training.step, whole, costs=COSTS)
        for batch in order:
            before = session.stats().deviations
            with session.step():
                training.step(batch)
            deviations.append(session.stats().deviations - before)
        assert session.stats().replans >= 1
    assert deviations == [0, 1, 1, 1, 0, 0, 0, 0, 0]
    assert differences(contents(training), contents(expected)) == []


@pytest.mark.long
def test_each_kind_of_steps_that_alternate_gets_its_plan(tmp_path: Path) -> None:
    training, expected = language(), language()
    whole = training.batches[0]
    kinds = [whole, whole[:, :40], whole[:, :50]]
    order = [kinds[number % 3] for number in range(21)]
    for batch in order:
        expected.step(batch)
    training.start()
    deviations = []
    with Session(
        training.model, training.optimizer, 0.6, folder=tmp_path, smallest_bytes=2**14
    ) as session:
        session.prepare(training.step, whole, costs=COSTS)
        for batch in order:
            before = session.stats().deviations
            with session.step():
                training.step(batch)
            deviations.append(session.stats().deviations - before)
        assert session.stats().replans >= 2
    assert deviations == [0, 1, 1] * 3 + [0, 0, 0] * 4
    assert differences(contents(training), contents(expected)) == []


def test_a_batch_that_is_a_slice_is_of_the_kind_of_one_that_stands_alone(tmp_path: Path) -> None:
    training, expected = perceptron(), perceptron()
    inputs, targets = (torch.cat([batch[i] for batch in training.batches]) for i in (0, 1))
    for number in range(3):
        expected.step(expected.batches[number])
    with Session(training.model, training.optimizer, 0.6, folder=tmp_path) as session:
        session.prepare(training.step, (inputs[:512], targets[:512]), costs=COSTS)
        for batch in (training.batches[0], (inputs[512:1024], targets[512:1024])):
            with session.step():
                training.step(batch)
        with session.step():
            training.step(training.batches[2])
        assert session.stats().deviations == 0, session.stats().notes
        assert session.stats().swapped_out_bytes + session.stats().recomputed_bytes > 0
    assert differences(contents(training), contents(expected)) == []


def averaged(training: Training, batch: Any) -> None:
    """Gradients added up in place over two passes and clipped, averages of all weights after."""
    training.optimizer.zero_grad(set_to_none=False)
    for _ in range(2):
        loss = training.loss(training.model[0], batch)
        loss.backward()
    nn.utils.clip_grad_norm_(training.model[0].parameters(), 0.5)
    training.optimizer.step()
    with torch.no_grad():
        for mine, theirs in zip(
            training.model[1].parameters(), training.model[0].parameters(), strict=True
        ):
            mine.lerp_(theirs, 0.1)
    training.losses.append(loss.item())


@pytest.mark.long
@pytest.mark.parametrize("budget", [1, "16MiB"])
def test_averages_and_gradients_kept_in_place_are_bitwise_under_an_observed_plan(
    budget: int | str, tmp_path: Path
) -> None:
    def made() -> Training:
        training, other = deep(1024), deep(1024)
        training.model = nn.ModuleList([training.model, other.model])
        return training

    expected = made()
    taken(expected, averaged, 5)
    wanted = contents(expected)
    del expected
    training = made()
    with Session(training.model, training.optimizer, budget, folder=tmp_path) as session:
        taken(training, averaged, 5, session)
        assert session.stats().swapped_out_bytes > 0
        assert any("that was observed" in note for note in session.stats().notes)
    assert differences(contents(training), wanted) == []


class Skipping(nn.Module):
    """Every other block is left out, by lot."""

    def __init__(self) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(
            nn.Sequential(nn.Linear(128, 128), nn.GELU(), nn.Dropout(0.1)) for _ in range(8)
        )

    def forward(self, x: Tensor) -> Tensor:
        for block in self.blocks:
            if torch.rand(()) < 0.5:
                x = x + block(x)
        return x


def skipping() -> Training:
    torch.manual_seed(0)
    model = Skipping()
    return Training(
        model=model,
        optimizer=torch.optim.AdamW(model.parameters(), lr=1e-3),
        batches=[torch.randn(1024, 128, requires_grad=True) for _ in range(3)],
        loss=lambda m, x: m(x).square().mean(),
    )


@pytest.mark.long
@pytest.mark.parametrize("budget", [1, "8MiB"])
def test_steps_of_which_no_two_are_alike_are_bitwise_and_seldom_observed(
    budget: int | str, tmp_path: Path
) -> None:
    steps = 24
    expected = skipping()
    taken(expected, branching, steps)
    training = skipping()
    with Session(
        training.model, training.optimizer, budget, folder=tmp_path, smallest_bytes=0
    ) as session:
        taken(training, branching, steps, session)
        stats = session.stats()
    assert stats.swapped_out_bytes > 0
    assert stats.deviations > steps / 2
    assert stats.replans <= 8
    assert differences(contents(training), contents(expected)) == []
