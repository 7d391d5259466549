"""How fast a run goes, over its last seconds only, and when that is worth a report."""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass

WINDOW_S = 10.0
INTERVAL_S = 0.2


@dataclass(frozen=True, slots=True)
class _Mark:
    at_s: float
    steps: int
    samples: int


class Speedometer:
    """Told of every step with a monotonic time; begins to count at `now_s`."""

    def __init__(self, now_s: float) -> None:
        self._marks = deque([_Mark(now_s, 0, 0)])
        self._steps = 0
        self._samples = 0

    def stepped(self, now_s: float, samples: int) -> bool:
        """Count one step; True at the first, and then about five times a second."""
        self._steps += 1
        self._samples += samples
        if len(self._marks) > 1 and now_s - self._marks[-1].at_s < INTERVAL_S:
            return False
        self._marks.append(_Mark(now_s, self._steps, self._samples))
        while len(self._marks) > 2 and self._marks[1].at_s < now_s - WINDOW_S:
            self._marks.popleft()
        return True

    def per_s(self) -> tuple[float, float] | tuple[None, None]:
        """Steps and samples per second over the window; None before the first step."""
        first, last = self._marks[0], self._marks[-1]
        seconds = last.at_s - first.at_s
        if seconds <= 0:
            return None, None
        return (last.steps - first.steps) / seconds, (last.samples - first.samples) / seconds
