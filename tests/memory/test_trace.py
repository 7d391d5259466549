"""A trace says what the real step does, and leaves no trace of its own."""

from __future__ import annotations

import copy
import gc
import random
import weakref
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.distributed._tools.mem_tracker import MemTracker
from torch.nn import functional

import tensile
from helpers.live_recorder import record
from helpers.small_models import KINDS, Training, attention, cnn, mlp, training
from tensile import Session, resident
from tensile.sequence import Kind, Moment, Phase, Trace

MIB = 2**20


@pytest.fixture(autouse=True)
def _one_thread_and_one_seed() -> Iterator[None]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    torch.manual_seed(0)
    yield
    torch.set_num_threads(threads)


def traced(case: Training) -> Trace:
    return tensile.trace(case.step, case.model, case.optimizer, case.batch)


def live_bytes(trace: Trace) -> list[int]:
    """What lives while each operator runs, by births and deaths alone."""
    change = np.zeros(len(trace.operators) + 2, dtype=np.int64)
    for storage in trace.storages:
        change[storage.birth] += storage.bytes
        change[storage.death] -= storage.bytes
    return [int(total) for total in np.cumsum(change)[: len(trace.operators)]]


def names(trace: Trace, kind: Kind) -> set[str]:
    return {storage.name for storage in trace.storages if storage.kind is kind}


@pytest.mark.parametrize("kind", KINDS)
def test_the_trace_is_operator_by_operator_what_the_real_step_does(kind: str) -> None:
    case = KINDS[kind]()
    trace = traced(case)
    real = record(case.step, case.batch, case.found)
    assert [operator.name for operator in trace.operators] == ["begin", *real.operators]
    assert live_bytes(trace)[1:] == real.live_bytes  # nothing has been made at the empty first one


@pytest.mark.parametrize("kind", ["mlp", "cnn", "attention"])
def test_the_peak_is_that_of_torchs_own_tracker(kind: str) -> None:
    case = KINDS[kind]()
    trace = traced(case)
    case.step(case.batch)
    tracker = MemTracker()
    tracker.track_external(case.model, case.optimizer, *case.batch)
    with tracker:
        case.step(case.batch)
    peak = tracker.get_tracker_snapshot("peak")[torch.device("cpu")]["Total"]
    assert abs(max(live_bytes(trace)) - peak) <= 0.02 * peak


LAYERS = ("linear", "tied", "gelu", "relu_", "slice", "transpose", "twice", "residual", "dropout")


class Graph(nn.Module):
    """Any of `LAYERS` one after another, over a square matrix of 8 by 8."""

    def __init__(self, layers: list[str]) -> None:
        super().__init__()
        self.layers = layers
        self.tied = nn.Parameter(torch.randn(8, 8))
        self.linear = nn.ModuleList(nn.Linear(8, 8) for layer in layers if layer == "linear")

    def forward(self, x: Tensor) -> Tensor:
        linear = iter(self.linear)
        x = x * self.tied.mean()
        for layer in self.layers:
            match layer:
                case "linear":
                    x = next(linear)(x)
                case "tied":
                    x = x @ self.tied.t()
                case "gelu":
                    x = functional.gelu(x)
                case "relu_":
                    x = (x + 1).relu_()
                case "slice":
                    x = torch.cat([x[:, 4:].sigmoid(), x[:, :4]], 1)
                case "transpose":
                    x = x.t().tanh()
                case "twice":
                    x = x * x + x
                case "residual":
                    x = x + functional.silu(x.clone())
                case "dropout":
                    x = functional.dropout(x, 0.5)
        return x


@given(layers=st.lists(st.sampled_from(LAYERS), min_size=1, max_size=8))
@settings(max_examples=25, deadline=None)
def test_any_graph_lives_as_traced(layers: list[str]) -> None:
    case = training(Graph(layers), torch.randn(8, 8), torch.randint(8, (8,)))
    trace = traced(case)
    real = record(case.step, case.batch, case.found)
    assert [operator.name for operator in trace.operators] == ["begin", *real.operators]
    assert live_bytes(trace)[1:] == real.live_bytes  # nothing has been made at the empty first one


def everything(case: Training) -> dict[str, Any]:
    """All that a trace must leave alone, copied."""
    return copy.deepcopy(
        {
            "model": case.model.state_dict(),
            "gradients": [parameter.grad for parameter in case.model.parameters()],
            "flags": [module.training for module in case.model.modules()],
            "wants": [parameter.requires_grad for parameter in case.model.parameters()],
            "optimizer": case.optimizer.state_dict(),
            "torch": torch.get_rng_state(),
            "numpy": np.random.get_state()[1],
            "python": random.getstate(),
        }
    )


