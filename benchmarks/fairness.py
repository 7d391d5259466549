"""How fair a shared device is: three equal jobs, and one of high priority beside two low ones.

All train the same, a thread each, under one broker; the channel is taken for one of 100 MB/s, so
that three want more of it than there is (`interlock.py` says why). A job is measured while all the
others step beside it. Slowdowns are over the same job alone with all the memory that it wants. The
high one is compared with itself alone on the bytes that it has beside the others: how fast it steps
and how much it copies a second. Two cores are one too few for three jobs, which slows three equal
ones all alike; the low ones run where the high one leaves the processors idle. Goals: Jain's index
of the slowdowns at least 0.95; at least 95 % of speed and of copies kept.

python benchmarks/fairness.py [--repeats N] [--seconds S] [--write NAME]
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from environment import describe, spread
from interlock import FIRST, SLOW, training

DEPTH, ROWS = 8, 1536
ROOM = 0.6  # of its peak that each has, or that the high one has
HIGH = 10
MB = 10**6


def train_here() -> None:
    """Says `ready` before it has any model, then waits for a line; trains until another comes, and
    says before the first step and after each what time it is and what was copied until then.
    """
    import torch

    import tensile

    torch.set_num_threads(1)
    print("ready", flush=True)
    sys.stdin.readline()
    over = threading.Event()
    threading.Thread(target=lambda: (sys.stdin.readline(), over.set()), daemon=True).start()
    model, optimizer, step, batch = training(DEPTH, ROWS)
    session = tensile.Session(model, optimizer)
    session.prepare(step, batch, costs=slow())
    while True:
        stats = session.stats()
        moved_bytes = stats.swapped_out_bytes + stats.swapped_in_bytes
        print(json.dumps([time.monotonic(), moved_bytes]), flush=True)
        if over.is_set():
            return
        with session.step():
            step(batch)


def slow() -> Any:
    import tensile

    return replace(tensile.calibrate("cpu"), out_bytes_per_s=SLOW, in_bytes_per_s=SLOW)


@dataclass
class Job:
    name: str
    process: subprocess.Popen[str]
    steps: list[tuple[float, int]] = field(default_factory=list)

    def follow(self) -> None:
        assert self.process.stdout is not None
        for line in self.process.stdout:
            at_s, moved_bytes = json.loads(line)
            self.steps.append((at_s, moved_bytes))

    def tell(self) -> None:
        assert self.process.stdin is not None
        print(file=self.process.stdin, flush=True)

    def found(self, begin_s: float, end_s: float) -> dict[str, float]:
        """Of the steps that were over between two moments; two at least."""
        seen = [step for step in self.steps if begin_s <= step[0] <= end_s]
        if len(seen) < 2:
            sys.exit(f"{self.name} made {len(seen)} steps in that time; give it more --seconds")
        (first_s, before_bytes), (last_s, after_bytes) = seen[0], seen[-1]
        return {
            "step_s": (last_s - first_s) / (len(seen) - 1),
            "bytes_per_s": (after_bytes - before_bytes) / (last_s - first_s),
        }


def run(priorities: dict[str, int], device_bytes: int, seconds: float) -> dict[str, Any]:
    """All at once, measured for so long, from when each has made its first steps on."""
    from tensile.coordinator.broker import Broker

    with tempfile.TemporaryDirectory(prefix="dt-") as folder:
        socket = Path(folder, "broker.sock")
        with Broker(socket, device_bytes):
            jobs = [Job(name, _child(socket, name, p)) for name, p in priorities.items()]
            for job in jobs:
                assert job.process.stdout is not None
                assert job.process.stdout.readline() == "ready\n"
            followers = [threading.Thread(target=job.follow) for job in jobs]
            for job, follower in zip(jobs, followers, strict=True):
                job.tell()
                follower.start()
            measured = [job for job in jobs if priorities[job.name] == max(priorities.values())]
            while any(not job.steps for job in jobs) or any(
                len(job.steps) <= FIRST for job in measured
            ):
                if any(job.process.poll() is not None for job in jobs):
                    sys.exit("a job ended before it was measured")
                time.sleep(0.05)
            begin_s = time.monotonic()
            time.sleep(seconds)
            end_s = time.monotonic()
            for job, follower in zip(jobs, followers, strict=True):
                if job in measured:
                    job.tell()
                else:
                    job.process.kill()  # its step may take very long
                follower.join()
                job.process.wait()
    return {job.name: job.found(begin_s, end_s) for job in measured}


def jain(values: Sequence[float]) -> float:
    """1 where all are equal (Jain, Chiu and Hawe 1984)."""
    return sum(values) ** 2 / (len(values) * sum(value**2 for value in values))


def measured(profile: Any, repeats: int, seconds: float) -> list[str]:
    peak, least = profile.peak_bytes, profile.minimum_bytes
    slowdowns: list[list[float]] = []
    speeds, copies = [], []
    for _ in range(repeats):
        free = run({"alone": 0}, peak, seconds)["alone"]
        equal = run(dict.fromkeys("abc", 0), int(3 * ROOM * peak), seconds)
        slowdowns.append([found["step_s"] / free["step_s"] for found in equal.values()])
        alone = run({"high": HIGH}, int(ROOM * peak), seconds)["high"]
        three = {"high": HIGH, "low": 0, "other": 0}
        high = run(three, int(ROOM * peak) + 2 * least, seconds)["high"]
        speeds.append(alone["step_s"] / high["step_s"])
        copies.append(high["bytes_per_s"] / alone["bytes_per_s"])
    return [
        f"three equal jobs, slowdown of each: {spread([s for one in slowdowns for s in one], '')}",
        f"three equal jobs, Jain's index: {spread([jain(one) for one in slowdowns], '')}",
        f"high beside two low, speed kept: {spread(speeds, '')}",
        f"high beside two low, copies a second kept: {spread(copies, '')}",
    ]


def simulated(profile: Any) -> list[str]:
    """The same, without what computing takes from each other."""
    from tensile.coordinator import Member, simulate_together

    peak, least = profile.peak_bytes, profile.minimum_bytes
    equals = [Member(job=name, profile=profile) for name in "abc"]
    slowdowns = [o.slowdown for o in simulate_together(equals, int(3 * ROOM * peak))]
    first = replace(equals[0], priority=HIGH)
    (alone,) = simulate_together([first], int(ROOM * peak))
    high = simulate_together([first, *equals[1:]], int(ROOM * peak) + 2 * least)[0]
    return [
        f"three equal jobs, slowdown of each: {spread(slowdowns, '')}",
        f"three equal jobs, Jain's index: {jain(slowdowns):.3f}",
        f"high beside two low, speed kept: {alone.step_s / high.step_s:.3f}",
        f"high beside two low, copies a second kept: {high.copy_share / alone.copy_share:.3f}",
    ]


def _child(socket: Path, name: str, priority: int) -> subprocess.Popen[str]:
    threads = {"OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"}
    shared = {
        "TENSILE_BROKER": str(socket),
        "TENSILE_JOB": name,
        "TENSILE_PRIORITY": str(priority),
    }
    return subprocess.Popen(
        [sys.executable, __file__, "--child"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        env={**os.environ, **threads, **shared},
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--seconds", type=float, default=20)
    parser.add_argument("--write", type=Path, help="NAME.md")
    parser.add_argument("--child", action="store_true", help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.child:
        train_here()
        return
    import torch

    import tensile
    from tensile.coordinator import traced

    torch.set_num_threads(1)
    model, optimizer, step, batch = training(DEPTH, ROWS)
    profile = traced(tensile.trace(step, model, optimizer, batch), slow())
    del model, optimizer, batch
    at = profile.predicted(int(ROOM * profile.peak_bytes))
    lines = ["# Fairness on a shared device", "", describe(), ""]
    lines.append(
        f"each: peak {profile.peak_bytes / MB:.0f} MB, least {profile.minimum_bytes / MB:.0f} MB; "
        f"with {ROOM:.0%} of its peak it copies {at.copied_bytes / MB:.0f} MB a step, "
        f"{at.copy_share:.0%} of a channel of {SLOW / MB:.0f} MB/s"
    )
    lines += ["", "Simulated:", "", *(f"- {line}" for line in simulated(profile))]
    lines += ["", "Measured:", ""]
    lines += [f"- {line}" for line in measured(profile, given.repeats, given.seconds)]
    lines += ["", f"load at the end: {os.getloadavg()[0]:.1f}"]
    print("\n".join(lines))
    if given.write:
        given.write.with_suffix(".md").write_text("\n".join(lines) + "\n")


if __name__ == "__main__":
    main()
