"""A session in use: what it accepts, refuses and leaves behind."""

from __future__ import annotations

import copy
import inspect
import io
import os
import resource
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from helpers.invented_costs import COSTS
from helpers.small_trainings import Training, contents, differences, language, perceptron
from tensile import BudgetError, Session, SessionError, TierError, freed_memory
from tensile.actions import PlanError
from tensile.budget import budget_bytes, format_bytes
from tensile.contents import Content, Contents, Slot
from tensile.lower_tier import LowerTier
from tensile.stats import Counters
from tensile.swap_file import SwapFile


def tight(training: Training, folder: Path, **options: Any) -> Session:
    """A session under a budget that nothing fits, so that everything moves."""
    options = {"budget": 1, "folder": folder, "smallest_bytes": 0, **options}
    return Session(training.model, training.optimizer, **options)


def run(training: Training, steps: int, session: Session | None = None) -> None:
    for number in range(steps):
        batch = training.batches[number % len(training.batches)]
        if session is None:
            training.step(batch)
        else:
            with session.step():
                training.step(batch)


# budgets


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ("1.2GiB", int(1.2 * 2**30)),
        ("800 MB", 800 * 10**6),
        ("64kib", 65536),
        ("2048", 2048),
        (4096, 4096),
        (1, 1),
        ("60%", 600),
        (" 12.5 % ", 125),
        (None, None),
        (0.5, 500),
        (1.0, 1000),
    ],
)
def test_budgets_are_bytes_texts_or_shares(given: Any, expected: int | None) -> None:
    assert budget_bytes(given, 1000) == expected


