"""The learning rate over a run: a factor on each group's own rate, a function of the step."""

from __future__ import annotations

import math
from collections.abc import Iterable

import torch

from dovetail_jobs.spec import Schedule


def factor(schedule: Schedule, step: int, steps: int) -> float:
    """The factor of optimizer step `step`, counted from 0, of `steps`.

    Warm-up: (step + 1) / warmup_steps, so the first step already learns and the last of the warm-up
    has the full rate. After it, with p from 0 towards 1 over the rest: constant 1, linear 1 - p,
    cosine (1 + cos(pi p)) / 2 (Loshchilov & Hutter 2017, without restarts).
    """
    if step < schedule.warmup_steps:
        return (step + 1) / schedule.warmup_steps
    progress = (step - schedule.warmup_steps) / max(1, steps - schedule.warmup_steps)
    if schedule.name == "linear":
        return 1 - progress
    if schedule.name == "cosine":
        return (1 + math.cos(math.pi * progress)) / 2
    return 1.0


def apply(optimizers: Iterable[torch.optim.Optimizer], value: float) -> None:
    """Give every group `value` times its first rate, which stays in the group as `initial_lr`."""
    for optimizer in optimizers:
        for group in optimizer.param_groups:
            group["lr"] = group.setdefault("initial_lr", group["lr"]) * value