def same(one: Any, other: Any) -> bool:
    if isinstance(one, Tensor):
        return isinstance(other, Tensor) and torch.equal(one, other)
    if isinstance(one, np.ndarray):
        return bool((one == other).all())
    if isinstance(one, dict):
        return one.keys() == other.keys() and all(same(one[key], other[key]) for key in one)
    if isinstance(one, list | tuple):
        return len(one) == len(other) and all(map(same, one, other))
    return bool(one == other)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("trained_steps", [0, 2])
def test_everything_is_bit_for_bit_as_before(kind: str, trained_steps: int) -> None:
    case = KINDS[kind]()
    for _ in range(trained_steps):
        case.step(case.batch)
    functional.cross_entropy(case.model(case.batch[0]), case.batch[1]).backward()
    before = everything(case)
    parameters = [id(parameter) for parameter in case.model.parameters()]
    gradients = [id(parameter.grad) for parameter in case.model.parameters()]
    traced(case)
    assert same(before, everything(case))
    assert parameters == [id(parameter) for parameter in case.model.parameters()]
    assert gradients == [id(parameter.grad) for parameter in case.model.parameters()]
    assert "step" not in case.optimizer.__dict__


@pytest.mark.parametrize("where", ["forward", "after backward", "after the update"])
def test_a_step_that_raises_is_a_sentence_and_changes_nothing(where: str) -> None:
    case = mlp()

    def step(batch: tuple[Tensor, Tensor]) -> None:
        case.model.eval()
        random.random(), np.random.rand(), torch.rand(3)
        loss = functional.cross_entropy(case.model(batch[0]), batch[1])
        if where == "forward":
            raise KeyError("no such word")
        loss.backward()
        if where == "after backward":
            raise KeyError("no such word")
        case.optimizer.step()
        raise KeyError("no such word")

    before = everything(case)
    with pytest.raises(tensile.TraceError, match="KeyError: 'no such word'"):
        tensile.trace(step, case.model, case.optimizer, case.batch)
    assert same(before, everything(case))
    case.step(case.batch)  # and it trains


def test_numbers_that_a_step_reads_trace_and_its_lists_are_as_before(
    capsys: pytest.CaptureFixture[str],
) -> None:
    case = mlp()
    losses: list[float] = [0.5]
    seen = {"steps": 0}
    count = 0

    def step(batch: tuple[Tensor, Tensor]) -> None:
        nonlocal count
        loss = functional.cross_entropy(case.model(batch[0]), batch[1])
        loss.backward()
        norm = nn.utils.clip_grad_norm_(case.model.parameters(), 1.0)
        case.optimizer.step()
        case.optimizer.zero_grad()
        losses.append(loss.item() + float(norm))
        seen["steps"] += int(batch[1].sum())
        count += 1
        print(f"loss {loss:.2f}", norm)

    trace = tensile.trace(step, case.model, case.optimizer, case.batch)
    assert (losses, seen, count) == ([0.5], {"steps": 0}, 0)
    assert capsys.readouterr().out == ""  # numbers of a step that computes nothing
    assert any("linalg_vector_norm" in operator.name for operator in trace.operators)


def test_schedulers_scalers_and_averages_inside_the_step_are_as_before() -> None:
    case = mlp()
    scheduler = torch.optim.lr_scheduler.LinearLR(case.optimizer, total_iters=10)
    scaler = torch.amp.GradScaler("cpu")
    average = [parameter.detach().clone() for parameter in case.model.parameters()]

    def step(batch: tuple[Tensor, Tensor]) -> None:
        with torch.autocast("cpu", dtype=torch.bfloat16):
            loss = functional.cross_entropy(case.model(batch[0]), batch[1])
        scaler.scale(loss).backward()
        scaler.step(case.optimizer)
        scaler.update()
        scheduler.step()
        case.optimizer.zero_grad()
        with torch.no_grad():
            for mean, parameter in zip(average, case.model.parameters(), strict=True):
                mean.lerp_(parameter, 0.1)

    before = (everything(case), copy.deepcopy(average), copy.deepcopy(scheduler.state_dict()))
    scaled = copy.deepcopy(scaler.state_dict())
    trace = tensile.trace(step, case.model, case.optimizer, case.batch)
    after = (everything(case), average, scheduler.state_dict())
    assert same(before, after)
    assert scaler.state_dict() == scaled
    assert scheduler.last_epoch == 0
    assert sum(operator.name == "aten.lerp_.Scalar" for operator in trace.operators) > 6
    assert any(operator.phase is Phase.UPDATE for operator in trace.operators)


