"""Start and stop the Ray head of this home: loopback only, token-guarded, in processes that outlive
server and bridge.
"""

from __future__ import annotations

import contextlib
import json
import os
import secrets
import shutil
import socket
import sys
import tempfile
import time
from dataclasses import replace
from pathlib import Path

from dovetail.cluster import local_nodes, ray_process
from dovetail.cluster.ray_process import SESSION_VARIABLE as SESSION_VARIABLE
from dovetail.cluster.ray_process import environment as environment
from dovetail.cluster.ray_record import Head as Head
from dovetail.cluster.ray_record import LocalNode, alone, write
from dovetail.cluster.ray_record import read as read
from dovetail_jobs.errors import DovetailError, Unreachable
from dovetail_workers.shared_device import remove_dead_sockets

START_TIMEOUT_S = 60.0


class PortTaken(DovetailError):
    """One of the ports that Ray was to use was taken between our look and its start."""


def ensure_token(token_file: Path) -> None:
    """A token of 64 hex digits that only its owner may read."""
    with contextlib.suppress(FileExistsError):
        descriptor = os.open(token_file, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        with os.fdopen(descriptor, "w") as file:
            file.write(secrets.token_hex(32))
    token_file.chmod(0o600)


def ensure(
    record: Path, token_file: Path, log: Path, resources: dict[str, float], node_devices: int = 1
) -> Head:
    """The head that `record` names if it lives, else a new one with the same extra nodes, each with
    `node_devices` CPU devices. What a dead head left running is ended first.

    Raises Unreachable with Ray's own last words when it does not come up.
    """
    with alone(record):
        known = read(record)
        if known is not None and _lives(known):
            head = replace(known, nodes=local_nodes.living(known))
            write(record, head)
            return head
        wanted = known.nodes if known is not None else ()
        if known is not None:
            _clear(known)
        head = _start_trying(record, token_file, log, resources, wanted)
        nodes, failures = local_nodes.start(
            head, token_file, log, [node.name for node in wanted], node_devices
        )
        for failure in failures:
            print(f"not started again: {failure}", file=sys.stderr, flush=True)
        head = replace(head, nodes=nodes)
        write(record, head)
        return head


def discard(record: Path) -> None:
    """End every process of the recorded head but remember the extra nodes: the next `ensure` starts
    afresh.
    """
    with alone(record):
        head = read(record)
        if head is not None:
            _clear(head)


def stop(record: Path) -> int:
    """End every process of the recorded head, extra nodes and workers included, and remove its
    files; how many there were.
    """
    with alone(record):
        head = read(record)
        killed = _clear(head) if head is not None else 0
        record.unlink(missing_ok=True)
        return killed


def _lives(head: Head) -> bool:
    """Whether the head's GCS answers and its own node's raylet runs; a lost dashboard is no loss
    of the head.
    """
    return ray_process.answers(head.address, tries=3) and None in ray_process.raylets(head.session)


def _clear(head: Head) -> int:
    killed = ray_process.end_marked(SESSION_VARIABLE, head.session, Path(head.temp_dir))
    shutil.rmtree(head.temp_dir, ignore_errors=True)
    remove_dead_sockets()  # the agents of its nodes had no time for that
    return killed


def _start_trying(
    record: Path,
    token_file: Path,
    log: Path,
    resources: dict[str, float],
    wanted: tuple[LocalNode, ...],
) -> Head:
    """A new head; ports that were taken in the meantime are chosen again twice."""
    for last in (False, False, True):
        try:
            return _start(record, token_file, log, resources, wanted)
        except PortTaken:
            if last:
                raise
    raise AssertionError


def _start(
    record: Path,
    token_file: Path,
    log: Path,
    resources: dict[str, float],
    wanted: tuple[LocalNode, ...],
) -> Head:
    """`ray start` without `--block` leaves Ray's processes to themselves: with it, one that watches
    them would end them all when only the dashboard dies.
    """
    session = secrets.token_hex(8)
    temp_dir = tempfile.mkdtemp(
        prefix="dovetail-ray-", dir="/tmp"
    )  # short: sockets below it have at most 107 bytes
    port, dashboard, client, metrics, agent = ray_process.free_ports(5)
    command = [
        sys.executable, "-m", "ray.scripts.scripts", "start", "--head",
        f"--node-name={socket.gethostname()}",
        f"--port={port}", "--dashboard-host=127.0.0.1", f"--dashboard-port={dashboard}",
        f"--ray-client-server-port={client}", f"--metrics-export-port={metrics}",
        f"--dashboard-agent-listen-port={agent}", "--min-worker-port=0", "--max-worker-port=0",
        f"--temp-dir={temp_dir}", f"--num-cpus={os.cpu_count() or 1}", "--num-gpus=0",
        f"--object-store-memory={ray_process.OBJECT_STORE_BYTES}",
        f"--resources={json.dumps(resources)}", "--disable-usage-stats", "--log-color=false",
    ]  # fmt: skip
    begin = log.stat().st_size if log.exists() else 0
    pid = ray_process.spawn_detached(
        command, ray_process.process_environment(token_file, session), log
    )
    head = Head(
        session=session,
        address=f"127.0.0.1:{port}",
        dashboard_url=f"http://127.0.0.1:{dashboard}",
        temp_dir=temp_dir,
        nodes=wanted,
    )
    write(record, head)  # before it is up: whoever comes after a kill of this process finds it
    end = time.monotonic() + START_TIMEOUT_S
    while not (ray_process.answers(head.address) and ray_process.answers(f"127.0.0.1:{dashboard}")):
        if time.monotonic() < end and not ray_process.failed(pid):
            time.sleep(0.1)  # nothing of a port that begins to listen wakes us
            continue
        said = log.read_bytes()[begin:].decode(errors="replace").strip()
        _clear(head)
        if "port" in said and ("already" in said or "in use" in said):
            raise PortTaken(f"Ray could not take a port: {said[-300:]}")
        raise Unreachable(
            f"Ray did not start within {START_TIMEOUT_S:g} s; see {log}: {said[-600:]}"
        )
    return head
