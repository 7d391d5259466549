"""`devices`, `top`: who holds what of each device, once, live, and drawn over the last hours."""

from __future__ import annotations

import signal
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from dovetail.cli.options import AsJson
from dovetail.cli.output import Json, print_json, print_table, say, table_lines
from dovetail_jobs.errors import NotFound, Unreachable, UserError
from dovetail_jobs.units import format_bytes

if TYPE_CHECKING:
    from dovetail.client import Client

EVERY_S = 1.0
_HEADER = (
    "NODE", "DEVICE", "MEMORY", "FREE", "JOB", "NAME", "LEASE", "RESIDENT", "CAP", "RUNG", "SPEED",
    "SWAPPED", "FENCE", "STATE",
)  # fmt: skip
_SUFFIXES = (".png", ".svg", ".pdf")


def devices(
    picture: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE", help="Draw a device's memory over the last two hours: .png, .svg, .pdf."
        ),
    ] = None,
    device: Annotated[
        str | None, typer.Option(metavar="DEVICE", help="Only this one: cpu:0, or node/cpu:0.")
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Show the devices, and what each job has of them."""
    if picture is not None and picture.suffix not in _SUFFIXES:
        raise UserError(f"--picture {picture}  must end in {', '.join(_SUFFIXES)}")
    client = _server()
    found = _wanted(client.devices(), device)
    if picture is not None:
        _draw(_wanted(client.device_histories(), device), picture)
    elif as_json:
        print_json(found)
    else:
        print_table(_HEADER, _rows(found))


def top(as_json: AsJson = False) -> None:
    """Show the devices as they change, until Ctrl-C; once where the output is no terminal."""
    client = _server()
    if as_json or not sys.stdout.isatty():
        devices(as_json=as_json)
        return
    from rich.console import Console
    from rich.live import Live
    from rich.text import Text

    def lines() -> Text:
        rows = table_lines(_HEADER, _rows(client.devices()))
        return Text("\n".join(rows), no_wrap=True, overflow="ellipsis")

    ctrl_c = {signal.SIGINT}
    # waited for, not raised: an exception may come up where nobody passes it on, as in a destructor
    signal.pthread_sigmask(signal.SIG_BLOCK, ctrl_c)
    try:
        with Live(lines(), console=Console(), auto_refresh=False) as live:
            while signal.sigtimedwait(ctrl_c, EVERY_S) is None:
                live.update(lines(), refresh=True)
    finally:
        signal.pthread_sigmask(signal.SIG_UNBLOCK, ctrl_c)


def _server() -> Client:
    from dovetail.local_server import find_server
    from dovetail.settings import Settings

    settings = Settings.from_environment()
    client = find_server(settings)
    if client is None:
        raise Unreachable(f"no server runs on {settings.home}; `dovetail up` starts one")
    return client


def _wanted(found: list[Json], device: str | None) -> list[Json]:
    """Those called so; NotFound names the others."""
    if device is None:
        return found
    matching = [each for each in found if device in (each["device"], _place(each))]
    if not matching and found:
        known = ", ".join(map(_place, found))
        raise NotFound(f"--device {device}  is not one of {known}")
    return matching


def _place(found: Json) -> str:
    return f"{found['node']}/{found['device']}"


def _draw(histories: list[Json], picture: Path) -> None:
    if not histories:
        raise NotFound(
            "no job has shared a device of late, so there is nothing to draw; jobs with "
            "`memory.policy: tensile` do"
        )
    if len(histories) > 1:
        known = ", ".join(map(_place, histories))
        raise UserError(f"--picture shows one device; add --device with one of {known}")
    from dovetail.cli.device_picture import draw

    try:
        draw(histories[0], picture)
    except OSError as error:
        raise UserError(f"--picture {picture}  {error.strerror or error}") from None
    say(f"drew {_place(histories[0])}")
    print(picture)


def _rows(found: list[Json]) -> list[tuple[str, ...]]:
    rows: list[tuple[str, ...]] = []
    for device in found:
        place = (
            device["node"],
            device["device"],
            format_bytes(device["bytes"]),
            _size(device["free_bytes"]),
        )
        rows += [(*place, *_job_cells(job)) for job in device["jobs"]]
        if not device["jobs"]:
            rows.append((*place, *[""] * (len(_HEADER) - len(place))))
    return rows


def _job_cells(job: Json) -> tuple[str, ...]:
    rung, speed = job["rung"], job["speed"]
    state = (job["state"] or "").lower()
    return (
        job["job"],
        job["name"] or "",
        _size(job["lease_bytes"]),
        _size(job["resident_bytes"]),
        _size(job["cap_bytes"]),
        f"{rung} of {job['rungs']}" if rung is not None else "",
        f"{speed:.0%}" if speed is not None else "",
        _size(job["swapped_out_bytes"]),
        job["fence"] or "",
        ": ".join(filter(None, (state, job["message"]))),
    )


def _size(size_bytes: int | None) -> str:
    return "" if size_bytes is None else format_bytes(size_bytes)
