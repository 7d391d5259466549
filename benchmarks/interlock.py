"""What interlocked steps save and cost: two equal jobs on one device, a thread each.

`plain` are two processes of PyTorch alone, which never load a memory manager; `roomy` the same two
with a session each, under a broker whose device has room for both peaks; `shared` the same under
one whose device is a share of the sum of these peaks. The arms are measured in turn, several times
over. Bytes are the operating system's, looked at from outside all the time: the peak of the sum
while both train, over the sum of their peaks in the roomy arm, which are lower than in the plain
one, since the heap of PyTorch alone keeps some of what it frees. A look that was interrupted adds
up bytes of different times and does not count; a run of which too few count is no measurement, and
ends. Time is CPU seconds and wall seconds of a step, once the first ones are over, over both other
arms; bytes that left say whether interlocking was enough by itself. Goal: at most 0.75, at most
5 % dearer than PyTorch alone. Plans are made for a channel of 100 MB/s: with this machine's own,
what leaves the device is foreseen to cost nothing, and then a static split is chosen.

python benchmarks/interlock.py [--repeats N] [--steps N] [--share S] [--write NAME]
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import sys
import tempfile
import threading
import time
from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from environment import describe, spread
from trainee import Trainee

FIRST = 10  # steps before the clock starts: by then their peaks have found their places
LOOK_S, AT_ONCE_S = 0.004, 0.01
LOOKS_A_STEP = 10  # that count, on the average: fewer might miss the peak
WIDTH, DEPTH, ROWS = 512, 8, 4096
SLOW = 1e8  # bytes per second
AMPLE = 2**40  # bytes of a device that nobody fills
MB = 10**6
PEAK = "peak_bytes"


def training(depth: int, rows: int) -> tuple[Any, Any, Any, Any]:
    """Model, optimizer, step and batch: what lasts is about a tenth of the peak."""
    import torch
    from torch import nn

    torch.manual_seed(0)
    layers: list[nn.Module] = []
    for _ in range(depth):
        layers += [nn.LayerNorm(WIDTH), nn.Linear(WIDTH, WIDTH), nn.GELU(), nn.Dropout(0.1)]
        layers += [nn.Linear(WIDTH, WIDTH), nn.Tanh()]
    model = nn.Sequential(*layers, nn.Linear(WIDTH, 8))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)

    def step(batch: torch.Tensor) -> float:
        optimizer.zero_grad()
        loss = model(batch).square().mean()
        loss.backward()
        optimizer.step()
        return loss.item()

    return model, optimizer, step, torch.randn(rows, WIDTH)


def train_here(arm: str, steps: int) -> None:
    """Says `ready` before it has any model, `begun` when the first steps are over, and then what it
    found; waits for a line before it begins and before it ends.
    """
    import torch

    torch.set_num_threads(1)
    broker = os.environ.pop("TENSILE_BROKER", None)
    model, optimizer, step, batch = training(2, 128)  # load what the steps load
    if arm == "plain":
        step(batch)
    else:
        import tensile

        with tensile.Session(model, optimizer, 0.6) as warm:
            warm.prepare(step, batch)
            with warm.step():
                step(batch)
        del warm
    del model, optimizer, step, batch
    print("ready", flush=True)
    sys.stdin.readline()
    model, optimizer, step, batch = training(DEPTH, ROWS)
    session = None
    if arm != "plain":
        os.environ["TENSILE_BROKER"] = str(broker)
        session = tensile.Session(model, optimizer)
        slow = replace(tensile.calibrate("cpu"), out_bytes_per_s=SLOW, in_bytes_per_s=SLOW)
        session.prepare(step, batch, costs=slow)
    losses = []
    for number in range(FIRST + steps):
        if number == FIRST:
            print("begun", flush=True)
            begin_s, used_s = time.perf_counter(), time.process_time()
            moved_bytes = 0 if session is None else session.stats().swapped_out_bytes
        with nullcontext() if session is None else session.step():
            losses.append(step(batch))
    found = {
        "wall_s": (time.perf_counter() - begin_s) / steps,
        "cpu_s": (time.process_time() - used_s) / steps,
        "losses": losses,
        "moved_bytes": 0,
    }
    if session is not None:
        found["moved_bytes"] = (session.stats().swapped_out_bytes - moved_bytes) / steps
    print(json.dumps(found), flush=True)
    sys.stdin.readline()


@dataclass
class Looks:
    """What two processes were seen to hold."""

    counted: int = 0
    interrupted: int = 0
    sum_bytes: int = 0
    peaks_bytes: tuple[int, ...] = (0, 0)

    def take(self, held_bytes: Sequence[int], took_s: float) -> None:
        if took_s >= AT_ONCE_S:
            self.interrupted += 1
            return
        self.counted += 1
        self.sum_bytes = max(self.sum_bytes, sum(held_bytes))
        self.peaks_bytes = tuple(map(max, self.peaks_bytes, held_bytes))

    def complaint(self, steps: int) -> str | None:
        """Why they are no measurement of so many steps."""
        if self.counted >= LOOKS_A_STEP * steps:
            return None
        return (
            f"{self.counted} looks at {steps} steps counted and {self.interrupted} were "
            f"interrupted; {LOOKS_A_STEP} a step are needed: use a machine that does less beside"
        )


def pair(arm: str, steps: int, *, device_bytes: int) -> dict[str, Any]:
    """Both at once; all figures of that run."""
    from tensile.coordinator.broker import Broker

    with (
        tempfile.TemporaryDirectory(prefix="dt-") as folder,
        Broker(socket := Path(folder, "broker.sock"), device_bytes),
    ):
        return _trained(arm, steps, socket)


def _trained(arm: str, steps: int, socket: Path) -> dict[str, Any]:
    jobs = [_child(arm, steps, socket, name) for name in ("a", "b")]
    looks = Looks()
    for job in jobs:
        job.get_ready()
    followers = [threading.Thread(target=job.follow) for job in jobs]
    for job, follower in zip(jobs, followers, strict=True):
        job.tell()
        follower.start()
    while not any(job.found for job in jobs):
        begin_s = time.monotonic()
        held = [job.held_bytes() for job in jobs]
        if all(job.begun for job in jobs):
            looks.take(held, time.monotonic() - begin_s)
        time.sleep(LOOK_S)
    for follower in followers:
        follower.join()
    for job in jobs:
        job.process.communicate("\n")
    if jobs[0].found["losses"] != jobs[1].found["losses"]:
        sys.exit("two equal jobs did not find the same")
    if (complaint := looks.complaint(steps)) is not None:
        sys.exit(f"{arm}: {complaint}")
    return {
        "looks": looks.counted,
        "interrupted": looks.interrupted,
        "sum_bytes": looks.sum_bytes,
        "peak_bytes": sum(looks.peaks_bytes),
        "losses": jobs[0].found["losses"],
        **{
            key: statistics.mean(job.found[key] for job in jobs)
            for key in ("wall_s", "cpu_s", "moved_bytes")
        },
    }


def by_interlocking(moved_bytes: Sequence[float]) -> str:
    """Whether the repeats, of which so much left the device in a step, show interlocking alone."""
    swapped = sum(moved > 0 for moved in moved_bytes)
    if not swapped:
        return "without swapping: the steps' peaks alone made room for each other"
    return (
        f"in {swapped} of {len(moved_bytes)} repeats bytes left the device, so it is not the "
        "places of the peaks alone that made room"
    )


def _child(arm: str, steps: int, socket: Path, name: str) -> Trainee:
    return Trainee.started(
        [__file__, "--child", arm, "--steps", str(steps)],
        threads=1,
        environment={"TENSILE_BROKER": str(socket), "TENSILE_JOB": name},
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--steps", type=int, default=12)
    parser.add_argument("--share", type=float, default=0.765, help="of the sum of the peaks")
    parser.add_argument("--write", type=Path, help="NAME.md")
    parser.add_argument("--child", help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.child:
        train_here(given.child, given.steps)
        return
    lines = ["# Interlocked steps", "", describe(), ""]
    found: list[dict[str, dict[str, Any]]] = []
    for number in range(given.repeats):
        roomy = pair("roomy", given.steps, device_bytes=AMPLE)
        device_bytes = int(given.share * roomy["peak_bytes"])
        one = {"roomy": roomy}
        for arm in ("plain", "shared") if number % 2 == 0 else ("shared", "plain"):
            one[arm] = pair(arm, given.steps, device_bytes=device_bytes)
        if not one["plain"]["losses"] == one["roomy"]["losses"] == one["shared"]["losses"]:
            sys.exit("a job that shares its device found other losses than one that does not")
        found.append(one)

    def over(what: str, arm: str, baseline: str, base: str = "") -> str:
        return spread([one[arm][what] / one[baseline][base or what] for one in found], "")

    lines += [
        f"peak of the sum / sum of the peaks, roomy: {over('sum_bytes', 'roomy', 'roomy', PEAK)}",
        f"peak of the sum / sum of the peaks, shared: {over('sum_bytes', 'shared', 'roomy', PEAK)}",
        f"sum of the peaks, plain / roomy: {over(PEAK, 'plain', 'roomy')}",
    ]
    for baseline in ("plain", "roomy"):
        lines += [
            f"CPU seconds, shared / {baseline}: {over('cpu_s', 'shared', baseline)}",
            f"wall seconds, shared / {baseline}: {over('wall_s', 'shared', baseline)}",
        ]
    shared = [one["shared"] for one in found]
    looks = [looked for one in found for looked in one.values()]
    lines += [
        f"left the device: {spread([one['moved_bytes'] / MB for one in shared], 'MB a step')}",
        by_interlocking([one["moved_bytes"] for one in shared]),
        f"looks that counted: {sum(one['looks'] for one in looks)}, "
        f"interrupted: {sum(one['interrupted'] for one in looks)}",
        "losses: the same in all arms, bit for bit",
    ]
    print("\n".join(lines))
    if given.write:
        given.write.with_suffix(".md").write_text("\n".join(lines) + "\n")


if __name__ == "__main__":
    main()
