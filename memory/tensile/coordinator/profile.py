"""What a job asks of a device: its ladder of plans, each with its bytes over one step."""

from __future__ import annotations

import math
from bisect import bisect_right
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from itertools import pairwise
from typing import Any, Self

SAMPLES = 32  # of a step's curve
SHORTEST_S, LONGEST_S = 1e-12, 1e12  # of a step: what is beyond has no ratio to another


@dataclass(frozen=True, slots=True, kw_only=True)
class Rung:
    """A plan: the lease it needs, the time of its step, and the most bytes that it holds in each of
    `SAMPLES` equal parts of that time. In a step it copies `copied_bytes` out and in, for which the
    busier direction of the channel to the lower tier works `copy_s`, if it is the job's alone.
    Raises ValueError for what no step can be.
    """

    bytes: int
    step_s: float
    curve: tuple[int, ...]
    copied_bytes: int = 0
    copy_s: float = 0.0

    def __post_init__(self) -> None:
        if len(self.curve) != SAMPLES or not 0 < max(self.curve) <= self.bytes:
            raise ValueError(f"a curve must have {SAMPLES} parts of at most {self.bytes} bytes")
        if not SHORTEST_S <= self.step_s <= LONGEST_S:
            raise ValueError(
                f"step_s: {self.step_s!r} is no time of a step; it must be from "
                f"{SHORTEST_S:g} to {LONGEST_S:g} seconds"
            )
        if not 0 <= self.copy_s <= LONGEST_S or self.copied_bytes < 0:
            raise ValueError(
                f"copy_s: {self.copy_s!r} for {self.copied_bytes!r} bytes is no time of copies; "
                "both are 0 for a step that copies nothing"
            )

    @property
    def copy_share(self) -> float:
        """How much of the channel a job on this rung keeps busy, all alone there."""
        return min(self.copy_s / self.step_s, 1.0)

    @classmethod
    def flat(cls, size_bytes: int, step_s: float = 1.0) -> Self:
        """Of a job of which only the peak is known."""
        return cls(bytes=size_bytes, step_s=step_s, curve=(size_bytes,) * SAMPLES)

    @classmethod
    def sampled(
        cls,
        *,
        lease_bytes: int,
        step_s: float,
        start_s: Sequence[float],
        live_bytes: Sequence[int],
        beside_bytes: int,
        copied_bytes: int = 0,
        copy_s: float = 0.0,
    ) -> Self:
        """From a timeline: `live_bytes[p]` is held from `start_s[p]` on; `beside_bytes` always."""
        bounds = [step_s * part / SAMPLES for part in range(SAMPLES + 1)]
        curve = []
        for begin_s, end_s in pairwise(bounds):
            first = max(bisect_right(start_s, begin_s) - 1, 0)
            last = max(bisect_right(start_s, end_s) - 1, first)
            curve.append(max(live_bytes[first : last + 1]) + beside_bytes)
        return cls(
            bytes=lease_bytes,
            step_s=step_s,
            curve=tuple(curve),
            copied_bytes=copied_bytes,
            copy_s=copy_s,
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Profile:
    """`rungs` from the natural peak down to the least that a plan has certified: ever fewer bytes,
    never a shorter step. Raises ValueError for anything else.
    """

    rungs: tuple[Rung, ...]

    def __post_init__(self) -> None:
        if not self.rungs:
            raise ValueError("a profile needs a rung")
        for upper, lower in pairwise(self.rungs):
            if upper.bytes <= lower.bytes or upper.step_s > lower.step_s:
                raise ValueError(f"rungs must go down: {upper.bytes}, then {lower.bytes} bytes")

    @property
    def peak_bytes(self) -> int:
        return self.rungs[0].bytes

    @property
    def minimum_bytes(self) -> int:
        return self.rungs[-1].bytes

    def to_json(self) -> list[dict[str, Any]]:
        """Plain JSON values; `from_json` reads them back to an equal profile."""
        return [asdict(rung) for rung in self.rungs]

    @classmethod
    def from_json(cls, value: Sequence[Mapping[str, Any]]) -> Self:
        """Raises ValueError, KeyError or TypeError for what is none. Profiles that were kept before
        there was a word for copies have none.
        """
        rungs = (Rung(**{**rung, "curve": tuple(rung["curve"])}) for rung in value)
        return cls(rungs=tuple(rungs))

    def within(self, most_bytes: int) -> Profile:
        """Of the same job when it holds no more than that; its minimum stays."""
        if most_bytes >= self.peak_bytes:
            return self
        kept = tuple(rung for rung in self.rungs if rung.bytes <= most_bytes) or self.rungs[-1:]
        if kept[0].bytes < most_bytes:
            kept = (replace(kept[0], bytes=most_bytes), *kept)
        return Profile(rungs=kept)

    def times(self, ratio: float) -> Profile:
        """Of a job that holds so many times what its rungs say; `ratio` is at least 1."""
        if ratio == 1:
            return self
        raised = (
            replace(
                rung,
                bytes=math.ceil(rung.bytes * ratio),
                curve=tuple(math.ceil(held * ratio) for held in rung.curve),
            )
            for rung in self.rungs
        )
        return Profile(rungs=tuple(raised))

    def speed(self, rung: int) -> float:
        """Of a step on that rung, over a step with all the memory it wants."""
        return self.rungs[0].step_s / self.rungs[rung].step_s

    def leased(self, number: int) -> Rung:
        """That rung as its neighbours meet it: what is below the minimum stays the job's own."""
        rung = self.rungs[number]
        return replace(rung, curve=tuple(max(held, self.minimum_bytes) for held in rung.curve))

    def predicted(self, size_bytes: int) -> Rung:
        """Of a plan for so many bytes, at least the minimum: a job plans for the bytes that it has,
        so between two rungs everything is in proportion.
        """
        number = self.rung_for(size_bytes)
        lower = self.rungs[number]
        if number == 0 or size_bytes <= lower.bytes:
            return lower
        upper = self.rungs[number - 1]
        part = (size_bytes - lower.bytes) / (upper.bytes - lower.bytes)
        return Rung(
            bytes=size_bytes,
            step_s=lower.step_s + part * (upper.step_s - lower.step_s),
            curve=tuple(
                int(low + part * (high - low))
                for low, high in zip(lower.curve, upper.curve, strict=True)
            ),
            copied_bytes=int(lower.copied_bytes + part * (upper.copied_bytes - lower.copied_bytes)),
            copy_s=lower.copy_s + part * (upper.copy_s - lower.copy_s),
        )

    def speed_with(self, size_bytes: int) -> float:
        """Of a step with so many bytes, over a step with all the memory it wants."""
        return self.rungs[0].step_s / self.predicted(size_bytes).step_s

    def rung_for(self, size_bytes: int) -> int:
        """The highest rung that so many bytes are enough for; the lowest where none is."""
        for number, rung in enumerate(self.rungs):
            if rung.bytes <= size_bytes:
                return number
        return len(self.rungs) - 1


def declared(size_bytes: int) -> Profile:
    """Of a job that says how much it takes and cannot do with less."""
    return Profile(rungs=(Rung.flat(size_bytes),))


def together(profiles: Sequence[Profile]) -> Profile:
    """Of a job whose steps are of several kinds, which all have to fit: nobody knows which comes
    next, so its curves are flat, and its step takes and copies the mean of what theirs do.
    """
    if len(profiles) == 1:
        return profiles[0]
    least_bytes = max(profile.minimum_bytes for profile in profiles)
    sizes = {rung.bytes for profile in profiles for rung in profile.rungs}
    rungs: list[Rung] = []
    for size in sorted(sizes, reverse=True):
        if size >= least_bytes:
            theirs = [profile.rungs[profile.rung_for(size)] for profile in profiles]
            mean = replace(
                Rung.flat(size, sum(rung.step_s for rung in theirs) / len(theirs)),
                copied_bytes=sum(rung.copied_bytes for rung in theirs) // len(theirs),
                copy_s=sum(rung.copy_s for rung in theirs) / len(theirs),
            )
            rungs.append(mean)
    return Profile(rungs=tuple(rungs))