def test_a_captured_list_of_parameters_is_seen_as_the_model_s() -> None:
    case = mlp()
    captured = list(case.model.parameters())

    def step(batch: tuple[Tensor, Tensor]) -> None:
        functional.cross_entropy(case.model(batch[0]), batch[1]).backward()
        nn.utils.clip_grad_norm_(captured, 1.0)
        case.optimizer.step()
        case.optimizer.zero_grad()

    trace = tensile.trace(step, case.model, case.optimizer, case.batch)
    clipped = [o.name for o in trace.operators if "linalg_vector_norm" in o.name]
    assert len(clipped) == len(captured) + 1
    assert all(a is b for a, b in zip(captured, case.model.parameters(), strict=True))


class Keeper:
    """Holds parameters where no walk over a closure finds them."""

    __slots__ = ("parameters",)

    def __init__(self, parameters: list[nn.Parameter]) -> None:
        self.parameters = parameters


def refused(change: Callable[[Training, Keeper], Any]) -> str:
    case = mlp()
    keeper = Keeper(list(case.model.parameters()))

    def step(batch: tuple[Tensor, Tensor]) -> None:
        loss = functional.cross_entropy(case.model(batch[0]), batch[1])
        loss.backward()
        change(case, keeper)
        case.optimizer.step()
        case.optimizer.zero_grad()

    before = everything(case)
    with pytest.raises(tensile.TraceError) as refusal:
        tensile.trace(step, case.model, case.optimizer, case.batch)
    assert same(before, everything(case))
    return str(refusal.value)


def test_a_real_parameter_that_the_step_reaches_by_another_way_is_named() -> None:
    assert refused(lambda case, keeper: keeper.parameters[0].sum()).startswith("0.weight: ")
    assert refused(lambda case, keeper: keeper.parameters[3].grad).startswith("2.bias: ")


def test_a_branch_on_a_tensor_is_refused_with_the_reason() -> None:
    assert "branches on the value of a tensor" in refused(
        lambda case, keeper: bool(torch.isnan(case.model[0].weight.grad).any())
    )


def test_an_operator_without_a_fake_kernel_is_refused_with_its_name() -> None:
    assert "nonzero" in refused(lambda case, keeper: case.model[0].weight.nonzero())


def test_tied_weights_are_one_storage() -> None:
    trace = traced(attention())
    assert names(trace, Kind.PARAMETER) == {
        "parameter:embed.weight",
        *(f"parameter:{layer}.{part}" for layer in ("mix", "norm") for part in ("weight", "bias")),
    }
    gradients = [e.name for e in trace.events if e.moment is Moment.GRADIENT]
    assert gradients.count("embed.weight") == 1


def test_two_modules_and_two_optimizers_are_named_apart() -> None:
    maker, judge = nn.Linear(4, 8), nn.Linear(8, 1)
    first = torch.optim.SGD(maker.parameters(), lr=0.1, momentum=0.9)
    second = torch.optim.Adam(judge.parameters())

    def step(batch: Tensor) -> None:
        judge(maker(batch)).mean().backward()
        for optimizer in (first, second):
            optimizer.step()
            optimizer.zero_grad()

    trace = tensile.trace(
        step, {"maker": maker, "judge": judge}, (first, second), torch.randn(3, 4)
    )
    assert trace.chunks == (("maker.weight", "maker.bias"), ("judge.weight", "judge.bias"))
    assert "optimizer_state:maker.weight:momentum_buffer" in names(trace, Kind.STATE)
    assert "optimizer_state:judge.bias:exp_avg_sq" in names(trace, Kind.STATE)


@pytest.mark.parametrize("keep", [False, True])
def test_accumulated_gradients_live_as_long_as_zero_grad_lets_them(keep: bool) -> None:
    case = mlp()

    def step(batch: tuple[Tensor, Tensor]) -> None:
        case.optimizer.zero_grad(set_to_none=not keep)
        for _ in range(3):
            (functional.cross_entropy(case.model(batch[0]), batch[1]) / 3).backward()
        case.optimizer.step()

    trace = tensile.trace(step, case.model, case.optimizer, case.batch)
    events = [e for e in trace.events if e.moment is Moment.GRADIENT and e.name == "0.weight"]
    assert len(events) == 3
    count = len(trace.operators)
    lives = {s.name: (s.birth, s.death) for s in trace.storages if "gradient:0.weight" in s.name}
    if keep:
        assert lives == {"gradient:0.weight": (0, count + 1)}
    else:
        assert lives["gradient:0.weight:previous"][0] == 0
        assert lives["gradient:0.weight"][1] == count + 1


