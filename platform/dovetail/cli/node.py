"""`node list`, `node add`, `node rm`: the nodes of the cluster, and extra ones on this machine."""

from __future__ import annotations

from typing import Annotated

import typer

from dovetail.cli.options import AsJson
from dovetail.cli.output import Json, print_json, print_table, say
from dovetail_jobs.errors import Unreachable
from dovetail_jobs.units import format_bytes

ABOUT = "List the nodes, and start or stop extra ones on this machine."

app = typer.Typer(help=ABOUT, no_args_is_help=True)


@app.command("list")
def list_nodes(as_json: AsJson = False) -> None:
    """List the nodes with their devices and who holds them."""
    from dovetail.local_server import find_server
    from dovetail.settings import Settings

    settings = Settings.from_environment()
    client = find_server(settings)
    if client is None:
        raise Unreachable(f"no server runs on {settings.home}; `dovetail up` starts one")
    _show(client.status()[0]["nodes"], as_json)


@app.command("add")
def add(
    count: Annotated[
        int, typer.Option("--count", min=1, max=16, help="How many nodes to start.")
    ] = 1,
    as_json: AsJson = False,
) -> None:
    """Start extra Ray nodes on this machine, with CPU devices only; returns when they are there."""
    from dovetail.cli.options import connect

    client = connect()
    client.wait_for_cluster()
    names = client.add_nodes(count)
    status = client.wait_for_nodes(here=names)
    say(f"added {', '.join(names)}")
    _show([node for node in status["nodes"] if node["name"] in names], as_json)


@app.command("rm")
def remove(
    name: Annotated[str, typer.Argument(metavar="NAME", help="As `dovetail node list` shows it.")],
    force: Annotated[
        bool, typer.Option("--force", help="Even if jobs run there; they move and resume.")
    ] = False,
    as_json: AsJson = False,
) -> None:
    """Stop an extra node of this machine; returns when it is gone."""
    from dovetail.cli.options import connect

    client = connect()
    names = client.remove_node(name, force=force)
    status = client.wait_for_nodes(gone=names)
    say(f"removed {', '.join(names)}")
    if as_json:
        print_json(status["nodes"])


def _show(nodes: list[Json], as_json: bool) -> None:
    if as_json:
        print_json(nodes)
        return
    rows = [
        (
            node["name"],
            f"{node['cpus']:g}",
            device["name"],
            format_bytes(device["bytes"]),
            holders(device),
        )
        for node in nodes
        for device in node["devices"]
    ]
    print_table(("NODE", "CPUS", "DEVICE", "MEMORY", "JOB"), rows)


def holders(device: Json) -> str:
    """The ids of all jobs on a device of the status; empty where it is free."""
    return ", ".join(device.get("jobs") or filter(None, [device["job"]]))
