"""`up`, `down`, `status`: the server of this machine and the Ray that it started."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Annotated
from urllib.parse import urlsplit

import typer

from dovetail.cli.node import holders
from dovetail.cli.options import AsJson
from dovetail.cli.output import Json, print_facts, print_json, say
from dovetail_jobs.errors import Conflict, Unreachable, UserError
from dovetail_jobs.units import format_bytes, format_seconds, parse_bytes

if TYPE_CHECKING:
    from dovetail.client import Client
    from dovetail.settings import Settings

_FLAGS = {
    "cpu_devices": "--cpu-devices",
    "device_memory_bytes": "--device-memory",
    "port": "--port",
    "ray_address": "--address",
}


def up(
    cpu_devices: Annotated[
        int | None,
        typer.Option(min=1, help="CPU devices that a machine without a GPU offers."),
    ] = None,
    device_memory: Annotated[
        str | None,
        typer.Option(metavar="SIZE", help="Bytes of one CPU device: 4GiB, 500MB or plain bytes."),
    ] = None,
    port: Annotated[
        int | None, typer.Option(min=1, max=65535, help="The server's port, else a free one.")
    ] = None,
    address: Annotated[
        str | None, typer.Option(help="A Ray to join instead of starting one: HOST:PORT.")
    ] = None,
    nodes: Annotated[
        int | None,
        typer.Option(
            min=1,
            max=16,
            help="Ray nodes on this machine, for trying several out; all but the first offer CPU "
            "devices only.",
        ),
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Start the server and Ray; returns when ready."""
    from dovetail.local_server import ensure_server, find_server
    from dovetail.settings import Settings

    if nodes is not None and address is not None:
        raise UserError("--nodes and --address do not go together: a joined Ray has its own nodes")
    settings = _with_options(Settings.from_environment(), cpu_devices, device_memory, port, address)
    client = find_server(settings)
    if client is None:
        client = ensure_server(settings, say)
    else:
        _check_same(settings, client.status()[0]["server"])
    status = client.wait_for_cluster()
    if nodes is not None:
        status = _with_nodes(client, status, nodes)
    if as_json:
        print_json(status)
    else:
        print_facts(_facts(status))


def down(
    keep_ray: Annotated[
        bool, typer.Option("--keep-ray", help="End only the server; jobs in Ray go on.")
    ] = False,
    as_json: AsJson = False,
) -> None:
    """Stop the server and the Ray that it started."""
    from dovetail.local_server import ensure_server, find_server, wait_until_gone
    from dovetail.settings import Settings

    settings = Settings.from_environment()
    if settings.server_url:
        raise UserError(
            f"DOVETAIL_URL={settings.server_url}  is not ours to stop; unset it to stop a local one"
        )
    client = find_server(settings)
    if client is None and settings.ray_file.exists() and not keep_ray:
        # A server that was killed left its Ray: the next one adopts it, and then stops it.
        client = ensure_server(settings, say)
    if client is None:
        say(f"no server runs on {settings.home}")
        _report(None, as_json)
        return
    status = client.status()[0]
    pid = status["server"]["pid"]
    client.shutdown(stop_ray=not keep_ray)
    if not wait_until_gone(pid):
        raise Unreachable(
            f"the server (pid {pid}) has not ended yet; see {settings.server_log}, or `kill {pid}`"
        )
    joined = status["server"]["options"].get("ray_address")
    if joined or keep_ray:
        say(f"stopped the server; the Ray at {joined or status['ray']['address']} goes on")
    else:
        say("stopped the server and its Ray")
    _report(pid, as_json)


def status(as_json: AsJson = False) -> None:
    """Show the server, Ray, devices and jobs."""
    from dovetail.local_server import find_server
    from dovetail.settings import Settings

    settings = Settings.from_environment()
    client = find_server(settings)
    if client is None:
        raise Unreachable(f"no server runs on {settings.home}; `dovetail up` starts one")
    found = client.status()[0]
    if as_json:
        print_json(found)
    else:
        print_facts(_facts(found))


def _with_nodes(client: Client, status: Json, wanted: int) -> Json:
    """The status once the machine has that many nodes. Raises Conflict if it has more."""
    have = len(status["nodes"])
    if have > wanted:
        raise Conflict(
            f"Ray has {have} nodes here, not {wanted}; `dovetail node rm` takes one away"
        )
    if have < wanted:
        status = client.wait_for_nodes(here=client.add_nodes(wanted - have))
    return status


def _report(pid: int | None, as_json: bool) -> None:
    if as_json:
        print_json({"stopped": pid is not None, "pid": pid})


def _with_options(
    settings: Settings,
    cpu_devices: int | None,
    device_memory: str | None,
    port: int | None,
    address: str | None,
) -> Settings:
    """The settings with what the command line says instead of the environment."""
    try:
        memory_bytes = parse_bytes(device_memory) if device_memory else None
    except ValueError as error:
        raise UserError(f"--device-memory {device_memory}  {error}") from None
    return replace(
        settings,
        cpu_devices=cpu_devices or settings.cpu_devices,
        device_memory_bytes=memory_bytes or settings.device_memory_bytes,
        port=port or settings.port,
        ray_address=address or settings.ray_address,
    )


def _check_same(settings: Settings, server: Json) -> None:
    """Raise Conflict if the running server was told something else than is wanted now."""
    told = {**server["options"], "port": urlsplit(server["url"]).port}
    other = [
        f"{_FLAGS[name]} {_shown(name, told.get(name))}, not {_shown(name, wanted)}"
        for name, wanted in settings.server_options().items()
        if wanted is not None and told.get(name) != wanted
    ]
    if other:
        raise Conflict(
            f"a server already runs at {server['url']} with {'; '.join(other)}; "
            "use it as it is, or `dovetail down` and start it anew"
        )


def _shown(name: str, value: int | str | None) -> str:
    if value is None:
        return "left to itself"
    return format_bytes(int(value)) if name == "device_memory_bytes" else str(value)


def _facts(status: Json) -> list[tuple[str, str]]:
    server, ray = status["server"], status["ray"]
    uptime = format_seconds(server["uptime_s"])
    database = status["database"]
    known = f"{server['url']} (pid {server['pid']}, {server['version']}, up {uptime})"
    facts = [
        ("server", "; ".join(filter(None, (known, server["message"])))),
        ("database", database["message"] or f"{database['state']} {database['place'] or ''}"),
        ("ray", " ".join(filter(None, (ray["state"], ray["address"], ray["message"])))),
        ("dashboard", ray["dashboard_url"] or ""),
    ]
    for node in status["nodes"]:
        for device in node["devices"]:
            jobs = holders(device)
            holder = f"held by {jobs}" if jobs else "free"
            size = format_bytes(device["bytes"])
            facts.append(("device", f"{node['name']}/{device['name']} {size} {holder}"))
    facts.append(
        ("jobs", ", ".join(f"{count} {state}" for state, count in status["counts"].items()))
    )
    return facts
