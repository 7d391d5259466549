"""`ps`, `show`, `events`, `cancel`, `retry`: looking at jobs and steering them.

JSON passes through as the server says it.
"""

from __future__ import annotations

from typing import Annotated

import typer

from dovetail.cli.job_facts import job_facts, place, steps
from dovetail.cli.options import AsJson, JobRef, connect
from dovetail.cli.output import (
    Json,
    age,
    print_facts,
    print_json,
    print_table,
    say,
    words,
)

RECENT = 5
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
        print_facts(job_facts(found))


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


def _known_state(text: str) -> str:
    if text.upper() not in _STATES:
        raise typer.BadParameter(f"{text} is not one of {', '.join(_STATES)}", param_hint="--state")
    return text.upper()


def _row(job: Json) -> tuple[str, ...]:
    runs = job["attempts"] and job["state"] in _ON_DEVICE
    return (
        job["id"],
        job["name"],
        job["state"],
        words(job["reason"]),
        place(job["attempts"][-1]) if runs else "",
        steps(job["progress"]),
        age(job["created_at"]),
    )
