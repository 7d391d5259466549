"""Several jobs on one device, in the ways that `many_jobs.py` compares. An arm says who gets which
bytes; `run` starts a process for each job, follows all of them, and samples from outside what they
hold together.
"""

from __future__ import annotations

import json
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

from lone_training import Task
from summed_bytes import Moment, SummedBytes
from trainee import Trainee

CHILD = str(Path(__file__).with_name("lone_training.py"))


@dataclass(frozen=True, slots=True, kw_only=True)
class Arm:
    """`budgets` are bytes by job, for good; None for no limit. With `broker_bytes` jobs have their
    bytes from a broker of a device of that size. With `admits_bytes` a job begins, in their order,
    when its budget fits beside those of the jobs that train. `label` names the arm and how copies
    are made.
    """

    label: str
    threads: int = 1
    one_by_one: bool = False
    is_managed: bool = True
    budgets: Mapping[str, int] | None = None
    broker_bytes: int | None = None
    admits_bytes: int | None = None
    copies_bytes_per_s: float | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Job:
    """Steps of a model; each job has its own number, so that they end one after the other."""

    model: str
    steps: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Run:
    """An arm as it went. `found` is what each job said at its end, by model."""

    arm: Arm
    begin_s: float
    end_s: float
    found: Mapping[str, Mapping[str, Any]]
    moments: tuple[Moment, ...]

    @property
    def failed(self) -> list[str]:
        """Jobs that did not make their steps."""
        return [name for name, found in self.found.items() if "failed" in found]

    @property
    def makespan_s(self) -> float:
        """From the word to begin to the last end; models are made and steps traced within it."""
        return self.end_s - self.begin_s

    @property
    def peak_bytes(self) -> int:
        """Of the sum."""
        return max((sum(moment.resident_bytes.values()) for moment in self.moments), default=0)

    def total(self, figure: str) -> float:
        return sum(found.get(figure, 0) for found in self.found.values())

    def step_s(self, model: str) -> float:
        """Mean of all steps of a job."""
        found = self.found[model]
        return float((found["ends_s"][-1] - found["begun_s"]) / len(found["ends_s"]))

    def speed(self, serial: Run) -> float | None:
        """Steps per second while every job trains, each step counted with the seconds that it takes
        in `serial`: 1 where as much is done as by one job that has the device. None where they
        never train all at once, or one failed.
        """
        if self.failed or serial.failed:
            return None
        begin_s = max(found["begun_s"] for found in self.found.values())
        end_s = min(found["ends_s"][-1] for found in self.found.values())
        if end_s <= begin_s:
            return None
        done_s = sum(
            serial.step_s(name)
            * _steps_within([found["begun_s"], *found["ends_s"]], begin_s, end_s)
            for name, found in self.found.items()
        )
        return done_s / (end_s - begin_s)


def run(
    arm: Arm,
    jobs: Sequence[Job],
    *,
    device: str = "cpu",
    times: int = 1,
    look: Callable[[Mapping[str, Trainee]], Mapping[str, int]] | None = None,
) -> Run:
    """All jobs to their ends. `look` answers what they hold now, by name (default: the growth of
    each process's resident memory). Ends the program where a job is gone without a word.
    """
    with tempfile.TemporaryDirectory(prefix="dt-") as folder, _broker(arm, folder) as socket:
        trainees = {}
        for job in jobs:
            task = Task(
                model=job.model,
                steps=job.steps,
                threads=arm.threads,
                device=device,
                times=times,
                is_managed=arm.is_managed,
                budget_bytes=None if arm.budgets is None else arm.budgets[job.model],
                copies_bytes_per_s=arm.copies_bytes_per_s,
                channel=folder,
            )
            environment = {"TENSILE_BROKER": socket, "TENSILE_JOB": job.model}
            trainees[job.model] = Trainee.started(
                [CHILD, "train", json.dumps(asdict(task))],
                threads=arm.threads,
                environment=environment,
            )
        for trainee in trainees.values():
            trainee.get_ready()
        with SummedBytes(lambda: (look or _resident_bytes)(trainees)) as samples:
            begin_s = time.monotonic()
            train(arm, trainees)
            end_s = time.monotonic()
        for name, trainee in trainees.items():
            if trainee.process.wait() or not trainee.found:
                sys.exit(f"{arm.label}: {name} ended without a result; its own words are above")
    return Run(
        arm=arm,
        begin_s=begin_s,
        end_s=end_s,
        found={name: trainee.found for name, trainee in trainees.items()},
        moments=tuple(samples.moments),
    )


def ratios(
    runs: Sequence[Run], others: Sequence[Run], figure: Callable[[Run], float]
) -> list[float]:
    """Of a figure in each repeat."""
    return [figure(one) / figure(other) for one, other in zip(runs, others, strict=True)]


def train(arm: Arm, trainees: Mapping[str, Trainee]) -> None:
    """Let each begin when the arm lets it, and follow all to their ends."""
    free_bytes = arm.admits_bytes
    changed = threading.Condition()

    def follow(name: str, needed_bytes: int) -> None:
        nonlocal free_bytes
        trainees[name].follow()
        if arm.one_by_one or free_bytes is not None:
            trainees[name].process.wait()  # its bytes are there until then
        with changed:
            if free_bytes is not None:
                free_bytes += needed_bytes
            changed.notify_all()

    followers = []
    for name, trainee in trainees.items():
        needed_bytes = 0
        if free_bytes is not None:
            assert arm.budgets is not None
            needed_bytes = arm.budgets[name]
            with changed:
                while free_bytes < needed_bytes:
                    changed.wait()
                free_bytes -= needed_bytes
        trainee.tell()
        followers.append(follower := threading.Thread(target=follow, args=(name, needed_bytes)))
        follower.start()
        if arm.one_by_one:
            follower.join()
    for follower in followers:
        follower.join()


@contextmanager
def _broker(arm: Arm, folder: str) -> Iterator[str]:
    """The socket of the device's broker; empty where nothing is shared."""
    from tensile.coordinator.broker import Broker

    with ExitStack() as stack:
        socket = ""
        if arm.broker_bytes is not None:
            socket = str(Path(folder, "broker.sock"))
            stack.enter_context(Broker(Path(socket), arm.broker_bytes))
        yield socket


def _resident_bytes(trainees: Mapping[str, Trainee]) -> dict[str, int]:
    return {name: max(0, trainee.held_bytes()) for name, trainee in trainees.items()}


def _steps_within(moments_s: Sequence[float], begin_s: float, end_s: float) -> float:
    """Of steps between those moments, how many fall into a span; a part of one counts as one."""
    return sum(
        max(0.0, min(after_s, end_s) - max(before_s, begin_s)) / (after_s - before_s)
        for before_s, after_s in pairwise(moments_s)
    )
