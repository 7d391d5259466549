"""From a valid spec to one that can run: params filled in, paths absolute, data there.

Resolving twice changes nothing, so the CLI (which knows the folder of the YAML file) and the server
(which trusts nobody) both do it.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from pathlib import Path

from pydantic import JsonValue

from dovetail_jobs import catalog
from dovetail_jobs.errors import NotFound, Problem, SpecError
from dovetail_jobs.family_params import absolute, filled
from dovetail_jobs.family_probe import probe
from dovetail_jobs.spec import JobSpec
from dovetail_jobs.units import format_bytes

_PYTHON = "choosing a Python is not yet here, jobs run with that of the workers; remove it"
_PYTHON_NAMES = ("VIRTUAL_ENV", "CONDA_PREFIX", "CONDA_DEFAULT_ENV", "PYTHONHOME")
# What the spec can say and nothing runs yet. Whoever builds it deletes its row.
NOT_YET: tuple[tuple[str, Callable[[JobSpec], bool], str], ...] = (
    ("sharding", lambda spec: spec.sharding is not None, "is not yet here; remove it"),
    ("search", lambda spec: spec.search is not None, "is not yet here; remove it"),
    (
        "resources.devices",
        lambda spec: spec.resources.devices > 1,
        "more than one device is not yet here; use 1 or remove it",
    ),
    *((f"env.{name}", lambda spec, name=name: name in spec.env, _PYTHON) for name in _PYTHON_NAMES),
)


def resolve(spec: JobSpec, *, base: Path, code: Path | None = None) -> JobSpec:
    """`spec` with params filled in and paths absolute; relative ones start at `base`.

    `code` is a copy of the workdir that is looked at in its stead. For a user's module it runs a
    child process, up to a minute. Raises SpecError with every problem, its keys dotted and without
    places.
    """
    problems = [Problem(key=key, rule=rule) for key, asks, rule in NOT_YET if asks(spec)]
    problems += _without_effect(spec)
    workdir = _workdir(spec, base)
    if workdir is not None and code is None and not os.path.isdir(workdir):
        rule = f"is no folder (looked for {workdir})"
        problems.append(Problem(key="workdir", value=spec.workdir, rule=rule))
        raise SpecError(problems)
    params = spec.params
    if spec.family is not None:
        try:
            params = fill_params(spec.family, spec.params, base=base, workdir=code or workdir)
        except SpecError as error:
            problems += error.problems
        else:
            problems += _indivisible(spec, params)
    if problems:
        raise SpecError(problems)
    located = None if workdir is None else str(workdir)
    return spec.model_copy(update={"params": params, "workdir": located})


def fill_params(
    family: str, params: Mapping[str, JsonValue], *, base: Path, workdir: Path | None
) -> dict[str, JsonValue]:
    """The family's params, checked and complete. SpecError has keys `family` or `params.…`."""
    try:
        found = catalog.find(family, workdir=workdir or base)
    except NotFound as error:
        raise SpecError([Problem(key="family", value=family, rule=error.message)]) from None
    if found.own:
        return probe(found.module, params, workdir=workdir or base, base=base)
    model = catalog.params_model(family)
    return filled(model, params, base=base, keys=catalog.known_keys(family))


def _workdir(spec: JobSpec, base: Path) -> Path | None:
    """Where the user's own code runs: as given, else `base`; None for a built-in family."""
    if spec.workdir is not None:
        return absolute(spec.workdir, base)
    own = spec.script is not None or spec.family not in catalog.FAMILIES
    return absolute("", base) if own else None


def _without_effect(spec: JobSpec) -> list[Problem]:
    """What nobody would look at, though the user asks for it."""
    policy, budget = spec.memory.policy, spec.memory.budget
    asks_for_budget = budget != "auto"
    shown = str(budget) if isinstance(budget, str) else format_bytes(budget)
    if spec.script is not None:
        rule = "belongs to a family; a script says what it takes as resources.memory, remove it"
        given = (
            ("memory.policy", policy, policy != "none"),
            ("memory.budget", shown, asks_for_budget),
        )
        return [
            Problem(key=key, value=value, rule=rule) for key, value, is_given in given if is_given
        ]
    if policy == "none" and asks_for_budget:
        rule = "needs memory.policy: tensile, which keeps a job to it; add that or remove it"
        return [Problem(key="memory.budget", value=shown, rule=rule)]
    return []


def _indivisible(spec: JobSpec, params: Mapping[str, JsonValue]) -> list[Problem]:
    batch_size, train = params.get("batch_size"), spec.train
    if not isinstance(batch_size, int) or train is None:
        return []
    parts = train.accumulate * spec.resources.devices
    if batch_size % parts == 0:
        return []
    lower, upper = batch_size // parts * parts, -(-batch_size // parts) * parts
    rule = (
        f"must be divisible by {parts} (train.accumulate {train.accumulate} x resources.devices "
        f"{spec.resources.devices}); use {f'{lower} or ' if lower else ''}{upper}"
    )
    return [Problem(key="params.batch_size", value=str(batch_size), rule=rule)]
