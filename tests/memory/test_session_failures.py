"""What fails inside a step: memory, the disk, the step itself, the process. No bit is lost."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from contextlib import ExitStack, nullcontext
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from helpers.mischief import (
    PLACES,
    Interrupted,
    Mischief,
    all_of,
    impossible,
    interrupt,
    nothing,
    scarce,
    training_with,
)
from helpers.small_trainings import Training, differences
from tensile import Session, TierError, freed_memory

pytestmark = pytest.mark.long

TESTS = Path(__file__).parents[1]


def step(training: Training, mischief: Mischief, number: int, place: str, what: Any) -> None:
    """A step in which `what` happens at `place`, while another graph is alive."""
    mischief.set(place, what)
    other = training.loss(training.model, training.batches[0]) if place == "optimizer" else None
    training.optimizer.zero_grad()
    loss = training.loss(training.model, training.batches[number])
    loss.backward()
    mischief.at("optimizer")
    training.optimizer.step()
    training.losses.append(loss.item())
    del other


@pytest.mark.long
@pytest.mark.parametrize("place", PLACES)
def test_an_allocation_that_fails_makes_room_and_succeeds_in_place(
    place: str, tmp_path: Path
) -> None:
    if freed_memory.return_it() is not None:
        pytest.skip("without a compiler there is no pool, which is what makes room in place")
    mischief = Mischief()
    expected = training_with(mischief)
    expected.start()
    for number in range(3):
        step(expected, mischief, number, place, nothing)
    wanted = all_of(expected)

    training = training_with(mischief)
    training.start()
    with Session(training.model, training.optimizer, "8GiB", folder=tmp_path) as session:
        for number in range(3):
            moved = session.stats().swapped_out_bytes
            with session.step():
                step(training, mischief, number, place, scarce if number == 1 else nothing)
            assert (session.stats().swapped_out_bytes > moved) == (number == 1)
        assert any("an allocation failed" in note for note in session.stats().notes)
    assert differences(all_of(training), wanted) == []


def disturbed(
    folder: Path, budget: int | str | None, place: str, what: Callable[[], None]
) -> list[dict[str, Any]]:
    """All that there is after a step in which `what` raises, and after the two that follow: that
    step once more, and the next. No session for no budget.
    """
    mischief = Mischief()
    training = training_with(mischief)
    training.start()
    with ExitStack() as stack:
        session = None
        if budget is not None:
            session = Session(
                training.model, training.optimizer, budget, folder=folder, smallest_bytes=0
            )
            stack.enter_context(session)

        def take(number: int, what: Callable[[], None]) -> None:
            with nullcontext() if session is None else session.step():
                step(training, mischief, number, place, what)

        take(0, nothing)
        generator = torch.get_rng_state()
        with pytest.raises((RuntimeError, Interrupted)):
            take(1, what)
        after = [all_of(training)]
        torch.set_rng_state(generator)
        take(1, nothing)
        take(2, nothing)
        assert session is None or budget != 1 or session.stats().swapped_out_bytes > 0
    return [*after, all_of(training)]


@pytest.mark.long
@pytest.mark.parametrize("what", [impossible, interrupt])
@pytest.mark.parametrize("place", PLACES)
def test_a_step_that_fails_leaves_every_bit_as_it_does_without_a_session(
    place: str, what: Callable[[], None], tmp_path: Path
) -> None:
    expected = disturbed(tmp_path, None, place, what)
    for budget in (1, "8GiB"):
        assert differences(disturbed(tmp_path, budget, place, what), expected) == []


def test_an_update_that_fails_between_two_chunks_leaves_the_first_one_made(tmp_path: Path) -> None:
    def failed(budget: int | None) -> tuple[dict[str, Any], dict[str, Any], dict[str, Any]]:
        training = training_with(Mischief())
        training.start()
        *_, last = training.optimizer.param_groups
        rate = last["lr"]
        with ExitStack() as stack:
            session = None
            if budget is not None:
                session = Session(training.model, training.optimizer, budget, folder=tmp_path)
                stack.enter_context(session)

            def take(number: int) -> None:
                with nullcontext() if session is None else session.step():
                    training.step(training.batches[number])

            before = all_of(training)["model"]
            last["lr"] = "no number"
            with pytest.raises(TypeError, match="can't multiply"):
                take(0)
            last["lr"] = rate
            after = all_of(training)
            take(1)
        return before, after, all_of(training)

    expected = failed(None)
    changed = set(differences(expected[0], expected[1]["model"]))
    assert changed == {f".{number}.{part}" for number in (0, 3, 7) for part in ("weight", "bias")}
    found = failed(1)
    for part in ("model", "gradients"):  # a chunk makes its own states, a step all of its group's
        assert differences(found[1][part], expected[1][part]) == []
    assert differences(found[2], expected[2]) == []


def test_a_failed_allocation_in_an_evaluation_leaves_everything_valid(tmp_path: Path) -> None:
    mischief = Mischief()
    training = training_with(mischief)
    with Session(training.model, training.optimizer, 1, folder=tmp_path) as session:
        with session.step():
            step(training, mischief, 0, "", nothing)
        before = all_of(training)
        mischief.set("forward", impossible)
        with pytest.raises(RuntimeError, match="can't allocate memory"), session.evaluate():
            training.loss(training.model, training.batches[0])
        training.model.eval()
        with session.evaluate():
            found = training.loss(training.model, training.batches[0])
        assert differences(all_of(training)["model"], before["model"]) == []
    with torch.no_grad():
        assert torch.equal(found, training.loss(training.model, training.batches[0]))


def test_a_disk_without_room_is_found_before_the_step(tmp_path: Path) -> None:
    status = os.statvfs(tmp_path)
    count = 2 * status.f_blocks * status.f_frsize // 4
    with (tmp_path / "sparse").open("wb") as file:
        file.truncate(4 * count)  # takes no room: nothing is written
    large = nn.Parameter(torch.from_file(str(tmp_path / "sparse"), shared=True, size=count))
    optimizer = torch.optim.SGD([large], lr=0.1)
    reached = False
    with Session(nn.ParameterList([large]), optimizer, "1GiB", folder=tmp_path) as session:
        with pytest.raises(TierError, match="bytes of room and the step may need"), session.step():
            reached = True
        assert not reached
        session.set_budget(None)
        with session.step():
            reached = True
        assert reached
        session.set_budget("1GiB")  # later than the first step, too
        with pytest.raises(TierError, match="bytes of room and the step may need"), session.step():
            reached = False
        assert reached


KILLED = """
import sys, torch
from helpers.small_trainings import perceptron
from tensile import Session
training = perceptron()
folder = sys.argv[1]
with Session(training.model, training.optimizer, 1, folder=folder, smallest_bytes=0) as session:
    while True:
        with session.step():
            training.step(training.batches[0])
            assert session.stats().swapped_out_bytes > 0
            print("swapping", flush=True)
"""


@pytest.mark.long
def test_a_process_killed_in_mid_swap_leaves_nothing_on_the_disk(tmp_path: Path) -> None:
    command = (sys.executable, "-c", KILLED, str(tmp_path))
    with subprocess.Popen(command, cwd=TESTS, stdout=subprocess.PIPE, text=True) as child:
        assert child.stdout is not None
        for _ in range(3):
            assert child.stdout.readline() == "swapping\n"
        child.kill()
    training = training_with(Mischief())
    with Session(training.model, training.optimizer, 1, folder=tmp_path) as session:
        assert list(tmp_path.iterdir()) == []
        with session.step():
            training.step(training.batches[0])
