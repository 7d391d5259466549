"""The optimizer that a spec asks for."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch

from dovetail_jobs.spec import Optimizer
from dovetail_jobs.workload import ParameterGroup


def build(spec: Optimizer, groups: Iterable[ParameterGroup]) -> torch.optim.Optimizer:
    """Over `groups`: mappings with `params` and, where they differ, `weight_decay`, `lr_factor`.

    The fused kernels of torch are used: one call per group instead of one per tensor and operator.
    """
    given = [_group(spec, group) for group in groups]
    if spec.name == "sgd":
        return torch.optim.SGD(
            given,
            lr=spec.lr,
            momentum=spec.momentum,
            weight_decay=spec.weight_decay,
            fused=True,
        )
    kind = torch.optim.AdamW if spec.name == "adamw" else torch.optim.Adam
    return kind(
        given,
        lr=spec.lr,
        betas=spec.betas,
        eps=spec.eps,
        weight_decay=spec.weight_decay,
        fused=True,
    )


def _group(spec: Optimizer, group: ParameterGroup) -> dict[str, Any]:
    rest = {key: value for key, value in group.items() if key != "lr_factor"}
    return {**rest, "lr": spec.lr * group.get("lr_factor", 1.0)}
