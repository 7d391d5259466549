"""An arm with `admits_bytes` lets a job begin when its budget fits."""

from __future__ import annotations

import threading
from collections.abc import Callable

from device_arms import Arm, train

BOTH = threading.Barrier(2, timeout=10)


class Runner:
    """In place of a `Trainee`: says what it holds while it trains."""

    def __init__(self, room: Room, size: int, meet: Callable[[], object] = lambda: None) -> None:
        self.room, self.size, self.meet = room, size, meet
        self.process = self

    def tell(self) -> None:
        self.room.enter(self)

    def follow(self) -> None:
        self.meet()

    def wait(self) -> None:
        self.room.leave(self)


class Room:
    def __init__(self) -> None:
        self.order: list[int] = []
        self.most = self.held = 0
        self._lock = threading.Lock()

    def enter(self, runner: Runner) -> None:
        with self._lock:
            self.order.append(runner.size)
            self.held += runner.size
            self.most = max(self.most, self.held)

    def leave(self, runner: Runner) -> None:
        with self._lock:
            self.held -= runner.size


def test_jobs_train_together_as_far_as_their_budgets_fit_and_in_their_order() -> None:
    room = Room()
    sizes = {"a": 6, "b": 4, "c": 7, "d": 3}
    meeting = {"a": BOTH.wait, "b": BOTH.wait}  # neither ends before the other began
    runners = {n: Runner(room, size, meeting.get(n, lambda: None)) for n, size in sizes.items()}
    train(Arm(label="any", budgets=sizes, admits_bytes=10), runners)  # type: ignore[arg-type]
    assert room.order == [6, 4, 7, 3]
    assert room.most == 10
    assert room.held == 0
