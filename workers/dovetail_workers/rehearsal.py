"""What a job's training step does to memory, found without training: `python -m
dovetail_workers.rehearsal < REQUEST`.

The request is one JSON object, `{"spec": …, "workdir": …, "budget": …, "picture": …}`; the answer
is one too, `{"forecast": …, "plan": …, "notes": […]}` or `{"refused": "a sentence"}`. It is a
process of its own, so that neither the command line nor the server imports torch.
"""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from typing import Any

import torch

import tensile
from dovetail_jobs import catalog
from dovetail_jobs.errors import DovetailError, UserError
from dovetail_jobs.spec import JobSpec
from dovetail_workers.numerics import reproducible
from dovetail_workers.optimizer_step import OptimizerStep
from dovetail_workers.random_state import seed_everything
from dovetail_workers.train import workload_context
from tensile.preview import preview


def step_trace(spec: JobSpec, workdir: Path | None) -> tensile.Trace:
    """One training step of a family's job, traced. Raises UserError where it cannot be."""
    if spec.family is None or spec.train is None:
        raise UserError(f"job {spec.name}: is a script; only a family's step can be foreseen")
    threads = max(1, int(spec.resources.cpus))
    with reproducible(threads):
        build = catalog.build(spec.family, workdir=workdir)
        params = catalog.params_model(spec.family, workdir=workdir).model_validate(spec.params)
        context = workload_context(spec.train, torch.device("cpu"), params, threads)
        seed_everything(context.seed)
        workload = build(params, context)
        step = OptimizerStep(workload, context)
        try:
            return tensile.trace(
                step.take,
                {name: member.module for name, member in workload.models.items()},
                list(workload.optimizers.values()),
                step.drawn(),
            )
        except tensile.TraceError as error:
            raise UserError(f"the step of {spec.family} cannot be foreseen: {error}") from None
        finally:
            step.close()


def rehearse(request: dict[str, Any]) -> dict[str, Any]:
    """The answer to one request. Raises UserError with the sentence to refuse it with."""
    spec = JobSpec.model_validate(request["spec"])
    trace = step_trace(spec, Path(request["workdir"]) if request.get("workdir") else None)
    picture = Path(request["picture"]) if request.get("picture") else None
    try:
        return preview(trace, request.get("budget"), picture)
    except (tensile.BudgetError, tensile.PlanError) as error:
        raise UserError(f"memory.budget: {request['budget']}  {error}") from None


def main() -> int:
    out = os.dup(1)
    os.dup2(2, 1)  # what a family prints is not the answer
    try:
        answer = rehearse(json.load(sys.stdin))
    except DovetailError as error:
        answer = {"refused": str(error)}
    os.write(out, json.dumps(answer).encode())
    os._exit(0)  # threads of data loaders are not waited for


if __name__ == "__main__":
    main()