def test_sizes_are_written_for_people() -> None:
    sizes = (0, 1023, 1024, 3 * 2**20 // 2, 2**30 - 1, 12 * 2**30)
    assert [format_bytes(size) for size in sizes] == [
        *("0 bytes", "1023 bytes", "1.0 KiB", "1.5 MiB", "1024.0 MiB", "12.0 GiB")
    ]


@pytest.mark.parametrize(
    "given", ["", "1.2 GiBs", "-3MB", "lots", 0, -5, 0.0, 1.5, True, [1], "0", "0%", "101%", "-5%"]
)
def test_what_is_no_size_is_refused_with_examples(given: Any, tmp_path: Path) -> None:
    training = perceptron()
    with pytest.raises(BudgetError, match=r"is no size; write bytes \(1200000000\)"):
        tight(training, tmp_path, budget=given)


@pytest.mark.parametrize("given", ["1.5", "123"])
def test_a_text_that_forgot_its_unit_is_refused_and_shown_with_one(
    given: str, tmp_path: Path
) -> None:
    with pytest.raises(BudgetError, match=f"{given}' has no unit .* write '{given}GiB'"):
        tight(perceptron(), tmp_path, budget=given)


@pytest.mark.parametrize("share", [0.5, "50%"])
def test_a_share_of_a_peak_that_was_not_forecast_is_refused(share: Any, tmp_path: Path) -> None:
    training = perceptron()
    with (
        tight(training, tmp_path, budget=share) as session,
        pytest.raises(BudgetError, match=r"call session.prepare\(train_step, batch\) first"),
        session.step(),
    ):
        pass


def test_a_budget_below_the_floor_is_refused_and_the_old_one_stays(tmp_path: Path) -> None:
    training = perceptron()
    with tight(training, tmp_path, budget=0.6, smallest_bytes=2**16) as session:
        session.prepare(training.step, training.batches[0], costs=COSTS)
        run(training, 1, session)
        kept = session.stats().budget_bytes
        with pytest.raises(PlanError, match="below the floor of"):
            session.set_budget(1000)
        run(training, 1, session)
        assert session.stats().budget_bytes == kept
        session.set_budget(None)
        run(training, 1, session)
        assert session.stats().budget_bytes is None


def test_whoever_goes_on_after_a_refused_budget_is_told_that_it_is_not_kept(tmp_path: Path) -> None:
    training = perceptron()
    with tight(training, tmp_path, budget="100KiB", smallest_bytes=2**16) as session:
        with pytest.raises(PlanError, match="below the floor of"):
            session.prepare(training.step, training.batches[0], costs=COSTS)
        run(training, 1, session)
        stats = session.stats()
        assert any("below the floor" in note and "do not keep" in note for note in stats.notes)
        assert stats.budget_bytes is not None
        assert stats.budget_bytes < stats.floor_bytes


def test_a_budget_below_the_floor_of_a_step_that_was_not_prepared_is_said_with_the_floor(
    tmp_path: Path,
) -> None:
    training, expected = perceptron(), perceptron()
    run(expected, 4)
    with tight(training, tmp_path, budget="100KiB", smallest_bytes=2**16) as session:
        run(training, 1, session)
        assert session.stats().floor_bytes == 0  # nobody knows
        run_from(training, 1, 4, session)
        stats = session.stats()
        said = [note for note in stats.notes if note.startswith("the budget is not kept. ")]
        assert len(said) == 1
        assert f"below the floor of {stats.floor_bytes} bytes" in said[0]
        assert "or lower the floor with" in said[0]
        session.set_budget("8GiB")
        assert session.stats().floor_bytes < 8 * 2**30
    assert differences(contents(training), contents(expected)) == []


def test_a_new_budget_counts_from_the_next_step_on(tmp_path: Path) -> None:
    training, expected = perceptron(), perceptron()
    run(expected, 6)
    with tight(training, tmp_path, budget=None) as session:
        run(training, 2, session)
        assert session.stats().swapped_out_bytes == 0
        session.set_budget(1)
        run_from(training, 2, 4, session)
        moved = session.stats().swapped_out_bytes
        assert moved > 0
        session.set_budget("8GiB")
        run_from(training, 4, 6, session)
    assert differences(contents(training), contents(expected)) == []


def run_from(training: Training, start: int, stop: int, session: Session) -> None:
    for number in range(start, stop):
        with session.step():
            training.step(training.batches[number % len(training.batches)])


# use


def test_a_step_inside_a_step_is_refused(tmp_path: Path) -> None:
    training = perceptron()
    with tight(training, tmp_path) as session, session.step():
        with pytest.raises(SessionError, match="a step inside a step"), session.step():
            pass
        with pytest.raises(SessionError, match="inside a step"), session.evaluate():
            pass
        with pytest.raises(SessionError, match="call it before"):
            session.prepare(training.step, training.batches[0])
        with pytest.raises(SessionError, match="leave it first"):
            session.close()


def test_a_closed_session_is_refused_and_can_be_closed_again(tmp_path: Path) -> None:
    training = perceptron()
    session = tight(training, tmp_path)
    run(training, 1, session)
    session.close()
    session.close()
    with pytest.raises(SessionError, match="after close"), session.step():
        pass
    with pytest.raises(SessionError, match="after close"):
        session.set_budget(None)
    assert session.stats().steps == 1


def test_an_optimizer_has_one_session_at_a_time(tmp_path: Path) -> None:
    training = perceptron()
    with (
        tight(training, tmp_path),
        pytest.raises(SessionError, match="has a session already"),
    ):
        tight(training, tmp_path)
    tight(training, tmp_path).close()


def test_a_model_has_one_session_at_a_time_whatever_its_optimizers_are(tmp_path: Path) -> None:
    training, other = perceptron(), perceptron()
    last = [training.model[-1].weight]
    for second in (torch.optim.Adam(training.model.parameters()), torch.optim.SGD(last, lr=0.1)):
        with (
            tight(training, tmp_path),
            pytest.raises(SessionError, match=r"weight has a session already; .* give one session"),
        ):
            Session(training.model, second, 1, folder=tmp_path)
    with tight(training, tmp_path), tight(other, tmp_path):
        pass


def test_a_model_on_another_device_is_refused(tmp_path: Path) -> None:
    model = nn.Linear(4, 4, device="meta")
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    with pytest.raises(SessionError, match="weight is on meta and the session on cpu"):
        Session(model, optimizer, 1, folder=tmp_path)
    with pytest.raises(SessionError, match="device cuda is not managed here yet"):
        Session(model, optimizer, 1, device="cuda", folder=tmp_path)


def test_a_compiled_model_is_refused_whole_or_in_part(tmp_path: Path) -> None:
    part, whole = nn.Sequential(nn.Linear(2, 2)), nn.Linear(2, 2)
    part[0].compile(backend="eager")
    compiled = torch.compile(whole, backend="eager")
    assert isinstance(compiled, nn.Module)
    for model, name in ((part, "0"), (compiled, "the model")):
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        with pytest.raises(SessionError, match=f"{name} is compiled"):
            Session(model, optimizer, "1GiB", folder=tmp_path)


def test_a_share_of_a_peak_that_cannot_be_foreseen_is_refused_with_the_cause(
    tmp_path: Path,
) -> None:
    training = perceptron()

    def branching(batch: torch.Tensor) -> None:
        if batch.sum() > 0:
            training.step(batch)

    with Session(training.model, training.optimizer, 0.5, folder=tmp_path) as session:
        with pytest.raises(BudgetError, match=r"cannot be foreseen \(.*\); give bytes"):
            session.prepare(branching, training.batches[0])
        session.set_budget("1GiB")
        session.prepare(branching, training.batches[0])


def test_a_lower_tier_in_memory_is_refused() -> None:
    training = perceptron()
    with pytest.raises(TierError, match="which is memory itself; name a folder on a disk"):
        tight(training, Path("/dev/shm"))


@pytest.mark.parametrize("inside_a_step", [True, False])
def test_a_session_that_an_exception_leaves_is_closed_and_training_goes_on(
    inside_a_step: bool, tmp_path: Path
) -> None:
    training, expected = perceptron(), perceptron()
    run(expected, 3)
    session = tight(training, tmp_path)

    def use() -> None:
        with session:
            run(training, 2, session)
            with session.step() if inside_a_step else nullcontext():
                training.loss(training.model, training.batches[2]).backward()
                raise Interrupted

    with pytest.raises(Interrupted):
        use()
    with pytest.raises(SessionError, match="after close"), session.step():
        pass
    assert list(tmp_path.iterdir()) == []
    training.step(training.batches[2])
    assert differences(contents(training), contents(expected)) == []


# what a step may do


class Interrupted(Exception):
    pass


@pytest.mark.parametrize("place", ["forward", "backward", "optimizer"])
def test_a_step_that_raises_leaves_everything_valid(place: str, tmp_path: Path) -> None:
    training, expected = language(), language()
    run(expected, 3)

    def broken(batch: Any) -> None:
        loss = training.loss(training.model, batch)
        if place == "forward":
            raise Interrupted
        if place == "backward":
            loss.register_hook(_interrupt)
        loss.backward()
        raise Interrupted

    training.start()
    with tight(training, tmp_path) as session:
        run(training, 2, session)
        state = torch.get_rng_state()
        with pytest.raises(Interrupted), session.step():
            broken(training.batches[2])
        training.optimizer.zero_grad()
        torch.set_rng_state(state)
        run_from(training, 2, 3, session)
    assert differences(contents(training), contents(expected)) == []


def _interrupt(gradient: torch.Tensor) -> None:
    raise Interrupted


@pytest.mark.long
def test_gradients_accumulate_over_several_backward_passes(tmp_path: Path) -> None:
    def accumulate(training: Training) -> None:
        training.optimizer.zero_grad()
        for batch in training.batches[:3]:
            training.loss(training.model, batch).backward()
        training.optimizer.step()

    training, expected = language(), language()
    with tight(training, tmp_path) as session:
        for _ in range(3):
            accumulate(expected)
        training.start()
        for _ in range(3):
            with session.step():
                accumulate(training)
        assert session.stats().swapped_out_bytes > 0
    assert differences(contents(training), contents(expected)) == []


def test_gradients_that_are_kept_and_zeroed_in_place_are_the_same(tmp_path: Path) -> None:
    def keep(training: Training, number: int) -> None:
        training.optimizer.zero_grad(set_to_none=False)
        training.loss(training.model, training.batches[number]).backward()
        training.optimizer.step()

    training, expected = perceptron(), perceptron()
    with tight(training, tmp_path) as session:
        for number in range(4):
            keep(expected, number)
            with session.step():
                keep(training, number)
    assert differences(contents(training), contents(expected)) == []


def test_a_gradient_that_the_user_keeps_is_not_overwritten(tmp_path: Path) -> None:
    training = perceptron()
    first = next(training.model.parameters())
    with tight(training, tmp_path) as session:
        run(training, 1, session)
        kept = first.grad
        assert kept is not None
        value = kept.clone()
        run_from(training, 1, 4, session)
        assert first.grad is not kept
        assert torch.equal(kept, value)


def test_a_view_of_a_parameter_that_the_user_made_before_stays_a_view(tmp_path: Path) -> None:
    training = perceptron()
    weight = next(training.model.parameters())
    view = weight.detach()[0]
    with tight(training, tmp_path) as session:
        run(training, 3, session)
        assert torch.equal(view, weight.detach()[0])


# between steps


def test_a_model_can_be_copied_saved_and_loaded_between_steps(tmp_path: Path) -> None:
    training, expected = language(), language()
    run(expected, 2)
    saved = (
        copy.deepcopy(expected.optimizer.state_dict()),
        copy.deepcopy(expected.model.state_dict()),
    )
    generator = torch.get_rng_state()
    run(expected, 2)
    with tight(training, tmp_path / "lower") as session:
        training.start()
        run(training, 2, session)
        copied = copy.deepcopy(training.model)
        buffer = io.BytesIO()
        torch.save((training.optimizer.state_dict(), training.model.state_dict()), buffer)
        run(training, 2, session)  # something else, which is undone now
        buffer.seek(0)
        optimizer_state, model_state = torch.load(buffer)
        assert differences(model_state, saved[1]) == []
        assert differences(optimizer_state, saved[0]) == []
        assert differences(copied.state_dict(), saved[1]) == []
        training.optimizer.load_state_dict(optimizer_state)
        training.model.load_state_dict(model_state)
        torch.set_rng_state(generator)
        del training.losses[2:]
        run(training, 2, session)
    assert differences(contents(training), contents(expected)) == []


def test_tied_weights_stay_tied_and_parameters_stay_themselves(tmp_path: Path) -> None:
    training = language()
    before = list(training.model.parameters())
    with tight(training, tmp_path) as session:
        run(training, 2, session)
        model = training.model
        assert model.head.weight is model.embedding.weight
        assert all(a is b for a, b in zip(before, model.parameters(), strict=True))
        assert session._device.lasting_file.bytes > 0
    assert all(not session._device.lasting_file.holds(p.untyped_storage()) for p in before)


def test_two_parameters_over_one_storage_stay_over_one_storage(tmp_path: Path) -> None:
    whole = torch.randn(8, 8)
    model = nn.Module()
    model.upper = nn.Parameter(whole[:4])
    model.lower = nn.Parameter(whole[4:])
    del whole
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    with Session(model, optimizer, 1, folder=tmp_path, smallest_bytes=0) as session:
        with session.step():
            (model.upper.sum() * model.lower.exp().sum()).backward()
            optimizer.step()
        assert session._device.lasting_file.holds(model.upper.untyped_storage())
        assert model.upper.untyped_storage()._cdata == model.lower.untyped_storage()._cdata
    assert model.upper.untyped_storage()._cdata == model.lower.untyped_storage()._cdata


def test_evaluation_gives_the_same_and_keeps_no_graph(tmp_path: Path) -> None:
    training = language()
    training.model.eval()
    with torch.no_grad():
        expected = training.model(training.batches[0])
    with tight(training, tmp_path) as session:
        with session.evaluate():
            result = training.model(training.batches[0])
        assert session._device.lasting_file.bytes > 0
    assert not result.requires_grad
    assert torch.equal(result, expected)


# the optimizer


@pytest.mark.long
def test_schedulers_made_before_and_after_the_session_see_one_step(tmp_path: Path) -> None:
    def rates(managed: bool, late: bool) -> tuple[list[float], Any]:
        training = perceptron()
        make = torch.optim.lr_scheduler.StepLR
        scheduler = None if late else make(training.optimizer, 2, 0.5)
        session = tight(training, tmp_path) if managed else None
        scheduler = scheduler or make(training.optimizer, 2, 0.5)
        seen = []
        for number in range(4):
            run_one(training, number, session)
            scheduler.step()
            seen.append(scheduler.get_last_lr()[0])
        if session is not None:
            session.close()
        return seen, contents(training)

    for late in (False, True):
        plain, managed = rates(False, late), rates(True, late)
        assert plain[0] == managed[0]
        assert differences(plain[1], managed[1]) == []


def run_one(training: Training, number: int, session: Session | None) -> None:
    if session is None:
        training.step(training.batches[number])
    else:
        with session.step():
            training.step(training.batches[number])


OPTIMIZERS = {
    "adamw, one at a time": lambda p: torch.optim.AdamW(p, lr=1e-3, foreach=False),
    "adamw, all at once": lambda p: torch.optim.AdamW(p, lr=1e-3, foreach=True, amsgrad=True),
    "adamw, fused": lambda p: torch.optim.AdamW(p, lr=1e-3, fused=True),
    "sgd": lambda p: torch.optim.SGD(p, lr=0.1, momentum=0.9, nesterov=True),
    "adagrad": lambda p: torch.optim.Adagrad(p, lr=0.1),
    "nadam": lambda p: torch.optim.NAdam(p, lr=1e-3),
}


@pytest.mark.long
@pytest.mark.parametrize("kind", OPTIMIZERS)
def test_every_optimizer_gives_the_same_in_chunks(
    kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tensile.chunks.CHUNK_BYTES", 50_000)
    training, expected = perceptron(), perceptron()
    for each in (training, expected):
        layers = list(each.model.parameters())
        each.optimizer = OPTIMIZERS[kind](
            [{"params": layers[:5]}, {"params": layers[5:], "weight_decay": 0.1}]
        )
    run(expected, 4)
    with tight(training, tmp_path) as session:
        run(training, 4, session)
    assert differences(contents(training), contents(expected)) == []


def test_an_optimizer_that_is_not_known_runs_whole_and_it_is_said(tmp_path: Path) -> None:
    training, expected = perceptron(), perceptron()
    for each in (training, expected):
        each.optimizer = torch.optim.LBFGS(each.model.parameters(), max_iter=2)

    def step(each: Training, batch: Any) -> None:
        def closure() -> torch.Tensor:
            each.optimizer.zero_grad()
            loss = each.loss(each.model, batch)
            loss.backward()
            return loss

        each.losses.append(each.optimizer.step(closure).item())

    with tight(training, tmp_path) as session:
        for number in range(2):
            step(expected, expected.batches[number])
            with session.step():
                step(training, training.batches[number])
        assert any("LBFGS is not known to treat each" in note for note in session.stats().notes)
    assert differences(contents(training), contents(expected)) == []


def test_a_closure_runs_once_for_all_chunks(tmp_path: Path) -> None:
    training, expected = perceptron(), perceptron()
    calls = []

    def step(each: Training) -> None:
        def closure() -> torch.Tensor:
            calls.append(each)
            each.optimizer.zero_grad()
            loss = each.loss(each.model, each.batches[0])
            loss.backward()
            return loss

        each.losses.append(each.optimizer.step(closure).item())

    step(expected)
    with tight(training, tmp_path) as session, session.step():
        step(training)
    assert calls == [expected, training]
    assert differences(contents(training), contents(expected)) == []


def test_a_gradient_scaler_skips_and_scales_as_without(tmp_path: Path) -> None:
    def scaled(managed: bool) -> Any:
        training = perceptron()
        scaler = torch.amp.GradScaler("cpu", init_scale=2.0**127, growth_interval=1)
        session = tight(training, tmp_path) if managed else None
        for number in range(4):
            with session.step() if session else torch.enable_grad():
                training.optimizer.zero_grad()
                loss = training.loss(training.model, training.batches[number])
                scaler.scale(loss).backward()
                scaler.step(training.optimizer)
                scaler.update()
        if session is not None:
            session.close()
        return contents(training), scaler.state_dict()

    plain, managed = scaled(False), scaled(True)
    assert differences(plain[0], managed[0]) == []
    assert plain[1] == managed[1]


def test_a_fused_step_with_a_scaler_is_traced_inside_a_session_too(tmp_path: Path) -> None:
    training = perceptron()
    training.optimizer = torch.optim.AdamW(training.model.parameters(), fused=True)
    scaler = torch.amp.GradScaler("cpu")
    before = inspect.signature(training.optimizer.step)

    def step(batch: Any) -> None:
        training.optimizer.zero_grad()
        scaler.scale(training.loss(training.model, batch)).backward()
        scaler.step(training.optimizer)
        scaler.update()

    with tight(training, tmp_path, budget=0.6, smallest_bytes=2**16) as session:
        assert inspect.signature(training.optimizer.step) == before
        session.prepare(step, training.batches[0], costs=COSTS)
        assert session.forecast is not None
        session.attempt(step, training.batches[0])


@pytest.mark.parametrize("when", ["between two steps", "inside of a step"])
def test_parameters_that_an_optimizer_gets_later_are_trained_and_managed(
    when: str, tmp_path: Path
) -> None:
    def grown(training: Training, session: Session | None) -> None:
        torch.manual_seed(1)
        extra = nn.Linear(64, 64)
        plain = training.loss

        def add() -> None:
            training.loss = lambda m, b: plain(m, (extra(b[0]), b[1]))
            training.optimizer.add_param_group({"params": list(extra.parameters())})

        run_from_maybe(training, 0, 2, session)
        if when == "inside of a step":
            with session.step() if session else nullcontext():
                add()
                training.step(training.batches[2])
        else:
            add()
        run_from_maybe(training, 2, 5, session)
        training.losses.extend(float(p.detach().double().sum()) for p in extra.parameters())

    training, expected = perceptron(), perceptron()
    grown(expected, None)
    with tight(training, tmp_path) as session:
        grown(training, session)
        assert any("parameters that the session's plans do not" in n for n in session.stats().notes)
        assert "optimizer.0.1.0" in {n.split(":")[1] for n in session._residency.sizes()}
    assert differences(contents(training), contents(expected)) == []


def test_parameters_on_another_device_are_refused_when_they_come(tmp_path: Path) -> None:
    training = perceptron()
    with tight(training, tmp_path) as session:
        run(training, 1, session)
        training.optimizer.add_param_group({"params": [nn.Parameter(torch.ones(2, device="meta"))]})
        with pytest.raises(SessionError, match="is on meta and the session on cpu"), session.step():
            pass


def run_from_maybe(training: Training, start: int, stop: int, session: Session | None) -> None:
    for number in range(start, stop):
        run_one(training, number % len(training.batches), session)


# plans


@pytest.mark.long
def test_a_step_that_cannot_be_traced_runs_without_a_plan_and_it_is_said(tmp_path: Path) -> None:
    training, expected = perceptron(), perceptron()

    def branching(each: Training, batch: Any) -> None:
        each.optimizer.zero_grad()
        loss = each.loss(each.model, batch)
        if loss > 0:
            loss.backward()
        each.optimizer.step()

    with tight(training, tmp_path) as session:
        session.prepare(lambda batch: branching(training, batch), training.batches[0], costs=COSTS)
        for number in range(3):
            branching(expected, expected.batches[number])
            with session.step():
                branching(training, training.batches[number])
        assert any("was not traced" in note for note in session.stats().notes)
    assert differences(contents(training), contents(expected)) == []


@pytest.mark.long
def test_a_step_of_another_shape_leaves_its_plan_and_gives_the_same(tmp_path: Path) -> None:
    training, expected = language(), language()
    batches = [training.batches[0], training.batches[1][:, :40], training.batches[2]]
    for batch in batches:
        expected.step(batch)
    training.start()
    with tight(training, tmp_path, budget=0.5, smallest_bytes=2**16) as session:
        session.prepare(training.step, training.batches[0], costs=COSTS)
        for batch in batches:
            with session.step():
                training.step(batch)
        stats = session.stats()
    assert stats.deviations == 1
    assert any("where its plan expects" in note for note in stats.notes)
    assert differences(contents(training), contents(expected)) == []


def test_prepare_changes_nothing_that_training_sees(tmp_path: Path) -> None:
    training = language()
    run(training, 1)
    before = contents(training)
    gradients = [p.grad.clone() for p in training.model.parameters() if p.grad is not None]
    with tight(training, tmp_path, budget=0.5, smallest_bytes=2**16) as session:
        session.prepare(training.step, training.batches[0], costs=COSTS)
        after = contents(training)
        assert differences({**after, "losses": 0}, {**before, "losses": 0}) == []
        found = [p.grad for p in training.model.parameters() if p.grad is not None]
        assert all(torch.equal(a, b) for a, b in zip(found, gradients, strict=True))


# memory that is not there


@contextmanager
def little_address_space(more_bytes: int) -> Iterator[None]:
    """Within it the process gets no more than that from the system."""
    limits = resource.getrlimit(resource.RLIMIT_AS)
    used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (used + more_bytes, limits[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_AS, limits)


def test_a_chunk_without_memory_fails_before_it_has_changed_anything(tmp_path: Path) -> None:
    training, expected = perceptron(), perceptron()
    run(expected, 3)
    # never touched, so it takes no memory; but a chunk that has it asks for as much beforehand
    large = nn.Parameter(torch.empty(2**26))
    training.optimizer.add_param_group({"params": [large]})
    training.optimizer.param_groups.reverse()
    with tight(training, tmp_path, budget="8GiB") as session:
        run(training, 2, session)
        before = contents(training)
        with session.step():
            training.optimizer.zero_grad()
            training.loss(training.model, training.batches[2]).backward()
            with (
                pytest.raises(RuntimeError, match="can't allocate memory"),
                little_address_space(2**20),
            ):
                training.optimizer.step()
        assert differences(contents(training), before) == []
        run_from(training, 2, 3, session)
    training.optimizer.param_groups.reverse()
    assert differences(contents(training), contents(expected)) == []


def test_a_content_that_finds_no_memory_comes_back_after_room_was_made(tmp_path: Path) -> None:
    file = SwapFile(LowerTier(tmp_path))
    book = Contents(file, Counters())
    saved = torch.arange(2**23, dtype=torch.int32)
    content = Content(saved.untyped_storage(), 0, movable=True)
    content.slots[0] = Slot(0, content, 0, deque())
    book.add(content)
    assert not book.leave(content)  # `saved` has it
    del saved
    assert book.leave(content)
    while book.wait_for_oldest():
        pass
    freed_memory.let_wait(0)  # what waits freed would be memory enough
    refused = []
    with little_address_space(2**20):
        more = resource.getrlimit(resource.RLIMIT_AS)

        def retry(size_bytes: int) -> None:
            refused.append(size_bytes)
            resource.setrlimit(resource.RLIMIT_AS, (more[1], more[1]))

        book.present(content, retry)
    file.close()
    assert refused == [2**25]
    found = torch.empty(0, dtype=torch.int32).set_(content.storage)  # type: ignore[call-overload]
    assert torch.equal(found, torch.arange(2**23, dtype=torch.int32))


# processes


def test_a_forked_child_reads_everything_and_moves_nothing(tmp_path: Path) -> None:
    training = language()
    with tight(training, tmp_path) as session:
        run(training, 2, session)
        loss = None
        with session.step():
            loss = training.loss(training.model, training.batches[0])
        expected = _digest(training)
        read, write = os.pipe()
        pid = os.fork()
        if pid == 0:
            try:
                loss.backward()
                with session.evaluate():
                    training.model(training.batches[1])
                os.write(write, _digest(training).encode())
            finally:
                os._exit(0)
        os.close(write)
        with os.fdopen(read) as answer:
            assert answer.read() == expected
        os.waitpid(pid, 0)
        run_from(training, 2, 3, session)


def _digest(training: Training) -> str:
    return repr([float(p.detach().double().sum()) for p in training.model.parameters()])


def test_room_is_made_for_a_weight_that_left_before_backward_asks_for_it(tmp_path: Path) -> None:
    weight_bytes, saved_bytes = 4 * 2**20, 16 * 2**20
    model = nn.Linear(1024, 1024, bias=False).requires_grad_(False)
    optimizer = torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=0.1)
    with Session(model, optimizer, "1GiB", folder=tmp_path) as session:
        x = torch.randn(8, 1024, requires_grad=True)
        other = torch.randn(saved_bytes // 4, requires_grad=True)
        session._residency.evict("parameter:weight")
        with session.step():
            loss = model(x).sum()  # saves the weight, and nothing else
            beside = other.exp().sum()  # saves what may leave
            assert session._residency.evict("parameter:weight") == weight_bytes
            before = session.stats().swapped_out_bytes
            session._pressure.limit_bytes = session._pressure._held_bytes() + weight_bytes // 2
            loss.backward()  # type: ignore[no-untyped-call]
            assert session.stats().swapped_out_bytes - before == saved_bytes
            beside.backward()  # type: ignore[no-untyped-call]
    assert x.grad is not None
    assert other.grad is not None
