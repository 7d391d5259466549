"""A step that finds no memory is taken once more, where that changes no bit; or its error surfaces
and everything is valid.
"""

from __future__ import annotations

import resource
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from helpers.invented_costs import COSTS
from helpers.mischief import (
    PLACES,
    ROWS,
    WIDTH,
    Interrupted,
    Mischief,
    all_of,
    impossible,
    interrupt,
    limit_address_space,
    take,
    training_with,
    unlimit_address_space,
)
from helpers.small_trainings import Training, differences, perceptron
from tensile import Session, StepOutOfMemory, TierError, freed_memory
from tensile.rungs import SHARES, rung_below

CHUNK = "chunk"


@pytest.fixture(autouse=True)
def _unlimited_again() -> Iterator[None]:
    yield
    unlimit_address_space()


def undisturbed(steps: int) -> Training:
    mischief = Mischief()
    training = training_with(mischief, normed=True)
    training.start()
    for number in range(steps):
        take(training, mischief, training.batches[number % 3])
    return training


@pytest.mark.long
@pytest.mark.parametrize("place", PLACES)
@pytest.mark.parametrize("budget", [1, "8GiB"])
def test_a_step_that_finds_no_memory_is_taken_once_more_with_the_same_bits(
    place: str, budget: int | str, tmp_path: Path
) -> None:
    wanted = all_of(undisturbed(3))
    mischief = Mischief()
    training = training_with(mischief, normed=True)
    training.start()
    with Session(training.model, training.optimizer, budget, folder=tmp_path) as session:
        for number in range(3):
            if number == 1:
                mischief.set(place, impossible)
            session.attempt(partial(take, training, mischief), training.batches[number])
            if number == 1:
                assert mischief.met.count("begin") == 2
    assert differences(all_of(training), wanted) == []


@pytest.mark.long
@pytest.mark.parametrize("place", PLACES)
def test_a_step_that_fails_in_the_middle_of_its_plan_is_taken_again_under_a_lower_one(
    place: str, tmp_path: Path
) -> None:
    wanted = all_of(undisturbed(4))
    mischief = Mischief()
    training = training_with(mischief, normed=True)
    training.start()
    step = partial(take, training, mischief)
    with Session(training.model, training.optimizer, 0.7, folder=tmp_path) as session:
        session.prepare(step, training.batches[0], costs=COSTS)
        training.losses.clear()  # what a step does to objects, a trace does twice
        assert session.forecast is not None
        for number in range(4):
            if number == 2:
                mischief.set(place, impossible)
            moved = session.stats().swapped_out_bytes
            session.attempt(step, training.batches[number % 3])
            assert session.stats().swapped_out_bytes > moved
        assert session.stats().budget_bytes == int(0.6 * session.forecast.peak_bytes)
    assert differences(all_of(training), wanted) == []


@pytest.mark.long
def test_a_first_step_that_fails_is_taken_once_more(tmp_path: Path) -> None:
    wanted = all_of(undisturbed(1))
    mischief = Mischief()
    training = training_with(mischief, normed=True)
    training.start()
    with Session(training.model, training.optimizer, "8GiB", folder=tmp_path) as session:
        mischief.set("optimizer", impossible)
        session.attempt(partial(take, training, mischief), training.batches[0])
    assert differences(all_of(training), wanted) == []


@pytest.mark.long
@pytest.mark.parametrize("place", ["forward", "optimizer"])
def test_a_step_that_fails_twice_is_undone_and_can_be_taken_later(
    place: str, tmp_path: Path
) -> None:
    wanted = all_of(undisturbed(2))
    mischief = Mischief()
    training = training_with(mischief, normed=True)
    training.start()
    step = partial(take, training, mischief)
    with Session(training.model, training.optimizer, "8GiB", folder=tmp_path) as session:
        session.attempt(step, training.batches[0])
        before = all_of(training)
        mischief.set(place, impossible, times=2)
        with pytest.raises(StepOutOfMemory, match="also after everything left that could") as found:
            session.attempt(step, training.batches[1])
        assert found.value.undone
        found = None
        # the step itself drops the gradients of the one before
        parts = ("model", "optimizer", "losses", "generator")
        after = all_of(training)
        assert [d for part in parts for d in differences(after[part], before[part])] == []
        assert not any(g is not None for g in after["gradients"].values())
        session.attempt(step, training.batches[1])
    assert differences(all_of(training), wanted) == []


