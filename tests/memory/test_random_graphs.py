"""Random models train to the same bits in a session and without one, whatever their graphs are."""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import Phase, assume, given, settings
from hypothesis import strategies as st

from helpers.ballast import ballast
from helpers.budgeted_recipe import refusal
from helpers.invented_costs import COSTS
from helpers.random_trainings import Recipe, recipes
from helpers.small_trainings import contents, differences
from tensile import Session, trace
from tensile.extents import Extent
from tensile.gaps import gaps
from tensile.swap_file import Transfer
from tensile.tape import Tape

TESTS = Path(__file__).parents[1]
SMALL, LARGE = 8, 640  # a matrix of 256 bytes, and one of 1.6 MB


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("lower")


def saved_that_may_leave(recipe: Recipe) -> dict[str, set[int]]:
    """What autograd alone holds at some moment, and asks for later: storages of one step, each with
    the numbers of its slots.
    """
    training = recipe.made()
    traced = trace(training.step, training.model, training.optimizer, training.batches[0])
    found = gaps(Tape(traced, COSTS), smallest_bytes=0)
    saved = {gap.storage for gap in found if gap.slot is not None and not gap.final}
    return {
        traced.storages[storage].name: {s.number for s in traced.slots if s.storage == storage}
        for storage in saved
    }


class Leaving:
    """The swap file of a session, and the slots of what was written to it."""

    def __init__(self, session: Session) -> None:
        self.slots: set[int] = set()
        self._file = session._contents._file
        self._saved = session._execution.saved
        session._contents._file = self  # type: ignore[assignment]

    def __getattr__(self, name: str) -> Any:
        return getattr(self._file, name)

    def write(self, storage: torch.UntypedStorage, extent: Extent) -> Transfer:
        slots = self._saved.slots.values()
        self.slots |= {slot.number for slot in slots if slot.content.storage is storage}
        return self._file.write(storage, extent)


def gives_the_same_bits(recipe: Recipe, folder: Path) -> None:
    """Without a size floor, under a budget that nothing fits: every saved tensor that may leave
    does, one by one. What PyTorch refuses without a
    session, it refuses in one, and leaves the same behind.
    """
    plain, managed = recipe.made(), recipe.made()
    refused = refusal(plain)
    expected = contents(plain)
    with (
        Session(managed.model, managed.optimizer, 1, folder=folder, smallest_bytes=0) as session,
        ballast(),
    ):
        leaving = Leaving(session)
        assert refusal(managed, session) == refused
        stats = session.stats()
        assert differences(contents(managed), expected) == []
    assert differences(contents(managed), expected) == []
    if refused is None:
        assert stats.swapped_out_bytes > 0
        assert stats.swapped_in_bytes > 0
        may_leave = saved_that_may_leave(recipe)
        assert [name for name, slots in may_leave.items() if not slots & leaving.slots] == []


def keeps_a_budget(recipe: Recipe, share: float, folder: Path) -> None:
    """Planned, between floor and natural peak; by the operating system's count, in a process where
    nothing else comes and goes.
    """
    assume(refusal(replace(recipe, side=SMALL).made()) is None)
    command = (sys.executable, "-m", "helpers.budgeted_recipe", str(folder))
    ended = subprocess.run(
        [*command, json.dumps(asdict(recipe)), str(share)],
        cwd=TESTS,
        capture_output=True,
        text=True,
        check=True,
    )
    found = json.loads(ended.stdout)
    stats = found["stats"]
    assert found["refused"] is None
    assert found["differences"] == []
    assert stats["deviations"] == 0, stats["notes"]
    assert stats["swapped_out_bytes"] + stats["recomputed_bytes"] > 0
    assert stats["peak_bytes"] < 1.05 * stats["budget_bytes"]


@settings(max_examples=8)
@given(recipe=recipes(SMALL, fewest=3, most=12))
def test_small_models_give_the_same_bits_when_everything_moves(
    folder: Path, recipe: Recipe
) -> None:
    gives_the_same_bits(recipe, folder)


@pytest.mark.long
@settings(max_examples=150)
@given(recipe=recipes(SMALL, fewest=3, most=24))
def test_many_small_models_give_the_same_bits_when_everything_moves(
    folder: Path, recipe: Recipe
) -> None:
    gives_the_same_bits(recipe, folder)


@pytest.mark.long
@settings(max_examples=10, phases=[Phase.generate])
@given(recipe=recipes(LARGE, fewest=12, most=24), share=st.sampled_from([0.0, 0.2, 0.5]))
def test_larger_models_stay_under_budgets_down_to_the_floor(
    folder: Path, recipe: Recipe, share: float
) -> None:
    keeps_a_budget(recipe, share, folder)
