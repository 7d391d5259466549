"""`ps`, `show`, `events`, `cancel`, `retry`: looking at jobs and steering them.

JSON passes through as the server says it.
"""

from __future__ import annotations

from typing import Annotated

import typer

from dovetail.cli.options import AsJson, JobRef, connect
from dovetail.cli.output import (
    Json,
    age,
    number,
    print_facts,
    print_json,
    print_table,
    say,
    words,
)
from dovetail_jobs.units import format_bytes, format_seconds

RECENT = 5
CODE_DIGITS = 12  # of a hash: enough to tell snapshots apart
_OVER = ("SUCCEEDED", "FAILED", "CANCELLED")
_ON_DEVICE = ("STARTING", "RUNNING", "STOPPING")
_STATES = ("QUEUED", *_ON_DEVICE, "PAUSED", *_OVER)
_UNFINISHED = tuple(state for state in _STATES if state not in _OVER)


def ps(
    everything: Annotated[
        bool, typer.Option("--all", help="Finished jobs too, all of them.")
    ] = False,
    state: Annotated[
        list[str] | None,
        typer.Option(help="Only jobs in this state; may be repeated.", metavar="STATE"),
    ] = None,
    project: Annotated[str | None, typer.Option(help="Only jobs of this project.")] = None,
    as_json: AsJson = False,
) -> None:
    """List jobs, newest first.

    Without options: those that are not over, and the last few that are.
    """
    states = [_known_state(one) for one in state or ()]
    client = connect()
    if everything or states:
        found = client.jobs(states, project)
    else:
        found = client.jobs(_UNFINISHED, project) + client.jobs(_OVER, project, RECENT)
        found.sort(key=lambda job: str(job["created_at"]), reverse=True)
    if as_json:
        print_json(found)
    else:
        print_table(
            ("ID", "NAME", "STATE", "REASON", "DEVICE", "PROGRESS", "AGE"),
            (_row(job) for job in found),
        )


def show(job: JobRef, as_json: AsJson = False) -> None:
    """Show everything about a job."""
    found, _ = connect().job(job)
    if as_json:
        print_json(found)
    else:
        print_facts(_facts(found))


def events(job: JobRef, as_json: AsJson = False) -> None:
    """Show a job's story."""
    found = connect().events(job)
    if as_json:
        print_json(found)
    else:
        print_table(
            ("TIME", "STATE", "REASON", "ATTEMPT", "MESSAGE"),
            (
                (
                    event["at"],
                    event["state"],
                    words(event["reason"]),
                    str(event["attempt"] or ""),
                    event["message"],
                )
                for event in found
            ),
        )


def cancel(
    job: JobRef,
    wait: Annotated[bool, typer.Option("--wait", help="Return when the job is over.")] = False,
    as_json: AsJson = False,
) -> None:
    """Stop a job, without a checkpoint.

    A job that is over stays as it is.
    """
    from dovetail.cli.follow import wait_until_over

    client = connect()
    found = client.cancel(job)
    if wait:
        found = wait_until_over(client, found["id"])
    if as_json:
        print_json(found)
    else:
        print(f"{found['id']}  {found['state']}  {found['message']}")


def retry(
    job: JobRef,
    from_scratch: Annotated[
        bool, typer.Option("--from-scratch", help="Do not begin at the newest checkpoint.")
    ] = False,
    as_json: AsJson = False,
) -> None:
    """Run a failed or cancelled job again.

    As a new job, which goes on at the newest checkpoint of the old one.
    """
    new = connect().retry(job, from_scratch=from_scratch)
    if as_json:
        print_json(new)
    else:
        say(f"{new['name']} runs again as {new['id']}")
        print(new["id"])


def place(job: Json) -> str:
    """`node/device` of the newest attempt, if it has one."""
    attempt = job["attempts"][-1] if job["attempts"] else {}
    device, node = attempt.get("device"), attempt.get("node")
    return f"{node}/{device}" if node and device else device or ""


def _known_state(text: str) -> str:
    if text.upper() not in _STATES:
        raise typer.BadParameter(f"{text} is not one of {', '.join(_STATES)}", param_hint="--state")
    return text.upper()


def _row(job: Json) -> tuple[str, ...]:
    device = place(job) if job["state"] in _ON_DEVICE else ""
    return (
        job["id"],
        job["name"],
        job["state"],
        words(job["reason"]),
        device,
        _steps(job["progress"]),
        age(job["created_at"]),
    )


def _steps(progress: Json) -> str:
    step, steps = progress["step"], progress["steps"]
    if step is None:
        return ""
    return f"{step}/{steps} ({100 * step // steps}%)" if steps else str(step)


def _facts(job: Json) -> list[tuple[str, str]]:
    progress, memory, files = job["progress"], job["memory"], job.get("files") or {}
    speed = [
        f"{number(progress['steps_per_s'])} steps/s" if progress["steps_per_s"] else "",
        f"{number(progress['samples_per_s'])} samples/s" if progress["samples_per_s"] else "",
        f"{format_seconds(progress['eta_s'])} left" if progress["eta_s"] else "",
    ]
    return [
        ("id", job["id"]),
        ("name", job["name"]),
        ("project", job["project"]),
        ("user", job["user"]),
        ("labels", _pairs(job["labels"], "=")),
        ("parent", job["parent"] or ""),
        ("retry of", job.get("origin") or ""),
        ("code", (job.get("code") or "")[:CODE_DIGITS]),
        ("state", f"{job['state']} ({words(job['reason'])})" if job["reason"] else job["state"]),
        ("message", job["message"]),
        ("priority", str(job["priority"])),
        ("created", job["created_at"]),
        ("started", job["started_at"] or ""),
        ("ended", job["ended_at"] or ""),
        ("progress", ", ".join(filter(None, (_steps(progress), *speed)))),
        ("metrics", _pairs({name: number(value) for name, value in job["metrics"].items()}, " ")),
        *((f"attempt {attempt['number']}", _attempt(attempt)) for attempt in job["attempts"]),
        *(
            ("checkpoint", f"step {item['step']}, {format_bytes(item['bytes'])}, {item['uri']}")
            for item in job["checkpoints"]
        ),
        (
            "memory",
            ", ".join(
                f"{name.removesuffix('_bytes')} {format_bytes(size)}"
                for name, size in memory.items()
                if size is not None
            ),
        ),
        ("log", files.get("log") or ""),
        ("curves", files.get("curves") or ""),
    ]


def _attempt(attempt: Json) -> str:
    step, code = attempt["resumed_from_step"], attempt["exit_code"]
    parts = [
        f"{attempt['state']} on {attempt['node']}/{attempt['device']}",
        f"pid {attempt['pid']}" if attempt["pid"] else "",
        f"from step {step}" if step is not None else "",
        f"exit code {code}" if code is not None else "",
    ]
    return ", ".join(filter(None, parts))


def _pairs(values: dict[str, str], between: str) -> str:
    return ", ".join(f"{key}{between}{value}" for key, value in values.items())
