"""A moving average follows by its formula, and what cannot follow is refused."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from dovetail_jobs.errors import UserError
from dovetail_jobs.workload import Member
from dovetail_workers import averages


def follower(module: nn.Module, momentum: float, follows: str = "student") -> Member:
    return Member(module=module, role="ema", follows=follows, momentum=lambda step, steps: momentum)


def test_an_average_equals_its_closed_form() -> None:
    student, teacher = nn.Linear(3, 3), nn.Linear(3, 3)
    nn.init.zeros_(teacher.weight)
    models = {"student": Member(module=student), "teacher": follower(teacher, 0.9)}
    for step in range(1, 21):
        averages.update(models, step, 20)
    torch.testing.assert_close(teacher.weight, (1 - 0.9**20) * student.weight)


def test_the_momentum_is_asked_with_the_step_and_the_steps() -> None:
    asked: list[tuple[int, int]] = []

    def momentum(step: int, steps: int) -> float:
        asked.append((step, steps))
        return 0.0

    student, teacher = nn.Linear(2, 2), nn.Linear(2, 2)
    models = {
        "student": Member(module=student),
        "teacher": Member(module=teacher, role="ema", follows="student", momentum=momentum),
    }
    averages.update(models, 3, 7)
    assert asked == [(3, 7)]
    assert torch.equal(teacher.weight, student.weight)


def test_no_gradient_reaches_frozen_and_averaged_members() -> None:
    models = {
        "student": Member(module=nn.Linear(2, 2)),
        "teacher": follower(nn.Linear(2, 2), 0.5),
        "backbone": Member(module=nn.Linear(2, 2), role="frozen"),
    }
    averages.prepare(models)
    wants = {
        name: {parameter.requires_grad for parameter in member.module.parameters()}
        for name, member in models.items()
    }
    assert wants == {"student": {True}, "teacher": {False}, "backbone": {False}}


@pytest.mark.parametrize(
    "teacher", [follower(nn.Linear(2, 3), 0.5), follower(nn.Linear(2, 2), 0.5, "nobody")]
)
def test_an_average_of_another_shape_or_of_nobody_is_refused(teacher: Member) -> None:
    with pytest.raises(UserError, match=r"model teacher: follows .* build it as a copy"):
        averages.prepare({"student": Member(module=nn.Linear(2, 2)), "teacher": teacher})


def test_an_ema_member_says_whom_it_follows_and_how() -> None:
    with pytest.raises(ValueError, match="needs `follows` and `momentum`"):
        Member(module=nn.Linear(1, 1), role="ema")
    with pytest.raises(ValueError, match="needs `follows` and `momentum`"):
        Member(module=nn.Linear(1, 1), follows="x", momentum=lambda step, steps: 0.5)