class Greedy(float):
    """A learning rate that needs more memory than there is, the first time that it is used."""

    def __new__(cls, value: float, mischief: Mischief) -> Greedy:
        made = super().__new__(cls, value)
        made.mischief = mischief
        return made

    mischief: Mischief

    def __mul__(self, other: Any) -> float:
        self.mischief.at(CHUNK)
        return float(self) * other


def test_a_step_that_began_to_write_is_not_taken_again(tmp_path: Path) -> None:
    mischief = Mischief()
    training = training_with(mischief)
    last = training.optimizer.param_groups[-1]
    last["lr"] = Greedy(1e-3, mischief)
    with Session(training.model, training.optimizer, "8GiB", folder=tmp_path) as session:
        step = partial(take, training, mischief)
        session.attempt(step, training.batches[0])
        before = all_of(training)["model"]
        mischief.set(CHUNK, impossible)
        with pytest.raises(StepOutOfMemory, match="had begun to write") as found:
            session.attempt(step, training.batches[1])
        assert not found.value.undone
        changed = differences(all_of(training)["model"], before)
        assert changed
        assert not any(name.startswith(".10.") for name in changed)
        session.attempt(step, training.batches[2])


@pytest.mark.long
def test_gradients_of_earlier_steps_that_were_added_to_are_not_added_to_twice(
    tmp_path: Path,
) -> None:
    mischief = Mischief()
    training = training_with(mischief)

    def accumulate(batch: torch.Tensor) -> None:
        training.loss(training.model, batch).backward()

    with Session(training.model, training.optimizer, "8GiB", folder=tmp_path) as session:
        session.attempt(accumulate, training.batches[0])
        first = all_of(training)["gradients"]
        mischief.set("forward", impossible)
        generator = torch.get_rng_state()
        session.attempt(accumulate, training.batches[1])
        both = all_of(training)["gradients"]
        mischief.set("gradient", impossible)
        with pytest.raises(StepOutOfMemory, match="gradients of earlier steps"):
            session.attempt(accumulate, training.batches[1])
    training.optimizer.zero_grad()
    torch.set_rng_state(generator)
    for parameter, gradient in zip(training.model.parameters(), first.values(), strict=True):
        parameter.grad = gradient
    accumulate(training.batches[1])
    assert differences(all_of(training)["gradients"], both) == []


