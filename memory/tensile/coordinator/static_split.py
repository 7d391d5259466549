"""A device's bytes in parts that nobody exceeds: the proportionally fair ones.

The parts b maximise

    sum_i  w_i log s_i(b_i)      with  minimum_i <= b_i <= peak_i  and  sum_i b_i <= room,

where s_i is the predicted speed, taken as the least concave curve over the rungs' bytes and speeds
(Kelly, Maulloo and Tan 1998, "Rate control for communication networks").

Why that: the plain sum of speeds is the same whether two equal jobs share the bytes that make one
of them faster or one has them all, so the order decides, and one of three equal jobs may have half
of what the others have. Its logarithm is strictly concave wherever a byte makes anybody faster, so
there is one best division, which no order or name changes: equal jobs have equal parts and alike
jobs alike ones. Nothing that matters is given up for it: at the best division no other has a larger
sum of weighted relative changes, sum_i w_i (s'_i - s_i) / s_i <= 0, since that is the derivative.

How: at the best division a byte has one price, w_i s_i'(b_i) / s_i(b_i), for all who are between
their least and their most. What each takes falls with the price, without jumps, so bisection finds
the price at which all is taken.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import pairwise

from tensile.coordinator.profile import Profile

_HALVINGS = 64


def fair_parts(claims: Sequence[tuple[Profile, float]], room_bytes: int) -> list[int]:
    """The parts of jobs of one priority, each given with its weight. Their minima must fit. Nobody
    gets more than makes it faster.
    """
    demands = [_Demand(profile, weight) for profile, weight in claims]
    slopes = [price for demand in demands for price in demand.prices]
    if not slopes:
        return [demand.least_bytes for demand in demands]
    low, high = min(slopes), max(slopes)
    parts = [demand.at(low) for demand in demands]
    if sum(parts) <= room_bytes:
        return parts
    for _ in range(_HALVINGS):
        price = math.sqrt(low * high)
        if sum(demand.at(price) for demand in demands) <= room_bytes:
            high = price
        else:
            low = price
    return [demand.at(high) for demand in demands]


class _Demand:
    """How many bytes a job takes at a price. `prices` are all at which its answer bends."""

    def __init__(self, profile: Profile, weight: float) -> None:
        self.least_bytes = profile.minimum_bytes
        self._weight = weight
        self._rises = [
            (start, end) for start, end in pairwise(_concave(profile)) if end[1] > start[1]
        ]
        self.prices = [
            price
            for start, end in self._rises
            for price in (
                weight * _slope(start, end) / start[1],
                weight * _slope(start, end) / end[1],
            )
        ]

    def at(self, price: float) -> int:
        taken_bytes = self.least_bytes
        for start, end in self._rises:
            slope = _slope(start, end)
            if self._weight * slope / start[1] <= price:
                break
            if self._weight * slope / end[1] < price:
                return int(start[0] + self._weight / price - start[1] / slope)
            taken_bytes = end[0]
        return taken_bytes


def _concave(profile: Profile) -> list[tuple[int, float]]:
    """Bytes and speeds of the rungs that the least concave curve over all of them runs through."""
    hull: list[tuple[int, float]] = []
    for number in reversed(range(len(profile.rungs))):
        point = profile.rungs[number].bytes, profile.speed(number)
        while len(hull) > 1 and _slope(hull[-2], hull[-1]) <= _slope(hull[-1], point):
            hull.pop()
        hull.append(point)
    return hull


def _slope(start: tuple[int, float], end: tuple[int, float]) -> float:
    return (end[1] - start[1]) / (end[0] - start[0])
