"""`ray.json`: what is known of the Ray that we started on this machine, and the lock of whoever
changes it.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any


@dataclass(frozen=True, slots=True, kw_only=True)
class LocalNode:
    """An extra Ray node of this machine; `mark` is in the environment of all its processes."""

    name: str
    mark: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Head:
    """A Ray head of ours, and the extra nodes that are wanted beside it."""

    session: str
    address: str
    dashboard_url: str
    temp_dir: str
    nodes: tuple[LocalNode, ...] = ()


def read(record: Path) -> Head | None:
    """The recorded head; None for no record, or for one that is not whole."""
    try:
        value: dict[str, Any] = json.loads(record.read_text())
        value.pop("pid", None)  # of records before there were several nodes
        nodes = tuple(LocalNode(**node) for node in value.pop("nodes", ()))
        return Head(**value, nodes=nodes)
    except (OSError, ValueError, TypeError, AttributeError):
        return None


def write(record: Path, head: Head) -> None:
    temporary = record.with_suffix(".tmp")
    temporary.write_text(json.dumps(asdict(head)))
    temporary.chmod(0o600)
    temporary.replace(record)


@contextlib.contextmanager
def alone(record: Path) -> Iterator[None]:
    """Hold the record's lock: server and bridge both change it."""
    with record.with_suffix(".lock").open("a") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield
