"""EMA members of a workload: parameters that follow a trainable member as a moving average."""

from __future__ import annotations

from collections.abc import Mapping

import torch

from dovetail_jobs.errors import UserError
from dovetail_jobs.workload import Member


def prepare(models: Mapping[str, Member]) -> None:
    """Let no gradient reach frozen and EMA members; UserError for an EMA that cannot follow."""
    for name, member in models.items():
        if member.role == "trainable":
            continue
        member.module.requires_grad_(False)
        if member.follows is not None:
            followed = models.get(member.follows)
            if followed is None or _shapes(followed) != _shapes(member):
                raise UserError(
                    f"model {name}: follows {member.follows!r}, which is not a model with the same "
                    "parameters; build it as a copy of the model that it follows"
                )


@torch.no_grad()
def update(models: Mapping[str, Member], step: int, steps: int) -> None:
    """After optimizer step `step` (from 1): own = m * own + (1 - m) * followed, per parameter."""
    for member in models.values():
        if member.follows is None or member.momentum is None:
            continue
        momentum = member.momentum(step, steps)
        followed = models[member.follows].module.parameters()
        for own, other in zip(member.module.parameters(), followed, strict=True):
            own.lerp_(other, 1 - momentum)


def _shapes(member: Member) -> dict[str, torch.Size]:
    return {name: parameter.shape for name, parameter in member.module.named_parameters()}