@pytest.mark.long
def test_a_large_buffer_is_put_back_once_a_step_was_seen_to_write_it(tmp_path: Path) -> None:
    class Queue(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = nn.Linear(64, 64)
            self.register_buffer("queue", torch.zeros(64, 1024))  # 256 KiB
            self.queue: torch.Tensor

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            self.queue.add_(1)
            result: torch.Tensor = self.layer(x)
            return result

    model = Queue()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    fails: list[Callable[[], None]] = []

    def step(batch: torch.Tensor) -> None:
        optimizer.zero_grad()
        loss = model(batch).sum()
        if fails:
            fails.pop()()
        loss.backward()
        optimizer.step()

    batch = torch.randn(8, 64)
    with Session(model, optimizer, "8GiB", folder=tmp_path) as session:
        fails.append(impossible)
        with pytest.raises(StepOutOfMemory, match="large buffers"):
            session.attempt(step, batch)
        assert model.queue[0, 0] == 1
        session.attempt(step, batch)
        fails.append(impossible)
        session.attempt(step, batch)
    assert torch.equal(model.queue, torch.full((64, 1024), 3.0))


def test_any_other_error_passes_through_and_is_not_tried_again(tmp_path: Path) -> None:
    mischief = Mischief()
    training = training_with(mischief)
    with Session(training.model, training.optimizer, "8GiB", folder=tmp_path) as session:
        mischief.set("forward", interrupt, times=2)
        with pytest.raises(Interrupted):
            session.attempt(partial(take, training, mischief), training.batches[0])
        assert mischief.times == 1
        session.set_budget(None)
        mischief.set("forward", impossible, times=2)
        with pytest.raises(RuntimeError, match="can't allocate memory"):
            session.attempt(partial(take, training, mischief), training.batches[0])
        assert mischief.times == 1


@pytest.mark.long
def test_the_budget_is_a_rung_lower_after_each_failure_until_a_new_one_is_set(
    tmp_path: Path,
) -> None:
    training = perceptron()
    fails: list[bool] = []

    def step(batch: Any) -> str:
        if fails:
            fails.pop()
            impossible()
        training.step(batch)
        return "taken"

    with Session(training.model, training.optimizer, 0.9, folder=tmp_path) as session:
        session.prepare(training.step, training.batches[0], costs=COSTS)
        assert session.forecast is not None
        peak, floor = session.forecast.peak_bytes, session.forecast.floor_bytes
        budget = int(0.9 * peak)
        while budget > floor:
            fails.append(True)
            assert session.attempt(step, training.batches[0]) == "taken"
            budget = rung_below(budget, peak, floor) or budget
            assert session.stats().budget_bytes == budget
        assert session.step_down() is None
        session.set_budget(0.9)
        assert session.attempt(step, training.batches[0]) == "taken"
        assert session.stats().budget_bytes == int(0.9 * peak)


def test_the_rung_below_is_a_share_of_the_peak_or_the_floor() -> None:
    rungs = [int(1000 * share) for share in SHARES]
    assert rung_below(2**40, 1000, 100) == rungs[1]
    assert [rung_below(rung, 1000, 100) for rung in rungs] == [*rungs[1:], 100]
    assert rung_below(460, 1000, 455) == 455
    assert rung_below(455, 1000, 455) is None
    assert rung_below(100, 0, 0) is None


# memory that is scarce from one place of the step to another

TENSOR_BYTES = ROWS * WIDTH * 4
PHASES = {
    "pack": ("forward", "loss"),
    "unpack": ("loss", "backward"),
    "gradient": ("backward", "optimizer"),
    "whole step": ("begin", "end"),
}


class Scarcity(Mischief):
    """Between two places of one step the system gives next to nothing; a step that begins anew has
    what it needs.
    """

    def between(self, phase: str) -> None:
        self.phase = PHASES[phase]
        self.begun = 0

    def at(self, place: str) -> None:
        first, last = getattr(self, "phase", ("", ""))
        if place == "begin" or place == last:
            unlimit_address_space()
        if place == first and not self.begun:
            self.begun += 1
            limit_address_space(TENSOR_BYTES * 3 // 4)


@pytest.mark.long
@pytest.mark.parametrize("budget", [1, "8GiB"])
@pytest.mark.parametrize("phase", PHASES)
def test_scarce_memory_in_any_phase_leaves_every_bit(
    phase: str, budget: int | str, tmp_path: Path
) -> None:
    if freed_memory.return_it() is not None:
        pytest.skip("without a compiler there is no pool, which is what makes room in place")
    wanted = all_of(undisturbed(3))
    scarcity = Scarcity()
    training = training_with(scarcity, normed=True)
    training.start()
    step = partial(take, training, scarcity)
    with Session(training.model, training.optimizer, budget, folder=tmp_path) as session:
        session.attempt(step, training.batches[0])
        scarcity.between(phase)
        session.attempt(step, training.batches[1])
        assert scarcity.begun == 1
        assert any("an allocation failed" in note for note in session.stats().notes)
        session.attempt(step, training.batches[2])
    assert differences(all_of(training), wanted) == []


@pytest.mark.long
def test_a_chunk_without_memory_fails_before_it_wrote_and_the_step_is_taken_again(
    tmp_path: Path,
) -> None:
    expected, training = perceptron(), perceptron()
    for number in range(2):
        expected.step(expected.batches[number])
    # never touched, so it takes no memory; but a chunk that has it asks for as much beforehand
    large = nn.Parameter(torch.empty(2**26))
    training.optimizer.add_param_group({"params": [large]})
    training.optimizer.param_groups.reverse()
    tries: list[int] = []

    def step(batch: Any) -> None:
        training.optimizer.zero_grad()
        loss = training.loss(training.model, batch)
        loss.backward()
        nn.utils.clip_grad_norm_(training.model.parameters(), 1.0)
        tries.append(len(training.losses))
        if tries == [0, 1]:
            limit_address_space(2**24)
        try:
            training.optimizer.step()
        finally:
            unlimit_address_space()
        training.losses.append(loss.item())

    with Session(training.model, training.optimizer, "8GiB", folder=tmp_path) as session:
        for number in range(2):
            session.attempt(step, training.batches[number])
    assert tries == [0, 1, 1]
    training.optimizer.param_groups.reverse()
    found = all_of(training)
    assert (
        differences({**found, "optimizer": all_of(expected)["optimizer"]}, all_of(expected)) == []
    )


@pytest.mark.long
def test_an_eviction_that_cannot_be_written_surfaces_and_the_next_step_is_as_ever(
    tmp_path: Path,
) -> None:
    wanted = all_of(undisturbed(3))
    mischief = Mischief()
    training = training_with(mischief, normed=True)
    training.start()
    step = partial(take, training, mischief)
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    with Session(training.model, training.optimizer, 1, folder=tmp_path) as session:
        session.attempt(step, training.batches[0])
        before, generator = all_of(training), torch.get_rng_state()
        buffers = {name: b.clone() for name, b in training.model.named_buffers()}
        mischief.set(
            "forward", lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (4096, limits[1]))
        )
        try:
            with pytest.raises(TierError, match="could not be moved to or from the lower tier"):
                session.attempt(step, training.batches[1])
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, limits)
        after = all_of(training)
        assert differences(after["optimizer"], before["optimizer"]) == []
        parameters = [name for name, _ in training.model.named_parameters()]
        for name in parameters:
            assert torch.equal(after["model"][name], before["model"][name])
        # no memory failed, so nothing was undone: what the step drew and counted is as without us
        torch.set_rng_state(generator)
        training.model.load_state_dict(buffers, strict=False)
        session.attempt(step, training.batches[1])
        session.attempt(step, training.batches[2])
    assert differences(all_of(training), wanted) == []


