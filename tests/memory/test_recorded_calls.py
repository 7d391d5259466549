"""What is computed again is bit for bit what was dropped, and nothing else changes by it."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from helpers.small_trainings import Training, contents, differences
from tensile import Session
from tensile.actions import Recompute
from tensile.costs import Costs
from tensile.recorded_calls import RecordedCalls
from tensile.schedule import Schedule

SLOW_DISK = Costs(
    device="cpu",
    flops_per_s=5e12,
    moved_bytes_per_s=5e11,
    overhead_s=1e-6,
    out_bytes_per_s=1e7,
    in_bytes_per_s=1e7,
    copy_latency_s=1e-2,
)
MODULES: dict[str, tuple[nn.Module, tuple[int, ...]]] = {
    "layer norm": (nn.LayerNorm(12), (5, 7, 12)),
    "layer norm without parameters": (nn.LayerNorm(12, elementwise_affine=False), (5, 7, 12)),
    "group norm": (nn.GroupNorm(3, 12), (5, 12, 7)),
    "rms norm": (nn.RMSNorm(12), (5, 7, 12)),
    "batch norm 1d": (nn.BatchNorm1d(12), (15, 12)),
    "batch norm 2d": (nn.BatchNorm2d(12, momentum=None), (5, 12, 4, 4)),
    "batch norm 3d": (nn.BatchNorm3d(12), (5, 12, 2, 4, 4)),
    "gelu": (nn.GELU(), (5, 12)),
    "gelu by tanh": (nn.GELU("tanh"), (5, 12)),
    "relu": (nn.ReLU(), (5, 12)),
    "silu": (nn.SiLU(), (5, 12)),
    "sigmoid": (nn.Sigmoid(), (5, 12)),
    "tanh": (nn.Tanh(), (5, 12)),
    "leaky relu": (nn.LeakyReLU(0.3), (5, 12)),
    "dropout": (nn.Dropout(0.4), (5, 12)),
}


def recorded(module: nn.Module) -> RecordedCalls:
    calls = RecordedCalls([("m", module)], {("m", 0)})
    calls.active = True
    return calls


@pytest.mark.parametrize("kind", MODULES)
@pytest.mark.parametrize("laid", ["contiguous", "transposed"])
def test_every_kind_of_call_gives_the_same_bits_again(kind: str, laid: str) -> None:
    module, shape = MODULES[kind]
    torch.manual_seed(3)
    x = torch.randn(shape)
    if laid == "transposed":
        x = x.transpose(0, -1).contiguous().transpose(0, -1)
    calls = recorded(module)
    y = module(x)
    module_state = {name: value.clone() for name, value in module.state_dict().items()}
    generator = torch.get_rng_state()
    for parameter in module.parameters():
        parameter.data.add_(1)  # an optimizer has moved on meanwhile
    call = calls.find("m", 0)
    assert call is not None
    storage = call.compute(x.untyped_storage())
    again = torch.empty(0).set_(storage, y.storage_offset(), y.size(), y.stride())
    assert torch.equal(again, y)
    assert torch.equal(torch.get_rng_state(), generator)
    for name, buffer in module.named_buffers():
        assert torch.equal(buffer, module_state[name])
    calls.remove()
    assert not module._forward_hooks


class Doubling(nn.ReLU):
    def forward(self, x: Tensor) -> Tensor:
        return 2 * super().forward(x)


def _doubled(module: nn.Module, args: object, result: Tensor) -> Tensor:
    return 2 * result


def test_what_may_be_something_else_is_not_remembered() -> None:
    x = torch.randn(3, 4)
    resting = nn.Dropout(0.5).eval()
    for module in (Doubling(), nn.ReLU(inplace=True), resting, nn.BatchNorm1d(4).eval()):
        calls = recorded(module)
        module(x.clone())
        assert calls.find("m", 0) is None
    watched = nn.ReLU()
    calls = recorded(watched)
    watched.register_forward_hook(_doubled)
    watched(x)
    assert calls.find("m", 0) is None
    patched = nn.ReLU()
    patched.forward = lambda value: value * 2  # type: ignore[method-assign]
    calls = recorded(patched)
    patched(x)
    assert calls.find("m", 0) is None
    under = nn.LayerNorm(4)
    calls = recorded(under)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        under(x)
    assert calls.find("m", 0) is None


def cheap_layers() -> Training:
    torch.manual_seed(0)
    layers: list[nn.Module] = []
    for _ in range(4):
        layers += [nn.Linear(64, 64), nn.LayerNorm(64), nn.GELU(), nn.Dropout(0.2)]
        layers += [nn.Linear(64, 64), nn.BatchNorm1d(64), nn.SiLU()]
    model = nn.Sequential(*layers, nn.Linear(64, 4))
    return Training(
        model=model,
        optimizer=torch.optim.Adam(model.parameters(), lr=1e-3),
        batches=[torch.randn(1024, 64) for _ in range(3)],
        loss=lambda m, x: m(x).square().mean(),
    )


def test_training_that_computes_again_gives_the_same_bits(tmp_path: Path) -> None:
    expected, training = cheap_layers(), cheap_layers()
    expected.start()
    for number in range(9):
        expected.step(expected.batches[number % 3])
    outcome = contents(expected)
    training.start()
    with Session(training.model, training.optimizer, 0.5, folder=tmp_path) as session:
        session.prepare(training.step, training.batches[0], costs=SLOW_DISK)
        planned = [
            a for a in session._adoption.schedules[0].plan.actions if isinstance(a, Recompute)
        ]
        for number in range(9):
            with session.step():
                training.step(training.batches[number % 3])
        stats = session.stats()
    assert planned
    assert stats.deviations == 0, stats.notes
    assert stats.recomputed_bytes >= sum(action.bytes for action in planned)
    assert differences(contents(training), outcome) == []


def test_a_recipe_that_does_not_fit_what_happened_is_not_used(tmp_path: Path) -> None:
    expected, training = cheap_layers(), cheap_layers()
    expected.start()
    expected.step(expected.batches[0])
    training.start()
    with Session(training.model, training.optimizer, 0.5, folder=tmp_path) as session:
        session.prepare(training.step, training.batches[0], costs=SLOW_DISK)
        schedule = session._adoption.schedules[0]
        plan = schedule.plan
        wrong = tuple(
            replace(action, source=action.slot) if isinstance(action, Recompute) else action
            for action in plan.actions
        )
        session._adoption.follow(Schedule(schedule.trace, replace(plan, actions=wrong)))
        with session.step():
            training.step(training.batches[0])
        assert session.stats().recomputed_bytes == 0
    assert differences(contents(training), contents(expected)) == []
