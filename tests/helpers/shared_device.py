"""A device of so many bytes with its broker, processes that train on it, and what they hold
together, looked at from outside all the time.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any

from helpers.sharing_process import ROWS
from tensile import resident
from tensile.coordinator import Share
from tensile.coordinator.broker import Broker

TESTS = Path(__file__).parents[1]
_LOOK_S = 0.004
_AT_ONCE_S = 0.01  # a look that was interrupted for longer adds up bytes of different times
FEWEST_LOOKS = 10  # that counted, in each second on average, for a peak to mean something


@dataclass
class Trainee:
    """A process of `helpers.sharing_process`. `limits` and `times_s` are of the steps that
    are over.
    """

    name: str
    process: subprocess.Popen[str]
    base_bytes: int
    limits: list[int] = field(default_factory=list)
    times_s: list[float] = field(default_factory=list)
    said: dict[str, Any] = field(default_factory=dict)
    reader: threading.Thread | None = None

    @property
    def growth_bytes(self) -> int:
        """Over what it held before it had any model; 0 when it is gone."""
        measured = resident.measure(self.process.pid)
        return 0 if measured is None else max(0, measured.total_bytes - self.base_bytes)

    def go(self) -> None:
        """Build the model, and train."""
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        print("go", file=self.process.stdin, flush=True)
        self.reader = threading.Thread(target=self._read, args=(self.process.stdout,))
        self.reader.start()

    def finished(self) -> dict[str, Any]:
        """What it said at its end; nothing of one that was killed."""
        assert self.reader is not None
        self.reader.join()
        self.process.communicate()
        return self.said

    def _read(self, lines: IO[str]) -> None:
        for line in lines:
            heard = json.loads(line)
            if "limit" in heard:
                self.limits.append(heard["limit"])
                self.times_s.append(heard["at_s"])
            else:
                self.said = heard


class SharedDevice:
    """`shares` are what the broker said, in its order, with the time at which it did."""

    def __init__(self, folder: Path, device_bytes: int) -> None:
        self.shares: list[tuple[float, tuple[Share, ...]]] = []
        self.peak: dict[str, int] = {}
        self.looks = 0  # that counted
        self._folder = folder
        self._trainees: list[Trainee] = []
        self._place = tempfile.TemporaryDirectory(prefix="dt-")  # a socket's path has 107 bytes
        self._over = threading.Event()
        self._held_s = 0.0  # for which anybody held anything
        self._sampler = threading.Thread(target=self._sample)
        self.broker = Broker(self.socket, device_bytes, on_change=self._changed)

    @property
    def peak_bytes(self) -> int:
        """The most that all held together; `peak` says who held what then. Fails where too few
        looks counted to know.
        """
        assert self.looks > FEWEST_LOOKS * self._held_s, (
            f"{self.looks} looks in {self._held_s:.0f} s are too few to know a peak; "
            "run it on a machine with less to do"
        )
        return sum(self.peak.values())

    @property
    def socket(self) -> Path:
        return Path(self._place.name, "broker.sock")

    def ready(self, *names: str, steps: int, foreseen_rows: int = ROWS) -> list[Trainee]:
        """Processes with their libraries loaded, before they have any model."""
        started = [
            _started(self._folder, str(self.socket), name, steps, foreseen_rows) for name in names
        ]
        ready = [_ready(name, process) for name, process in zip(names, started, strict=True)]
        self._trainees += ready
        return ready

    def lease_bytes(self, job: str) -> int:
        return next((s.lease_bytes for s in self.broker.shares() if s.job == job), 0)

    def time_of(self, since_s: float, is_so: Callable[[tuple[Share, ...]], bool]) -> float:
        """Seconds from `since_s` until the broker first said so."""
        return next(at - since_s for at, shares in self.shares if at >= since_s and is_so(shares))

    def _changed(self, shares: tuple[Share, ...]) -> None:
        self.shares.append((time.monotonic(), shares))

    def _sample(self) -> None:
        last_s = time.monotonic()
        while not self._over.wait(_LOOK_S):
            begin_s = time.monotonic()
            held = {trainee.name: trainee.growth_bytes for trainee in tuple(self._trainees)}
            if any(held.values()):
                self._held_s += begin_s - last_s
                self._note(held, time.monotonic() - begin_s)
            last_s = begin_s

    def _note(self, held: dict[str, int], took_s: float) -> None:
        if took_s < _AT_ONCE_S:
            self.looks += 1
            self.peak = max(self.peak, held, key=lambda each: sum(each.values()))

    @contextmanager
    def _running(self) -> Iterator[SharedDevice]:
        with self._place, self.broker:
            self._sampler.start()
            try:
                yield self
            finally:
                self._over.set()
                self._sampler.join()
                for trainee in self._trainees:
                    trainee.process.kill()
                    if trainee.reader is not None:
                        trainee.reader.join()
                    with trainee.process:
                        pass


def shared_device(folder: Path, device_bytes: int) -> Any:
    """A context: the device, until all its processes are gone."""
    return SharedDevice(folder, device_bytes)._running()


def alone(folder: Path, steps: int) -> dict[str, Any]:
    """What the same training says when nobody manages its memory."""
    trainee = _ready("alone", _started(folder, "", "alone", steps, ROWS))
    trainee.go()
    return trainee.finished()


def _started(
    folder: Path, socket: str, name: str, steps: int, foreseen_rows: int
) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [
            *(sys.executable, "-m", "helpers.sharing_process"),
            *(str(folder), socket, name, str(steps), str(foreseen_rows)),
        ],
        cwd=TESTS,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )


def _ready(name: str, process: subprocess.Popen[str]) -> Trainee:
    assert process.stdout is not None
    assert process.stdout.readline() == "ready\n"
    measured = resident.measure(process.pid)
    assert measured is not None
    return Trainee(name=name, process=process, base_bytes=measured.total_bytes)