@pytest.mark.long
@pytest.mark.parametrize("budget", [1, "8GiB"])
def test_scarce_memory_in_an_evaluation_leaves_everything_valid(
    budget: int | str, tmp_path: Path
) -> None:
    if freed_memory.return_it() is not None:
        pytest.skip("without a compiler there is no pool, which is what makes room in place")
    expected = undisturbed(1)
    mischief = Mischief()
    training = training_with(mischief, normed=True)
    training.start()
    for each in (expected, training):
        each.model.eval()
    batch = training.batches[1]
    with torch.no_grad():
        wanted = expected.model(batch)
    with Session(training.model, training.optimizer, budget, folder=tmp_path) as session:
        training.model.train()
        session.attempt(partial(take, training, mischief), training.batches[0])
        training.model.eval()
        kept = training.loss(training.model, batch)  # a graph whose contents nobody moves
        mischief.set("forward", partial(limit_address_space, TENSOR_BYTES * 3 // 4))
        failed = False
        try:
            with session.evaluate():
                found = training.model(batch)
        except RuntimeError as error:
            failed = "can't allocate memory" in str(error)
        finally:
            unlimit_address_space()
        if failed:  # nothing could leave: everything is valid, and the next pass works
            with session.evaluate():
                found = training.model(batch)
        assert torch.equal(found, wanted)
        del kept


def test_scarce_memory_while_staging_is_met_by_what_leaves(tmp_path: Path) -> None:
    training = perceptron()
    with Session(training.model, training.optimizer, "8GiB", folder=tmp_path) as session:
        session.attempt(training.step, training.batches[0])
        before = all_of(training)
        with session.staging() as make_room:
            make_room(2**30)
            with pytest.raises(RuntimeError, match="can't allocate memory"):
                impossible()
            make_room(2**33)  # as much as the budget: all that lasts leaves
        with session.staging(), pytest.raises(Interrupted):
            interrupt()
        assert differences(all_of(training), before) == []
        session.attempt(training.step, training.batches[1])
    expected = perceptron()
    for number in range(2):
        expected.step(expected.batches[number])
    assert differences(all_of(training), all_of(expected)) == []
