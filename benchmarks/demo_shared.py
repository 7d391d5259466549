"""Three jobs share one device that has half the memory they would take: `make demo-shared`.

1. Together on one CPU device of DEVICE_BYTES, each under tensile, their leases from one broker.
2. Together without the manager, each on a device of its own, until each has had its peak.
3. Each alone without the manager: what its metrics must be, and how long one after the other takes.

Bytes are sampled from outside: what each worker holds over the `base_bytes` that it recorded. Exit
code 0 if all that is promised holds: see `verdicts`.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

from summed_bytes import SummedBytes

from dovetail.client import Client
from dovetail.local_server import find_server
from dovetail.settings import Settings
from dovetail_jobs.units import format_bytes

REPOSITORY = Path(__file__).parents[1]
JOBS = REPOSITORY / "jobs" / "examples" / "shared"
HOME = REPOSITORY / ".demo-shared"
DOVETAIL = str(Path(sys.executable).parent / "dovetail")
DEVICE_BYTES = 480 * 2**20
TOLERANCE = 1.05
FREE = ("resources.share=false", "resources.memory=auto", "memory.policy=none")
PEAK_STEPS = 5
OVER = ("SUCCEEDED", "FAILED", "CANCELLED")

Json = dict[str, Any]


@dataclass(frozen=True, slots=True, kw_only=True)
class Run:
    """Jobs by name, as they ended; the highest sum of their bytes; the speeds that their broker
    predicted, one for each look; and the last word on why each waited, if it did.
    """

    jobs: dict[str, Json]
    peak_bytes: int
    speeds: dict[str, list[float]]
    waits: dict[str, str]
    curves: dict[str, list[Json]]

    @property
    def makespan_s(self) -> float:
        """From the first submit to the last end."""
        jobs = self.jobs.values()
        return max(_time_s(job, "ended_at") for job in jobs) - min(
            _time_s(job, "created_at") for job in jobs
        )

    @property
    def all_running_s(self) -> float:
        """How long all of them were RUNNING at once."""
        jobs = self.jobs.values()
        if any(job["started_at"] is None for job in jobs):
            return 0.0
        last_start_s = max(_time_s(job, "started_at") for job in jobs)
        return max(0.0, min(_time_s(job, "ended_at") for job in jobs) - last_start_s)


def main() -> int:
    os.environ["DOVETAIL_HOME"] = str(HOME)
    files = sorted(JOBS.glob("*.yaml"))
    names = [file.stem for file in files]
    picture = HOME / "memory.png"
    with platform(devices=1, device_bytes=DEVICE_BYTES):
        say(f"together on cpu:0 of {format_bytes(DEVICE_BYTES)}: {', '.join(names)}")
        shared = run([JOBS])
        dovetail("devices", "--picture", str(picture))
    with platform(devices=len(files), device_bytes=None):
        say(f"the same without the manager, each on a device of its own, for {PEAK_STEPS} steps")
        unmanaged = run([JOBS], FREE, steps=PEAK_STEPS)
        alone = {}
        for file in files:
            say(f"{file.stem} alone, without the manager")
            alone[file.stem] = run([file], FREE)
    table(shared, alone)
    print(
        "the predicted speed counts what memory costs; the slowdown also the cores that are shared"
    )
    print(f"the device's memory over time: {picture}")
    serial_s = sum(each.makespan_s for each in alone.values())
    print(
        f"makespan {shared.makespan_s:.0f} s together, {serial_s:.0f} s one after the other "
        "without the manager"
    )
    found = verdicts(shared, alone, unmanaged)
    for holds, sentence in found:
        print(f"{'ok  ' if holds else 'FAIL'}  {sentence}")
    return 0 if all(holds for holds, _ in found) else 1


def verdicts(shared: Run, alone: dict[str, Run], unmanaged: Run) -> list[tuple[bool, str]]:
    """What is promised, whether it holds, and the figures."""
    states = {name: job["state"] for name, job in shared.jobs.items()}
    ended = ", ".join(
        f"{name} {state}{_tries(shared.jobs[name])}" for name, state in states.items()
    )
    part = shared.all_running_s / shared.makespan_s
    limit_bytes = int(TOLERANCE * DEVICE_BYTES)
    other = [name for name in alone if shared.curves[name] != alone[name].curves[name]]
    device = format_bytes(DEVICE_BYTES)
    return [
        (set(states.values()) == {"SUCCEEDED"}, f"every job ends well: {ended}"),
        (
            part >= 0.5,
            f"all were RUNNING at once for {part:.0%} of the makespan, at least half"
            + ("" if part >= 0.5 else _waits(shared)),
        ),
        (
            0 < shared.peak_bytes <= limit_bytes,
            f"together they held {format_bytes(shared.peak_bytes)} at most, of {device} + 5 %",
        ),
        (
            not other,
            "every metric at every step is bitwise that of the job run alone"
            + (f"; not of {', '.join(other)}" if other else ""),
        ),
        (
            unmanaged.peak_bytes > DEVICE_BYTES,
            f"without the manager they held {format_bytes(unmanaged.peak_bytes)}, over {device}",
        ),
    ]


def _waits(run: Run) -> str:
    """Why they waited, such as for a channel so slow that they would not keep their speed."""
    return "".join(f"; {name} waited: {why}" for name, why in sorted(run.waits.items()))


def _tries(job: Json) -> str:
    """How the attempts before the last one ended, if there were any: they explain a makespan."""
    before = [str(attempt["reason"]) for attempt in job["attempts"][:-1]]
    return f" (after {', '.join(before)})" if before else ""


def table(shared: Run, alone: dict[str, Run]) -> None:
    row = "{:<14}{:>10}{:>10}{:>10}{:>18}{:>14}{:>14}"
    print(row.format("JOB", "ALONE", "SHARED", "SLOWDOWN", "PREDICTED SPEED", "NATURAL", "SHARED"))
    for name, job in sorted(shared.jobs.items()):
        before = alone[name].jobs[name]
        alone_s, shared_s = _trained_s(before), _trained_s(job)
        speeds = shared.speeds.get(name, [])
        mean = f"{sum(speeds) / len(speeds):.0%} (min {min(speeds):.0%})" if speeds else "-"
        print(
            row.format(
                name, f"{alone_s:.0f} s", f"{shared_s:.0f} s", f"{shared_s / alone_s:.2f}", mean,
                format_bytes(before["memory"]["peak_bytes"] or 0),
                format_bytes(job["memory"]["peak_bytes"] or 0),
            )
        )  # fmt: skip


def run(files: Sequence[Path], changes: Sequence[str] = (), *, steps: int | None = None) -> Run:
    """Submit them together and wait until all are over, with samples from outside and a look at the
    broker at each change. With `steps` they are cancelled when each has had so many.
    """
    overrides = [word for change in changes for word in ("--set", change)]
    said = json.loads(dovetail("submit", "--json", *map(str, files), *overrides))
    names = {job["id"]: job["name"] for job in (said if isinstance(said, list) else [said])}
    client = _client()
    speeds: dict[str, list[float]] = {}
    waits: dict[str, str] = {}
    cancelled = steps is None
    with SummedBytes() as samples:
        number: int | None = None
        while True:
            _, number = client.status(after=number, timeout_s=1.0)
            jobs = {names[job["id"]]: job for job in client.jobs() if job["id"] in names}
            waits |= {
                name: job["message"] for name, job in jobs.items() if job["state"] == "QUEUED"
            }
            if not cancelled and all(_steps(job) >= (steps or 0) for job in jobs.values()):
                cancelled = True
                for job_id in names:
                    client.cancel(job_id)
            for use in (use for device in client.devices() for use in device["jobs"]):
                if use["admitted"] and use["job"] in names:
                    speeds.setdefault(names[use["job"]], []).append(use["speed"])
            if all(job["state"] in OVER for job in jobs.values()):
                break
    bases = {
        f"{job['id']}.{attempt['number']}": job["memory"]["base_bytes"]
        for job in jobs.values()
        for attempt in job["attempts"]
        if job["memory"]["base_bytes"] is not None
    }
    curves = {name: _curve(client.metrics(job["id"])) for name, job in jobs.items()}
    peak_bytes = samples.peak_bytes(bases)
    return Run(jobs=jobs, peak_bytes=peak_bytes, speeds=speeds, waits=waits, curves=curves)


def _curve(points: list[Json]) -> list[Json]:
    """Who measured a point is no part of it."""
    return [{key: item for key, item in point.items() if key != "attempt"} for point in points]


def _steps(job: Json) -> int:
    return job["progress"]["step"] or 0


def _trained_s(job: Json) -> float:
    return _time_s(job, "ended_at") - _time_s(job, "started_at")


def _time_s(job: Json, key: str) -> float:
    return datetime.fromisoformat(job[key]).timestamp()


@contextmanager
def platform(*, devices: int, device_bytes: int | None) -> Iterator[None]:
    """A Dovetail of the demo's own, ended afterwards. It says each time what it starts."""
    size = [] if device_bytes is None else ["--device-memory", str(device_bytes)]
    if find_server(Settings.from_environment()) is not None:
        dovetail("down")  # a demo that was killed left it running
    dovetail("up", "--cpu-devices", str(devices), *size)
    try:
        yield
    finally:
        dovetail("down")


def dovetail(*arguments: str) -> str:
    """What the command prints for programs; its talk goes where ours goes. Ends the demo with the
    command's exit code if it fails.
    """
    done = subprocess.run([DOVETAIL, *arguments], stdout=subprocess.PIPE, text=True, check=False)
    if done.returncode:
        sys.exit(done.returncode)
    return done.stdout


def _client() -> Client:
    client = find_server(Settings.from_environment())
    assert client is not None, "the platform is up"
    return client


def say(text: str) -> None:
    print(text, flush=True)


if __name__ == "__main__":
    sys.exit(main())
