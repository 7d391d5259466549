"""`submit`: YAML files to acknowledged jobs; it may follow them, wait, or only plan."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from dovetail.cli.code import PackedCode, packed_code
from dovetail.cli.job_facts import CODE_DIGITS
from dovetail.cli.job_files import job_files
from dovetail.cli.memory import forecast_facts
from dovetail.cli.options import AsJson, connect, connect_again
from dovetail.cli.output import Json, number, print_facts, print_json, say
from dovetail_jobs.errors import SpecError, Unreachable, UserError
from dovetail_jobs.memory_terms import above_reserved
from dovetail_jobs.units import format_bytes

if TYPE_CHECKING:
    from dovetail.client import Client

CLUSTER_S = 60.0
SILENCE_S = 2.0
DETACHED = 130


def submit(
    files: Annotated[
        list[Path],
        typer.Argument(metavar="FILE...", help="YAML files, one job each, or folders of them."),
    ],
    follow: Annotated[
        bool, typer.Option("--follow", "-f", help="Show log and progress until the job is over.")
    ] = False,
    wait: Annotated[bool, typer.Option("--wait", help="Return when the jobs are over.")] = False,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Say what would run and where; submit nothing.")
    ] = False,
    changes: Annotated[
        list[str] | None,
        typer.Option("--set", metavar="KEY=VALUE", help="Override a key: train.steps=10."),
    ] = None,
    key: Annotated[
        str | None,
        typer.Option(help="Submitting twice under one key makes one job."),
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Submit jobs and print their ids.

    A local server and Ray are started if none runs.
    """
    if sum((follow, wait, dry_run)) > 1:
        raise UserError("--follow, --wait and --dry-run exclude each other")
    files = job_files(files)
    if len(files) > 1 and (follow or key):
        raise UserError(f"{'--follow' if follow else '--key'} takes one file, not {len(files)}")
    specs = _load(files, changes or [])
    with packed_code(files, specs) as codes:
        client = connect()
        if dry_run:
            _plan(client, specs, codes, as_json)
            return
        for spec in specs:
            _warn(spec)
        jobs = [_submit(client, spec, code, key) for spec, code in zip(specs, codes, strict=True)]
    if not (follow or wait):
        _acknowledge(jobs, as_json)
        return
    try:
        ended = [_stay(client, job["id"], follow, as_json) for job in jobs]
    except KeyboardInterrupt:
        names = " ".join(job["id"] for job in jobs)
        say(
            f"detached; {names} goes on (`dovetail logs -f` follows it, `dovetail cancel` stops it)"
        )
        raise typer.Exit(DETACHED) from None
    if as_json:
        print_json(ended if len(ended) > 1 else ended[0])
    else:
        for job in ended:
            print_facts(_ending(job))
    if any(job["state"] != "SUCCEEDED" for job in ended):
        raise typer.Exit(1)


def _load(files: list[Path], changes: list[str]) -> list[Json]:
    """All specs, resolved; raises SpecError with the problems of all files."""
    from dovetail_jobs.load import load_file

    specs, problems = [], []
    for file in files:
        try:
            specs.append(load_file(file, changes).to_json())
        except SpecError as error:
            problems += error.problems
    if problems:
        raise SpecError(problems)
    return specs


def _plan(client: Client, specs: list[Json], codes: list[PackedCode | None], as_json: bool) -> None:
    try:
        client.wait_for_cluster(CLUSTER_S)
    except Unreachable as error:
        say(f"{error.message}; planning without it")
    plans = []
    for spec, code in zip(specs, codes, strict=True):
        if code is not None:
            code.send(client)
        plans.append(client.plan(spec, None if code is None else code.sha256))
    if as_json:
        print_json(plans if len(plans) > 1 else plans[0])
        return
    import yaml

    for plan in plans:
        place = plan["placement"]
        otherwise = "would be refused" if plan["reason"] == "REFUSED" else "would wait"
        where = f"would run on {place['node']}/{place['device']}" if place else otherwise
        print(f"# {where}: {plan['message']}")
        for warning in plan.get("warnings", ()):
            print(f"# warning: {warning}")
        if code := plan.get("code"):
            files = f"{code['files']} file{'' if code['files'] == 1 else 's'}"
            size, name = format_bytes(code["bytes"]), code["sha256"][:CODE_DIGITS]
            print(f"# code: {files}, {size}, sha256 {name}")
        if forecast := plan.get("forecast"):
            for name, text in forecast_facts(forecast):
                print(f"# {name}: {text}")
        print(yaml.safe_dump(plan["spec"], sort_keys=False, allow_unicode=True), end="")


def _warn(spec: Json) -> None:
    """Of what is known without a forecast; `--dry-run` and the story say the rest."""
    above = above_reserved(spec["memory"]["budget"], spec["resources"]["memory"])
    if above is not None:
        say(f"warning: {spec['name']}: {above}")


def _submit(client: Client, spec: Json, code: PackedCode | None, key: str | None) -> Json:
    import uuid

    under = key or uuid.uuid4().hex
    with _patience(f"foreseeing the memory of {spec['name']}"):
        try:
            job, created = _send(client, spec, code, under)
        except Unreachable as lost:
            job, created = _send(connect_again(lost), spec, code, under)
    if created or key is None:
        say(f"submitted {job['name']} as {job['id']}")
    else:
        say(f"{job['name']} was submitted under this key before, as {job['id']}")
    for warning in job.get("warnings", ()):
        say(f"warning: {job['name']}: {warning}")
    return job


@contextmanager
def _patience(what: str) -> Iterator[None]:
    """Says what takes so long, if it does."""
    import threading

    timer = threading.Timer(SILENCE_S, say, [what])
    timer.daemon = True
    timer.start()
    try:
        yield
    finally:
        timer.cancel()


def _send(client: Client, spec: Json, code: PackedCode | None, key: str) -> tuple[Json, bool]:
    if code is None:
        return client.submit(spec, key)
    code.send(client)
    return client.submit(spec, key, code.sha256)


def _acknowledge(jobs: list[Json], as_json: bool) -> None:
    if as_json:
        print_json(jobs if len(jobs) > 1 else jobs[0])
    else:
        for job in jobs:
            print(job["id"])


def _stay(client: Client, job_id: str, follow: bool, as_json: bool) -> Json:
    from dovetail.cli.follow import LogReader, follow_job, wait_until_over
    from dovetail.cli.progress import progress_view

    try:
        if not follow:
            return wait_until_over(client, job_id)
        with progress_view() as view:
            # With --json, stdout is for one object only.
            stream = sys.stderr if as_json else None
            reader = LogReader(
                client, job_id, lambda chunk: print(chunk["data"], end="", file=stream, flush=True)
            )
            job = follow_job(client, job_id, reader, view.show)
        if reader.within_line:
            print(file=stream)
        return job
    except Unreachable as error:
        raise Unreachable(
            f"{error.message}; job {job_id} is kept, and `dovetail show {job_id}` finds it again"
        ) from None


def _ending(job: Json) -> list[tuple[str, str]]:
    """What came out of it, and where its things are."""
    newest = job["checkpoints"][-1] if job["checkpoints"] else None
    files = job.get("files") or {}
    return [
        ("job", f"{job['id']} {job['name']} {job['state']}: {job['message']}"),
        *((name, number(value)) for name, value in sorted(job["metrics"].items())),
        (
            "checkpoint",
            f"{newest['uri']} (step {newest['step']}, {format_bytes(newest['bytes'])})"
            if newest
            else "",
        ),
        ("log", files.get("log") or ""),
        ("curves", files.get("curves") or ""),
    ]
