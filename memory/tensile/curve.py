"""How many bytes live over the operators of a cyclic step, while a plan takes shape."""

from __future__ import annotations

from tensile.tape import Integers


class Curve:
    """`live_bytes[p]` while operator `p` runs. Ranges are linear: they may reach into the next
    step, but are not longer than one.
    """

    def __init__(self, live_bytes: Integers) -> None:
        self.live_bytes = live_bytes.copy()
        self._length = len(live_bytes)

    def add(self, start: int, stop: int, more_bytes: int) -> None:
        """`more_bytes` (or fewer, if negative) live while `start <= p < stop`."""
        for left, right in self._turns(start, stop):
            self.live_bytes[left:right] += more_bytes

    def highest(self, start: int, stop: int) -> int:
        """The most in the range, 0 if it is empty."""
        return max(
            (int(self.live_bytes[left:right].max()) for left, right in self._turns(start, stop)),
            default=0,
        )

    def last_above(self, start: int, stop: int, limit_bytes: int) -> int | None:
        """The last linear position in the range with more than `limit_bytes`."""
        for left, right in reversed(self._turns(start, stop)):
            above = (self.live_bytes[left:right] > limit_bytes).nonzero()[0]
            if len(above):
                position = left + int(above[-1])
                return position + self._length * (
                    (start - position + self._length - 1) // self._length
                )
        return None

    def _turns(self, start: int, stop: int) -> list[tuple[int, int]]:
        n = self._length
        if stop <= start:
            return []
        if start >= n:
            start, stop = start - n, stop - n
        if stop <= n:
            return [(start, stop)]
        return [(start, n), (0, stop - n)]
