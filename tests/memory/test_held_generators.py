"""A generator that a step holds itself draws after a trace, and after a step that was undone, what
it would have drawn without them.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from helpers.invented_costs import COSTS
from helpers.mischief import Mischief, impossible
from tensile import Session, TraceError, trace
from tensile.held_generators import held_generators
from tensile.randomness import Generators

NAMED = np.random.default_rng(7)  # a global that a step names

KINDS: dict[str, Callable[[], Any]] = {
    "python": lambda: random.Random(0),
    "numpy": lambda: np.random.default_rng(0),
    "numpy of old": lambda: np.random.RandomState(0),
    "numpy in MT19937": lambda: np.random.Generator(np.random.MT19937(0)),
    "torch": lambda: torch.Generator().manual_seed(0),
}


def drawn(generator: Any) -> float:
    if isinstance(generator, torch.Generator):
        return float(torch.empty(1).uniform_(generator=generator).sum())
    found = generator.random_sample() if hasattr(generator, "random_sample") else generator.random()
    return float(found)


class Augmented(nn.Module):
    """Draws from an attribute of its own."""

    def __init__(self, generator: Any) -> None:
        super().__init__()
        self.layer = nn.Linear(8, 8)
        self.generator = generator

    def forward(self, x: Tensor) -> Tensor:
        found: Tensor = self.layer(x * _used(self.generator))
        return found


def _used(generator: Any) -> float:
    if isinstance(generator, torch.Generator):
        torch.rand(1, generator=generator)
        return 1.0
    return drawn(generator)


class Slotted:
    __slots__ = ("generator",)

    def __init__(self, generator: Any) -> None:
        self.generator = generator


class Held:
    def __init__(self, inner: object) -> None:
        self.inner = inner


Draw = Callable[[], float]


def in_a_closure(generator: Any) -> Draw:
    return lambda: _used(generator)


def in_an_object(generator: Any) -> Draw:
    holder = Held({"of": [Slotted(generator)]})
    return lambda: _used(holder.inner["of"][0].generator)  # type: ignore[index]


def in_a_partial(generator: Any) -> Draw:
    return partial(_used, generator)


def in_a_helper(generator: Any) -> Draw:
    def helper(x: float = 1.0, *, source: Any = generator) -> float:
        return x * _used(source)

    return lambda: helper()


PLACES = (in_a_closure, in_an_object, in_a_partial, in_a_helper)


def stepping(model: nn.Module, draw: Draw, *, branches: bool) -> tuple[Any, Any]:
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)

    def step(batch: Tensor) -> None:
        loss = model(batch * draw()).square().mean()
        if not branches or loss >= 0:
            loss.backward()
        optimizer.step()
        optimizer.zero_grad()

    return optimizer, step


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("place", PLACES)
def test_a_trace_draws_nothing_from_it(kind: str, place: Callable[[Any], Draw]) -> None:
    generator, expected = KINDS[kind](), KINDS[kind]()
    model = nn.Linear(8, 8)
    optimizer, step = stepping(model, place(generator), branches=False)
    trace(step, model, optimizer, torch.randn(4, 8))
    assert drawn(generator) == drawn(expected)


@pytest.mark.parametrize("kind", KINDS)
def test_nor_from_the_attribute_of_a_module(kind: str) -> None:
    generator, expected = KINDS[kind](), KINDS[kind]()
    model = nn.Sequential(nn.Linear(8, 8), Augmented(generator))
    optimizer, step = stepping(model, lambda: 1.0, branches=False)
    trace(step, model, optimizer, torch.randn(4, 8))
    assert drawn(generator) == drawn(expected)


def test_nor_from_a_global_that_the_step_names() -> None:
    before = NAMED.bit_generator.state
    model = nn.Linear(8, 8)
    optimizer, step = stepping(model, lambda: float(NAMED.random()), branches=False)
    trace(step, model, optimizer, torch.randn(4, 8))
    assert NAMED.bit_generator.state == before


@pytest.mark.parametrize("kind", KINDS)
def test_a_step_that_cannot_be_traced_has_drawn_nothing_either(kind: str, tmp_path: Path) -> None:
    generator, expected = KINDS[kind](), KINDS[kind]()
    model = nn.Linear(8, 8)
    optimizer, step = stepping(model, in_a_closure(generator), branches=True)
    with pytest.raises(TraceError):
        trace(step, model, optimizer, torch.randn(4, 8))
    with Session(model, optimizer, "1GiB", folder=tmp_path) as session:
        session.prepare(step, torch.randn(4, 8), costs=COSTS)
        assert any("was not traced" in note for note in session.stats().notes)
    assert drawn(generator) == drawn(expected)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("of_a_module", [False, True])
def test_a_step_that_is_taken_again_draws_the_same(
    kind: str, of_a_module: bool, tmp_path: Path
) -> None:
    def weights(mischief: Mischief, session_folder: Path | None) -> list[Tensor]:
        torch.manual_seed(0)
        generator, batch = KINDS[kind](), torch.randn(4, 8)
        model: nn.Module = Augmented(generator) if of_a_module else nn.Linear(8, 8)
        draw = (lambda: 1.0) if of_a_module else in_a_closure(generator)
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)

        def step(batch: Tensor) -> None:
            loss = (model(batch * draw()) * drawn(generator)).square().mean()
            mischief.at("forward")
            loss.backward()
            optimizer.step()
            optimizer.zero_grad()

        if session_folder is None:
            step(batch)
        else:
            with Session(model, optimizer, "1GiB", folder=session_folder) as session:
                session.attempt(step, batch)
            assert mischief.met == ["forward", "forward"]
        return [parameter.detach() for parameter in model.parameters()]

    failing = Mischief()
    failing.set("forward", impossible)
    found, expected = weights(failing, tmp_path), weights(Mischief(), None)
    assert all(torch.equal(a, b) for a, b in zip(found, expected, strict=True))


def test_each_is_found_once_and_data_are_not_looked_through() -> None:
    one, hidden = random.Random(), random.Random()
    rows = [hidden, *range(2000)]
    assert held_generators(lambda: (one, [one], rows), {"again": one}) == (one,)


def test_one_without_a_state_is_left_alone() -> None:
    Generators.now([random.SystemRandom()]).put_back()
