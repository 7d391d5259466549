"""Precision, clipping and the optimizers against plain torch."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from dovetail_jobs.spec import Optimizer
from dovetail_workers import optimizers
from dovetail_workers.precision import Precision

CPU = torch.device("cpu")


def one_step(precision: Precision, factor: float, clip_norm: float | None) -> torch.Tensor:
    """By how much SGD with rate 1 moves 100 parameters whose gradient is `factor`."""
    parameter = torch.nn.Parameter(torch.zeros(100))
    optimizer = optimizers.build(Optimizer(name="sgd", lr=1.0), [{"params": [parameter]}])
    precision.backward((parameter * factor).sum())
    precision.step([optimizer], clip_norm)
    return -parameter.detach()


@pytest.mark.parametrize("name", ["fp32", "bf16", "fp16"])
def test_clipping_scales_to_the_norm_and_leaves_smaller_gradients(name: Any) -> None:
    precision = Precision(name, CPU)
    assert one_step(precision, 3.0, None).norm() == pytest.approx(30, rel=1e-5)
    clipped = one_step(precision, 3.0, 6.0)
    assert clipped.norm() == pytest.approx(6, rel=1e-4)
    assert torch.equal(clipped, clipped[:1].expand(100))
    assert one_step(precision, 0.3, 6.0).norm() == pytest.approx(3, rel=1e-5)


def test_the_norm_is_one_over_all_optimizers() -> None:
    precision = Precision("fp32", CPU)
    parameters = [torch.nn.Parameter(torch.zeros(())) for _ in range(2)]
    both = [
        optimizers.build(Optimizer(name="sgd", lr=1.0), [{"params": [parameter]}])
        for parameter in parameters
    ]
    precision.backward(3 * parameters[0] + 4 * parameters[1])
    precision.step(both, 1.0)
    assert [-float(parameter.detach()) for parameter in parameters] == pytest.approx(
        [0.6, 0.8], rel=1e-5
    )


def test_a_step_whose_gradient_overflows_is_left_out_and_the_scale_falls() -> None:
    precision = Precision("fp16", CPU)
    before = precision.state_dict()["scale"]
    assert not one_step(precision, 1e38, None).any()
    assert precision.state_dict()["scale"] == before / 2
    assert one_step(precision, 1.0, None).norm() == pytest.approx(10)


def test_the_loss_scale_continues_where_it_was() -> None:
    worn, fresh = Precision("fp16", CPU), Precision("fp16", CPU)
    one_step(worn, 1e38, None)
    assert fresh.state_dict() != worn.state_dict()
    fresh.load_state_dict(worn.state_dict())
    assert fresh.state_dict() == worn.state_dict()


@pytest.mark.parametrize(
    ("name", "dtype"),
    [("fp32", torch.float32), ("bf16", torch.bfloat16), ("fp16", torch.float16)],
)
def test_products_are_computed_in_the_format_named(name: Any, dtype: torch.dtype) -> None:
    layer = torch.nn.Linear(4, 4)
    with Precision(name, CPU).autocast():
        assert layer(torch.zeros(2, 4)).dtype == dtype
    assert layer.weight.dtype == torch.float32


@pytest.mark.parametrize(
    ("spec", "plain"),
    [
        (
            Optimizer(name="adamw", lr=0.1, weight_decay=0.1, betas=(0.8, 0.9), eps=1e-6),
            lambda p: torch.optim.AdamW(p, 0.1, (0.8, 0.9), 1e-6, 0.1),
        ),
        (
            Optimizer(name="adam", lr=0.1, weight_decay=0.1),
            lambda p: torch.optim.Adam(p, 0.1, weight_decay=0.1),
        ),
        (
            Optimizer(name="sgd", lr=0.1, momentum=0.9, weight_decay=0.1),
            lambda p: torch.optim.SGD(p, 0.1, 0.9, weight_decay=0.1),
        ),
    ],
    ids=["adamw", "adam", "sgd"],
)
def test_an_optimizer_steps_as_torchs_plain_one(spec: Optimizer, plain: Any) -> None:
    start = torch.linspace(-1, 1, 50)
    ours, theirs = torch.nn.Parameter(start.clone()), torch.nn.Parameter(start.clone())
    pairs = [
        (ours, optimizers.build(spec, [{"params": [ours]}])),
        (theirs, plain([theirs])),
    ]
    for step in range(5):
        for parameter, optimizer in pairs:
            optimizer.zero_grad()
            ((parameter - step) ** 3).sum().backward()
            optimizer.step()
    torch.testing.assert_close(ours, theirs)
    assert not torch.equal(ours.detach(), start)


def test_a_group_may_have_a_decay_and_a_rate_of_its_own() -> None:
    parameters = [torch.nn.Parameter(torch.ones(1)) for _ in range(2)]
    built = optimizers.build(
        Optimizer(lr=0.1, weight_decay=0.5),
        [
            {"params": parameters[:1]},
            {"params": parameters[1:], "weight_decay": 0.0, "lr_factor": 0.1},
        ],
    )
    rates = [(group["lr"], group["weight_decay"]) for group in built.param_groups]
    assert rates == [(0.1, 0.5), (pytest.approx(0.01), 0.0)]
