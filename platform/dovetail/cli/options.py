"""Options and arguments that several commands share, and the way to the server."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from dovetail.client import Client
    from dovetail_jobs.errors import Unreachable


def complete_job(incomplete: str) -> list[str]:
    """Ids and names of jobs that begin so; asks only a server that runs already."""
    from dovetail.local_server import find_server
    from dovetail.settings import Settings
    from dovetail_jobs.errors import DovetailError

    try:
        client = find_server(Settings.from_environment(), timeout_s=1.0)
        jobs = client.jobs(limit=200) if client else []
    except DovetailError:
        return []  # A completion has nowhere to say what is wrong.
    known = dict.fromkeys(word for job in jobs for word in (job["id"], job["name"]))
    return [word for word in known if word.startswith(incomplete)]


JobRef = Annotated[
    str,
    typer.Argument(
        metavar="JOB",
        help="Its id, a unique beginning of it, or a name (the newest of that name).",
        autocompletion=complete_job,
        show_default=False,
    ),
]
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON.")]


def connect() -> Client:
    """The server of this home, started if it does not run."""
    from dovetail.cli.output import say
    from dovetail.local_server import ensure_server
    from dovetail.settings import Settings

    return ensure_server(Settings.from_environment(), say)


def connect_again(lost: Unreachable) -> Client:
    """The server of this home after it stopped answering; raises `lost` where it was stopped on
    purpose.
    """
    from dovetail.cli.output import say
    from dovetail.local_server import server_again
    from dovetail.settings import Settings

    return server_again(Settings.from_environment(), lost, say)
