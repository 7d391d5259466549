"""`logs`: what a job printed, to its last line."""

from __future__ import annotations

import sys
from typing import Annotated

import typer

from dovetail.cli.options import AsJson, JobRef, connect


def logs(
    job: JobRef,
    follow: Annotated[
        bool, typer.Option("--follow", "-f", help="Go on until the job is over.")
    ] = False,
    attempt: Annotated[
        int | None, typer.Option(min=1, help="Which attempt; the newest by default.")
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Print what a job printed.

    With --json, one object per piece, one per line.
    """
    from dovetail.cli.follow import LogReader, follow_job
    from dovetail_jobs.errors import UserError

    if follow and attempt is not None:
        raise UserError("--follow goes through the attempts by itself; leave --attempt out")
    client = connect()
    found, _ = client.job(job)
    newest = found["attempts"][-1]["number"] if found["attempts"] else 1
    write = _print_json_line if as_json else _print_text
    reader = LogReader(client, found["id"], write, attempt or newest)
    if follow:
        follow_job(client, found["id"], reader)
    elif attempt is not None or found["attempts"]:
        reader.read(attempt or newest)


def _print_text(chunk: dict[str, object]) -> None:
    sys.stdout.write(str(chunk["data"]))
    sys.stdout.flush()


def _print_json_line(chunk: dict[str, object]) -> None:
    import json

    print(json.dumps(chunk, ensure_ascii=False), flush=True)
