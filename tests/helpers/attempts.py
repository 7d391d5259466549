"""Run one attempt without Ray, as a process of its own, and read what it left in storage."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

from dovetail_jobs.spec import JobSpec
from dovetail_workers.journal import Entry, read_segments
from dovetail_workers.launch import Launch
from dovetail_workers.log import read_log
from dovetail_workers.reports import Ended, MemoryUsed
from dovetail_workers.storage.local import LocalStorage

DEADLINE_S = 60.0
STARTED: list[subprocess.Popen[bytes]] = []  # ended by the fixture of tests/workers/conftest.py


def script_launch(storage: Path, script: str, *, attempt: int = 1, **spec: Any) -> Launch:
    return Launch(
        job_id="abc123",
        job_name="scripted",
        attempt=attempt,
        spec=JobSpec(name="scripted", script=script, **spec).to_json(),
        node="n1",
        device="cpu:0",
        device_bytes=2**30,
        storage_uri=str(storage),
        resume_from=("jobs/abc123/checkpoints/",) if attempt > 1 else (),
    )


def as_family(launch: Launch, *, memory: str | int, policy: str) -> Launch:
    """The same attempt, of a family's job."""
    spec = {**launch.spec, "script": None, "family": "swin", "memory": {"policy": policy}}
    return replace(launch, spec={**spec, "resources": {**spec["resources"], "memory": memory}})


def start(launch: Launch, folder: Path, **environment: str) -> subprocess.Popen[bytes]:
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"launch-{launch.attempt}.json"
    path.write_text(json.dumps(launch.to_json()))
    process = subprocess.Popen(
        [sys.executable, "-m", "dovetail_workers", str(path)],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        env={**os.environ, **environment},
    )
    STARTED.append(process)
    return process


def run(launch: Launch, folder: Path, **environment: str) -> Ended:
    """Run the attempt to its end; how it ended, by its journal."""
    process = start(launch, folder, **environment)
    try:
        process.wait(DEADLINE_S)
    finally:
        process.kill()
        process.wait()
    return ended(launch)


def entries(launch: Launch) -> list[Entry]:
    storage = LocalStorage(Path(launch.storage_uri))
    segments = read_segments(storage, launch.job_id, launch.attempt, 1)
    return [entry for _, segment in segments for entry in segment]


def ended(launch: Launch) -> Ended:
    last = entries(launch)[-1].report
    assert isinstance(last, Ended)
    return last


def log_text(launch: Launch) -> str:
    storage = LocalStorage(Path(launch.storage_uri))
    return read_log(storage, launch.job_id, launch.attempt, 0, 1 << 30).data.decode()


def wait_for(what: str, holds: Callable[[], object], deadline_s: float = DEADLINE_S) -> Any:
    """Poll until `holds` is true and give its value; for things of other processes that send no
    event.
    """
    end = time.monotonic() + deadline_s
    while not (value := holds()):
        assert time.monotonic() < end, f"{what} did not happen within {deadline_s:g} s"
        time.sleep(0.02)
    return value


def alive(pid: int) -> bool:
    try:
        with open(f"/proc/{pid}/stat") as file:
            return file.read().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


def used(launch: Launch) -> list[MemoryUsed]:
    reports = [entry.report for entry in entries(launch)]
    return [report for report in reports if isinstance(report, MemoryUsed)]
