"""Extra Ray nodes on this machine, beside the head's own: for trying several nodes out, and for
tests of what happens when one is lost.

They offer CPU devices only: the GPUs of the machine belong to the head's node. Each is a process
tree with a mark of its own (`node_process.py`), so that one of them can be ended whole.
"""

from __future__ import annotations

import json
import os
import secrets
import select
import socket
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from dovetail.cluster import ray_process
from dovetail.cluster.ray_record import Head, LocalNode, alone, read, write
from dovetail_jobs.errors import Conflict, NotFound, Unreachable

START_TIMEOUT_S = 60.0
LABEL = "dovetail-node"  # a Ray label with the node's mark


@dataclass(frozen=True, slots=True, kw_only=True)
class LocalNodes:
    """The extra nodes of the Ray that `record` names; each gets `devices` CPU devices."""

    record: Path
    token_file: Path
    log: Path
    devices: int = 1

    def add(self, count: int) -> tuple[str, ...]:
        """Start `count` nodes; their names. Raises Unreachable with the words of one that did not
        start, when those that did are kept.
        """
        with alone(self.record):
            head = read(self.record)
            if head is None or not ray_process.answers(head.address):
                raise Conflict("no Ray of ours runs now; `dovetail status` says why")
            kept = living(head)
            names = _free_names(count, {node.name for node in kept})
            started, failures = start(head, self.token_file, self.log, names, self.devices)
            write(self.record, replace(head, nodes=(*kept, *started)))
        if failures:
            raise Unreachable("\n".join(failures))
        return tuple(node.name for node in started)

    def remove(self, name: str) -> None:
        """End a node with everything that runs on it."""
        if name == socket.gethostname():
            raise Conflict(
                f"{name} is the head's own node; `dovetail down` stops it with all the others"
            )
        with alone(self.record):
            head = read(self.record)
            nodes = head.nodes if head is not None else ()
            found = next((node for node in nodes if node.name == name), None)
            if head is None or found is None:
                known = ", ".join(node.name for node in nodes) or "none"
                raise NotFound(
                    f"no local node {name}; those that can be removed: {known} (dovetail node list)"
                )
            write(self.record, _without(head, found.mark))
            ray_process.end_marked(ray_process.NODE_VARIABLE, found.mark)


def start(
    head: Head, token_file: Path, log: Path, names: Sequence[str], devices: int
) -> tuple[tuple[LocalNode, ...], list[str]]:
    """Start nodes side by side and wait until they are up: those that are, and a sentence for each
    that is not.
    """
    begun = [_spawn(head, token_file, log, name, devices) for name in names]
    end = time.monotonic() + START_TIMEOUT_S
    up, failures = [], []
    for node, reader in begun:
        with os.fdopen(reader) as ready:
            in_time = select.select([ready], [], [], max(0.0, end - time.monotonic()))[0]
            if in_time and ready.read():
                up.append(node)
                continue
        ray_process.end_marked(ray_process.NODE_VARIABLE, node.mark)
        failures.append(
            f"node {node.name} "
            + ("ended while it started" if in_time else f"was not up after {START_TIMEOUT_S:g} s")
            + f"; see {log}"
        )
    return tuple(up), failures


def living(head: Head) -> tuple[LocalNode, ...]:
    """The recorded nodes whose raylet runs. What others left behind is ended."""
    running = ray_process.raylets(head.session)
    for node in head.nodes:
        if node.mark not in running:
            ray_process.end_marked(ray_process.NODE_VARIABLE, node.mark)
    return tuple(node for node in head.nodes if node.mark in running)


def forget(record: Path, mark: str) -> None:
    """Ray has lost this node: end what is left of it. It stays away until somebody adds it."""
    with alone(record):
        head = read(record)
        if head is not None and any(node.mark == mark for node in head.nodes):
            write(record, _without(head, mark))
        ray_process.end_marked(ray_process.NODE_VARIABLE, mark)


def _without(head: Head, mark: str) -> Head:
    return replace(head, nodes=tuple(node for node in head.nodes if node.mark != mark))


def _free_names(count: int, taken: set[str]) -> list[str]:
    """`<host>-2`, `<host>-3`, …: the first that nobody bears."""
    host = socket.gethostname()
    numbered = (f"{host}-{number}" for number in range(2, 2 + count + len(taken)))
    return [name for name in numbered if name not in taken][:count]


def _spawn(
    head: Head, token_file: Path, log: Path, name: str, devices: int
) -> tuple[LocalNode, int]:
    """Begin a node; with the descriptor that will hold a word once it is up, or end without."""
    node = LocalNode(name=name, mark=secrets.token_hex(8))
    metrics, agent = ray_process.free_ports(2)
    asked = {
        "address": head.address,
        "name": name,
        "labels": {LABEL: node.mark},
        "resources": {f"device:cpu:{index}": 1.0 for index in range(devices)},
        "metrics_port": metrics,
        "agent_port": agent,
    }
    values = ray_process.process_environment(token_file, head.session)
    reader, writer = os.pipe()
    try:
        ray_process.spawn_detached(
            [sys.executable, "-m", "dovetail.cluster.node_process", json.dumps(asked)],
            {**values, ray_process.NODE_VARIABLE: node.mark},
            log,
            ready_fd=writer,
        )
    finally:
        os.close(writer)
    return node, reader
