"""What a job's training step does to memory, found without training (but for `steps`): `python -m
dovetail_workers.rehearsal < REQUEST`.

The request is one JSON object, `{"spec": …, "workdir": …, "budget": …, "picture": …, "steps": …,
"profile": …, "parent": …}`; the answer is one too, `{"forecast": …, "profile": …, "plan": …,
"notes": […]}` or `{"refused": "a sentence"}`. It is a process of its own, so that neither the
command line nor the server imports torch, and ends with its parent, a process id.
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import torch

import tensile
from dovetail_jobs import catalog
from dovetail_jobs.errors import DovetailError, UserError
from dovetail_jobs.spec import JobSpec
from dovetail_workers.numerics import reproducible
from dovetail_workers.optimizer_step import OptimizerStep
from dovetail_workers.process_tree import die_with_parent
from dovetail_workers.random_state import seed_everything
from dovetail_workers.train import workload_context
from tensile.picture_files import PictureError
from tensile.preview import preview
from tensile.trial import trial


@contextmanager
def step_of(spec: JobSpec, workdir: Path | None) -> Iterator[tuple[tuple[Any, ...], int]]:
    """One training step of a family's job, as `tensile.trace` takes it, and the bytes that its loop
    holds beside it. Raises UserError where there is none.
    """
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
            parts = (
                step.take,
                {name: member.module for name, member in workload.models.items()},
                list(workload.optimizers.values()),
                step.drawn(),
            )
            yield parts, step.ahead_bytes()
        finally:
            step.close()


def rehearse(request: dict[str, Any]) -> dict[str, Any]:
    """The answer to one request. Raises UserError with the sentence to refuse it with."""
    spec = JobSpec.model_validate(request["spec"])
    picture = Path(request["picture"]) if request.get("picture") else None
    steps = request.get("steps") or 0
    workdir = Path(request["workdir"]) if request.get("workdir") else None
    with step_of(spec, workdir) as (parts, beside_bytes):
        try:
            trace = tensile.trace(*parts, beside_bytes=beside_bytes)
            measure = partial(trial, *parts, steps=steps, beside_bytes=beside_bytes)
            return preview(
                trace,
                request.get("budget"),
                picture,
                trial=(lambda limit: measure(budget_bytes=limit)) if steps else None,
                profile=bool(request.get("profile")),
            )
        except tensile.TraceError as error:
            raise UserError(f"the step of {spec.family} cannot be foreseen: {error}") from None
        except (tensile.BudgetError, tensile.PlanError) as error:
            raise UserError(f"memory.budget: {request['budget']}  {error}") from None
        except tensile.TierError as error:
            raise UserError(str(error)) from None
        except PictureError as error:
            raise UserError(f"--picture {error}") from None


def main() -> int:
    out = os.dup(1)
    os.dup2(2, 1)  # what a family prints is not the answer
    request = json.load(sys.stdin)
    die_with_parent(request["parent"])
    try:
        answer = rehearse(request)
    except DovetailError as error:
        answer = {"refused": str(error)}
    os.write(out, json.dumps(answer).encode())
    os._exit(0)  # threads of data loaders are not waited for


if __name__ == "__main__":
    main()
