"""A forecast is the peak of eager training, and its floor is the least that a plan can keep."""

from __future__ import annotations

import importlib
import pkgutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

import tensile
from helpers.live_recorder import record
from helpers.small_models import KINDS, Training, cnn, mlp, training
from tensile import freed_memory, resident
from tensile.chunks import CHUNK_BYTES, chunks, narrowed
from tensile.costs import Costs
from tensile.floor import required_bytes
from tensile.sequence import Kind, Trace
from tensile.workspace import hidden_result, workspace_bytes

MIB = 2**20
COSTS = Costs(
    device="cpu",
    flops_per_s=5e10,
    moved_bytes_per_s=5e9,
    overhead_s=1e-5,
    out_bytes_per_s=1.5e9,
    in_bytes_per_s=8e8,
    copy_latency_s=1e-4,
)


@pytest.fixture(autouse=True)
def _one_thread_and_one_seed() -> Iterator[None]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    torch.manual_seed(0)
    yield
    torch.set_num_threads(threads)


def traced(case: Training) -> Trace:
    return tensile.trace(case.step, case.model, case.optimizer, case.batch)


@pytest.mark.parametrize("kind", KINDS)
def test_the_classes_add_up_and_the_floor_is_below_the_peak(kind: str) -> None:
    trace = traced(KINDS[kind]())
    forecast = tensile.forecast(trace)
    assert sum(forecast.by_class.values()) == forecast.peak_bytes
    least_bytes = tensile.floor_bytes(trace)
    assert least_bytes <= forecast.floor_bytes <= min(forecast.peak_bytes, 1.05 * least_bytes)
    assert tensile.forecast(trace, "cuda").floor_bytes == least_bytes
    assert 0 < forecast.margin_bytes <= forecast.peak_bytes // 10
    states = sum(s.bytes for s in trace.storages if s.kind is Kind.STATE)
    assert forecast.by_class[Kind.STATE] >= states


def deep(batch_size: int) -> Training:
    """8 wide layers: activations for a large batch, parameters and states for a small one."""
    model = nn.Sequential(*(nn.Sequential(nn.Linear(512, 512), nn.GELU()) for _ in range(8)))
    return training(model, torch.randn(batch_size, 512), torch.randint(4, (batch_size,)))


def test_activations_of_many_layers_are_not_in_the_floor() -> None:
    forecast = tensile.forecast(traced(deep(4096)))
    assert forecast.by_class[Kind.ACTIVATION] > 16 * 8 * MIB
    # a layer's backward pass: two gradients, what it saved, and the inputs of the step
    assert forecast.floor_bytes < 5 * 8 * MIB + 16 * MIB


@pytest.mark.parametrize("foreach", [False, True])
def test_the_forecast_is_of_the_step_that_is_not_chunked(foreach: bool) -> None:
    model = nn.Sequential(*(nn.Linear(1024, 1024, bias=False) for _ in range(6)))
    case = training(model, torch.randn(4, 1024), torch.randint(4, (4,)), foreach=foreach)
    trace = traced(case)
    assert len(trace.chunks) == 6
    forecast = tensile.forecast(trace)
    real = record(case.step, case.batch, case.found)
    assert abs(forecast.peak_bytes / max(real.live_bytes) - 1) < 0.01
    assert forecast.by_class[Kind.TEMPORARY] > (6 if foreach else 1) * 4 * MIB


def test_the_floor_needs_the_operands_of_the_largest_operator() -> None:
    trace = traced(deep(4096))
    operands = max(
        sum(
            trace.storages[access.storage].bytes
            for access in trace.accesses
            if access.operator == position
        )
        for position in range(len(trace.operators))
    )
    assert operands <= int(required_bytes(trace).max()) == tensile.floor_bytes(trace)


@pytest.mark.parametrize("kind", [*KINDS, "deep"])
def test_a_plan_at_the_floor_is_kept(kind: str) -> None:
    trace = traced(KINDS[kind]() if kind in KINDS else deep(4096))
    floor_bytes = tensile.floor_bytes(trace)
    plan = tensile.plan(trace, floor_bytes, COSTS)
    assert plan.peak_bytes <= floor_bytes
    assert tensile.simulate(trace, plan, COSTS).peak_bytes == plan.peak_bytes


def test_what_python_holds_cannot_leave() -> None:
    trace = traced(deep(4096))
    held = replace(trace, slots=tuple(replace(slot, alone=None) for slot in trace.slots))
    assert tensile.floor_bytes(held) > 2 * tensile.floor_bytes(trace)