def test_the_moments_of_a_slot_are_in_order() -> None:
    trace = traced(cnn())
    for slot in trace.slots:
        alone = slot.packed if slot.alone is None else slot.alone
        assert slot.packed <= alone <= min(slot.unpacks) <= max(slot.unpacks) <= slot.released


def test_cheap_modules_between_two_saved_tensors_are_recipes() -> None:
    model = nn.Sequential(
        nn.Conv2d(2, 4, 3), nn.BatchNorm2d(4), nn.Conv2d(4, 4, 3), nn.GELU(), nn.Conv2d(4, 2, 3)
    )
    trace = traced(training(model, torch.randn(2, 2, 8, 8), torch.randint(2, (2, 2, 2))))
    made = {recipe.module: recipe for recipe in trace.recipes}
    assert made.keys() == {"1", "3"}
    for module, operator in (("1", "native_batch_norm"), ("3", "gelu")):
        recipe = made[module]
        assert recipe.call == 0
        assert operator in trace.operators[recipe.operators[-1]].name
        accessed = {a.storage for a in trace.accesses if a.operator in recipe.operators}
        assert {trace.slots[n].storage for n in (recipe.source, recipe.slot)} <= accessed


def test_packs_and_unpacks_are_those_of_a_real_run() -> None:
    case = attention()
    trace = traced(case)
    persistent = {p.untyped_storage()._cdata for p in case.found()}
    slots: dict[tuple[int, int], int] = {}
    real: list[tuple[Moment, int]] = []

    def pack(tensor: Tensor) -> tuple[int | None, Tensor]:
        key = (tensor.untyped_storage()._cdata, tensor._version)
        if key[0] in persistent:
            return None, tensor
        if key not in slots:
            slots[key] = len(slots)
            real.append((Moment.PACK, slots[key]))
        return slots[key], tensor

    def unpack(packed: tuple[int | None, Tensor]) -> Tensor:
        if packed[0] is not None:
            real.append((Moment.UNPACK, packed[0]))
        return packed[1]

    with torch.autograd.graph.saved_tensors_hooks(pack, unpack):
        case.step(case.batch)
    moments = (Moment.PACK, Moment.UNPACK)
    assert [(e.moment, e.number) for e in trace.events if e.moment in moments] == real


def test_what_the_step_keeps_is_never_alone() -> None:
    model = nn.Sequential(nn.Linear(8, 8), nn.Tanh(), nn.Linear(8, 8), nn.Tanh())
    kept: list[Tensor] = []

    def step(batch: tuple[Tensor, Tensor]) -> None:
        kept.clear()
        hidden = model[1](model[0](batch[0]))
        kept.append(hidden)
        functional.mse_loss(model[2](hidden).tanh(), batch[1]).backward()
        optimizer.step()
        optimizer.zero_grad()

    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    trace = tensile.trace(step, model, optimizer, (torch.randn(4, 8), torch.randn(4, 8)))
    held = [slot for slot in trace.slots if slot.alone is None]
    kinds = [trace.storages[slot.storage].kind for slot in held]
    assert kinds.count(Kind.ACTIVATION) == 1
    assert kinds.count(Kind.INPUT) == 2
    assert kept == []


def test_optimizers_run_in_chunks_of_neighbours() -> None:
    model = nn.Sequential(*(nn.Linear(512, 512, bias=False) for _ in range(16)))  # 1 MiB each
    case = training(model, torch.randn(2, 512), torch.randint(4, (2,)))
    trace = traced(case)
    pairs = range(0, 16, 2)
    assert trace.chunks == tuple((f"{i}.weight", f"{i + 1}.weight") for i in pairs)
    marks = [(e.moment, e.number) for e in trace.events if "chunk" in e.moment]
    assert marks == [
        (moment, number) for number in range(8) for moment in (Moment.CHUNK, Moment.CHUNK_END)
    ]
    assert trace.notes == ()


