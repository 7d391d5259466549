"""The schedule's factors are those of torch's own schedulers."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.optim.lr_scheduler import (
    ConstantLR,
    CosineAnnealingLR,
    LinearLR,
    LRScheduler,
    SequentialLR,
)

from dovetail_jobs.spec import Schedule
from dovetail_workers import schedules

STEPS, WARMUP = 20, 5


def torchs_factors(name: str, warmup: int) -> list[float]:
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=1.0)
    rest = STEPS - warmup
    main: LRScheduler = {
        "constant": lambda: ConstantLR(optimizer, factor=1.0, total_iters=rest),
        "linear": lambda: LinearLR(optimizer, 1.0, 0.0, total_iters=rest),
        "cosine": lambda: CosineAnnealingLR(optimizer, T_max=rest),
    }[name]()
    if warmup:
        up = LinearLR(optimizer, 1 / warmup, 1.0, total_iters=warmup - 1)
        main = SequentialLR(optimizer, [up, main], [warmup])
    factors = []
    for _ in range(STEPS):
        factors.append(float(optimizer.param_groups[0]["lr"]))
        optimizer.step()
        main.step()
    return factors


@pytest.mark.parametrize("name", ["constant", "linear", "cosine"])
@pytest.mark.parametrize("warmup", [0, WARMUP])
def test_factors_equal_torchs(name: str, warmup: int) -> None:
    schedule = Schedule(name=name, warmup_steps=warmup)
    ours = [schedules.factor(schedule, step, STEPS) for step in range(STEPS)]
    assert ours == pytest.approx(torchs_factors(name, warmup), abs=1e-9)


@given(
    name=st.sampled_from(["constant", "linear", "cosine"]),
    warmup=st.integers(0, 50),
    steps=st.integers(1, 100),
)
def test_a_factor_lies_between_0_and_1_and_rises_then_falls(
    name: str, warmup: int, steps: int
) -> None:
    schedule = Schedule(name=name, warmup_steps=warmup)
    factors = [schedules.factor(schedule, step, steps) for step in range(steps)]
    assert all(0 < factor <= 1 for factor in factors)
    assert factors[:warmup] == sorted(factors[:warmup])
    assert factors[warmup:] == sorted(factors[warmup:], reverse=True)


def test_a_factor_applies_to_each_groups_own_rate_however_often() -> None:
    parameters = [torch.nn.Parameter(torch.zeros(1)) for _ in range(2)]
    groups: list[dict[str, Any]] = [{"params": parameters[0], "lr": 0.1}, {"params": parameters[1]}]
    optimizer = torch.optim.SGD(groups, lr=1.0)
    for value in (0.5, 0.25, 1.0, 0.5):
        schedules.apply([optimizer], value)
        rates = [group["lr"] for group in optimizer.param_groups]
        assert rates == pytest.approx([0.1 * value, value])
