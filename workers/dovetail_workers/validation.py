"""One validation: it looks at the models and leaves no trace in the run."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager

import torch

from dovetail_jobs.workload import Member, Workload
from dovetail_workers.precision import Precision
from dovetail_workers.random_state import undisturbed


def validate(workload: Workload, precision: Precision) -> dict[str, float]:
    """The workload's validation metrics, with the run's precision.

    Modes and random state are as before afterwards, so that how often a run validates never changes
    what it learns.
    """
    with _in_eval_mode(workload.models), undisturbed(), torch.no_grad(), precision.autocast():
        return {name: float(value) for name, value in workload.validate().items()}


@contextmanager
def _in_eval_mode(models: Mapping[str, Member]) -> Iterator[None]:
    modules = [module for member in models.values() for module in member.module.modules()]
    modes = [module.training for module in modules]
    for member in models.values():
        member.module.eval()
    try:
        yield
    finally:
        for module, mode in zip(modules, modes, strict=True):
            module.training = mode