def test_a_closure_runs_once_before_the_chunks() -> None:
    model = nn.Sequential(*(nn.Linear(1024, 1024, bias=False) for _ in range(6)))
    optimizer = torch.optim.Adam(model.parameters())

    def step(batch: Tensor) -> None:
        def closure() -> Tensor:
            optimizer.zero_grad()
            loss: Tensor = model(batch).sum()
            loss.backward()
            return loss

        optimizer.step(closure)

    trace = tensile.trace(step, model, optimizer, torch.randn(2, 1024))
    forwards = [o for o in trace.operators if o.name == "aten.mm.default"]
    first = next(e.position for e in trace.events if e.moment is Moment.CHUNK)
    assert len(forwards) == 6 + 6 + 5
    assert all(o.phase is not Phase.UPDATE for o in trace.operators[:first])
    assert len(trace.chunks) == 6


def test_an_optimizer_that_searches_by_values_is_refused_and_unchanged() -> None:
    case = mlp()
    optimizer = torch.optim.LBFGS(case.model.parameters())

    def step(batch: tuple[Tensor, Tensor]) -> None:
        def closure() -> Tensor:
            optimizer.zero_grad()
            loss = functional.cross_entropy(case.model(batch[0]), batch[1])
            loss.backward()
            return loss

        optimizer.step(closure)

    before = everything(case)
    with pytest.raises(tensile.TraceError, match="branches on the value"):
        tensile.trace(step, case.model, optimizer, case.batch)
    assert same(before, everything(case))
    step(case.batch)


class Trainer:
    """A step that is a method and counts its calls."""

    def __init__(self, case: Training) -> None:
        self.case, self.calls, self.weights = case, 0, list(case.model.parameters())

    def step(self, batch: tuple[Tensor, Tensor]) -> None:
        self.calls += 1
        self.case.step(batch)
        assert all(weight.grad is None for weight in self.weights)


def test_a_method_s_object_is_as_before() -> None:
    trainer = Trainer(mlp())
    trace = tensile.trace(
        trainer.step, trainer.case.model, trainer.case.optimizer, trainer.case.batch
    )
    assert trainer.calls == 0
    assert trainer.weights[0] is next(trainer.case.model.parameters())
    assert trace.operators


class Odd(torch.optim.SGD):
    def step(self, closure: Any = None) -> Any:
        return super().step(closure)


def test_an_unknown_optimizer_is_one_chunk_and_noted() -> None:
    model = nn.Sequential(*(nn.Linear(1024, 1024, bias=False) for _ in range(6)))
    optimizer = Odd(model.parameters(), lr=0.1)

    def step(batch: Tensor) -> None:
        model(batch).sum().backward()
        optimizer.step()
        optimizer.zero_grad()

    trace = tensile.trace(step, model, optimizer, torch.randn(2, 1024))
    assert len(trace.chunks) == 1
    assert "Odd" in trace.notes[0]


def test_the_signature_tells_steps_apart_and_nothing_else() -> None:
    torch.manual_seed(1)
    one, again, wider = traced(mlp()), traced(mlp()), traced(mlp(width=33))
    assert one.signature == again.signature != wider.signature
    assert one == again
    case = mlp()
    for group in case.optimizer.param_groups:
        group["lr"] = 0.5
    assert traced(case).signature == one.signature
    larger = (torch.randn(9, 16), torch.randint(4, (9,)))
    assert tensile.trace(case.step, case.model, case.optimizer, larger).signature != one.signature


def test_tracing_allocates_nothing() -> None:
    model = nn.Sequential(*(nn.Sequential(nn.Linear(64, 64), nn.GELU()) for _ in range(8)))
    case = training(model, torch.randn(32768, 64), torch.randint(4, (32768,)))
    traced(case)  # what is loaded and cached once is there now
    before = resident.measure()
    assert before is not None
    resident.reset_peak()
    trace = traced(case)
    growth = resident.peak_growth_bytes(before)
    assert max(live_bytes(trace)) > 130 * MIB
    assert growth is not None
    assert growth < 6 * MIB


def test_nothing_of_a_trace_or_a_closed_session_keeps_the_model(tmp_path: Path) -> None:
    case = KINDS["mlp"]()
    traced(case)
    with Session(case.model, case.optimizer, 1.0, folder=tmp_path) as session:
        session.prepare(case.step, case.batch)
        with session.step():
            case.step(case.batch)
    model, optimizer = weakref.ref(case.model), weakref.ref(case.optimizer)
    del case, session
    gc.collect()
    assert (model(), optimizer()) == (None, None)
