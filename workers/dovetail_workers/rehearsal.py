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
                step.draw(),
            )
        except tensile.TraceError as error:
            raise UserError(f"the step of {spec.family} cannot be foreseen: {error}") from None
        finally:
            step.close()


def rehearse(request: dict[str, Any]) -> dict[str, Any]:
    spec = JobSpec.model_validate(request["spec"])
    workdir = Path(request["workdir"]) if request.get("workdir") else None
    trace = step_trace(spec, workdir)
    forecast = tensile.forecast(trace)
    answer: dict[str, Any] = {
        "forecast": {
            "peak_bytes": forecast.peak_bytes,
            "floor_bytes": forecast.floor_bytes,
            "margin_bytes": forecast.margin_bytes,
            "by_class": {kind.value: size for kind, size in forecast.by_class.items() if size},
        },
        "operators": len(trace.operators),
        "notes": list(trace.notes),
    }
    if request.get("budget") is not None:
        budget = tensile.budget_bytes(_share(request["budget"]), forecast.peak_bytes)
        assert budget is not None
        costs = tensile.calibrate("cpu")
        try:
            plan = tensile.plan(trace, budget_bytes=budget, costs=costs)
        except tensile.PlanError as error:
            raise UserError(f"budget: {request['budget']}  {error}") from None
        swaps = [action for action in plan.actions if isinstance(action, tensile.Swap)]
        answer["plan"] = {
            "budget_bytes": plan.budget_bytes,
            "peak_bytes": plan.peak_bytes,
            "step_s": plan.step_s,
            "stall_s": plan.stall_s,
            "swaps": len(swaps),
            "recomputations": len(plan.actions) - len(swaps),
            "moved_bytes": sum(swap.bytes for swap in swaps),
        }
        if request.get("picture"):
            from tensile.picture import draw

            answer["pictures"] = draw(trace, plan, costs, forecast, Path(request["picture"]))
    return answer


def _share(budget: str | int) -> str | int | float:
    """`60%` is a share of the forecast peak."""
    if isinstance(budget, str) and budget.endswith("%"):
        return float(budget[:-1]) / 100
    return budget


def main() -> int:
    out = os.dup(1)
    os.dup2(2, 1)  # what a family prints is not the answer
    try:
        answer = rehearse(json.load(sys.stdin))
    except (DovetailError, tensile.BudgetError) as error:
        answer = {"refused": str(error)}
    os.write(out, json.dumps(answer).encode())
    os._exit(0)  # threads of data loaders are not waited for


if __name__ == "__main__":
    main()