def test_larger_blocks_take_whole_pages() -> None:
    from tensile.forecasting import allocated_bytes

    assert allocated_bytes(1, "cpu") == 64
    assert allocated_bytes(128 * 1024, "cpu:0") == 128 * 1024 + 4096
    assert allocated_bytes(513, "cuda:0") == 1024


def test_convolutions_take_room_for_their_copies() -> None:
    trace = traced(cnn())
    workspace = {o.name: o.workspace_bytes for o in trace.operators if o.workspace_bytes}
    assert workspace.keys() == {"aten.convolution.default", "aten.convolution_backward.default"}


@pytest.mark.skipif(not torch.backends.mkldnn.is_available(), reason="other libraries, other needs")
@pytest.mark.parametrize(("kernel", "stride"), [(3, 1), (3, 2), (1, 2), (5, 4)])
def test_the_backward_pass_of_a_convolution_takes_what_is_modelled(
    kernel: int, stride: int
) -> None:
    backward = torch.ops.aten.convolution_backward.default
    source, weight = torch.randn(16, 32, 64, 64), torch.randn(64, 32, kernel, kernel)
    steps, pads = [stride] * 2, [kernel // 2] * 2
    result = torch.conv2d(source, weight, stride=steps, padding=pads)
    modes = (None, steps, pads, [1, 1], False, [0, 0], 1, [True, True, False])
    args = (torch.ones_like(result), source, weight, *modes)
    assert abs(taken_bytes(backward, args) - workspace_bytes(backward, args, {}, None)) < MIB


@pytest.mark.skipif(not torch.backends.mkldnn.is_available(), reason="other libraries, other needs")
@pytest.mark.parametrize("kind", [torch.float32, torch.bfloat16], ids=["float32", "bfloat16"])
@pytest.mark.parametrize("weights_last", [True, False])
def test_convolutions_whose_channels_are_last_take_what_is_modelled(
    kind: torch.dtype, weights_last: bool
) -> None:
    last, aten = torch.channels_last, torch.ops.aten
    source = torch.randn(8, 512, 3, 3).to(kind, memory_format=last)
    weight = torch.randn(512, 512, 3, 3).to(kind)
    weight = weight.to(memory_format=last) if weights_last else weight
    modes = (None, [1, 1], [1, 1], [1, 1], False, [0, 0], 1)
    forward, backward = aten.convolution.default, aten.convolution_backward.default
    forward_args = (source, weight, *modes)
    backward_args = (torch.ones_like(source), *forward_args, [True, True, False])
    for function, args in ((forward, forward_args), (backward, backward_args)):
        modelled = workspace_bytes(function, args, {}, None)
        assert abs(taken_bytes(function, args) - modelled) < MIB


@pytest.mark.parametrize("name", ["_softmax", "_log_softmax"])
@pytest.mark.parametrize("transposed", [False, True])
def test_a_softmax_takes_what_is_modelled(name: str, transposed: bool) -> None:
    forward = getattr(torch.ops.aten, name).default
    backward = getattr(torch.ops.aten, f"{name}_backward_data").default
    x = torch.randn(4, 256, 4000)
    x = x.transpose(1, 2) if transposed else x
    for function, args in (
        (forward, (x, 1, False)),
        (backward, (x, torch.ones_like(x), 1, torch.float32)),
    ):
        modelled = workspace_bytes(function, args, {}, None)
        assert abs(taken_bytes(function, args) - modelled) < MIB


def taken_bytes(function: Callable[..., Any], args: tuple[Any, ...]) -> int:
    """What it takes beside its operands and results, by the operating system's count."""
    freed_memory.return_it()
    function(*args)  # loads what it needs
    freed_memory.give_back()
    base = resident.measure()
    if base is None or not resident.reset_peak():
        pytest.skip("this system does not say how much memory a process has")
    made = function(*args)
    grown = resident.peak_growth_bytes(base)
    freed_memory.let_wait(None)
    assert grown is not None
    results = made if isinstance(made, tuple) else (made,)
    return grown - sum(result.nbytes for result in results if result is not None)


@given(
    steps=st.integers(1, 9),
    batch=st.integers(1, 9),
    inside=st.integers(1, 70),
    width=st.integers(1, 70),
)
@settings(max_examples=25, deadline=None)
def test_the_hidden_result_of_an_lstm_has_the_size_of_the_real_one(
    steps: int, batch: int, inside: int, width: int
) -> None:
    layer = nn.LSTM(inside, width)
    hidden = torch.zeros(1, batch, width)
    modes = (hidden, hidden, False, [], 2, width, 1, True, False, False, True)
    args = (torch.randn(steps, batch, inside), *layer._flat_weights, *modes)
    real = torch.ops.aten.mkldnn_rnn_layer.default(*args)
    expected = hidden_result(torch.ops.aten.mkldnn_rnn_layer.default, args)
    assert expected is not None
    assert real[expected.index].untyped_storage().nbytes() == expected.bytes
    assert 0 < expected.late_bytes < expected.bytes


@given(sizes=st.lists(st.integers(1, 3 * CHUNK_BYTES // 4), max_size=12))
@settings(max_examples=50, deadline=None)
def test_chunks_cover_every_parameter_once_and_in_order(sizes: list[int]) -> None:
    parameters = [
        nn.Parameter(torch.empty(size, dtype=torch.uint8, device="meta"), False) for size in sizes
    ]
    optimizer = torch.optim.SGD([{"params": parameters}], lr=0.1)
    seen: list[nn.Parameter] = []
    for chunk in chunks([optimizer]):
        with narrowed(optimizer, chunk):
            inside = optimizer.param_groups[0]["params"]
            assert len(inside) == 1 or sum(p.numel() for p in inside) <= CHUNK_BYTES
            seen += inside
    assert [id(parameter) for parameter in seen] == [id(parameter) for parameter in parameters]
    assert [id(p) for p in optimizer.param_groups[0]["params"]] == [id(p) for p in parameters]


def test_a_small_model_is_cut_into_about_eight_chunks_and_a_tiny_one_stays_whole() -> None:
    def count(width: int) -> int:
        layers = [nn.Linear(width, width, bias=False, device="meta") for _ in range(32)]
        return len(chunks([torch.optim.SGD(nn.ModuleList(layers).parameters())]))

    assert count(512) == 8  # of 4 MiB each
    assert count(2048) == 32  # of 16 MiB, which is a layer
    assert count(64) == 1


@pytest.mark.parametrize("options", [{}, {"foreach": True}, {"fused": True}])
def test_a_step_in_chunks_gives_the_bits_of_a_whole_step(options: dict[str, bool]) -> None:
    results = []
    for divided in (False, True):
        torch.manual_seed(3)
        model = nn.Sequential(*(nn.Linear(1500, 1500, bias=False) for _ in range(4)))
        optimizer = torch.optim.AdamW(model.parameters(), **options)  # type: ignore[arg-type]
        for _ in range(2):
            for parameter in model.parameters():
                parameter.grad = torch.randn_like(parameter)
            for chunk in chunks([optimizer]) if divided else [None]:
                if chunk is None:
                    optimizer.step()
                else:
                    with narrowed(optimizer, chunk):
                        optimizer.step()
        results.append([parameter.detach().clone() for parameter in model.parameters()])
    assert len(chunks([optimizer])) > 1
    assert all(torch.equal(one, other) for one, other in zip(*results, strict=True))


def test_importing_tensile_loads_no_torch_and_every_name_is_what_it_says() -> None:
    program = "import sys, tensile; assert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", program], check=True)
    found = [module.name for module in pkgutil.iter_modules(tensile.__path__)]
    assert not {*found} & {
        *tensile._HOMES
    }  # once it is imported, a module hides a thing of its name
    for name in {*found} - {"__main__"}:
        importlib.import_module(f"tensile.{name}")
    assert all(callable(getattr(tensile, name)) for name in tensile._HOMES)


def test_a_forecast_of_a_small_model_is_small() -> None:
    assert tensile.forecast(traced(mlp())).peak_bytes < MIB


@pytest.mark.parametrize("kind", KINDS)
def test_what_the_loop_holds_beside_its_step_is_in_forecast_floor_and_plans(kind: str) -> None:
    case = KINDS[kind]()
    alone = traced(case)
    beside = tensile.trace(case.step, case.model, case.optimizer, case.batch, beside_bytes=3 * MIB)
    assert beside.signature == alone.signature
    found, without = tensile.forecast(beside), tensile.forecast(alone)
    held_bytes = found.by_class[Kind.LOADER]
    assert 3 * MIB <= held_bytes < 3 * MIB + 2**13
    assert without.by_class[Kind.LOADER] == 0
    assert abs(found.peak_bytes - without.peak_bytes - held_bytes) < 2**13  # whole pages
    floor = tensile.floor_bytes(beside)
    assert floor == tensile.floor_bytes(alone) + 3 * MIB
    assert tensile.plan(beside, floor, COSTS).peak_bytes <= floor
    with pytest.raises(ValueError, match="beside_bytes: -1"):
        tensile.trace(case.step, case.model, case.optimizer, case.batch, beside_bytes=-1)
