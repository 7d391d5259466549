"""How a job comes back that ended for want of memory: kept to less, beside fewer others, alone.
Pure.

Each of its tries (`dovetail_jobs.lifecycle.MEMORY_TRIES`) goes further than the one before. A job
that shares its device is first kept to a lower rung of its ladder, then to a lower one still and
away from where it ran out, unless fewer are there now, and at last has a device alone. One that had
its device alone goes down its ladder. One that has no lower rung, such as a script that took more
than it declares, has a whole device at once: there it takes no neighbour's bytes.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from dovetail_jobs.units import format_bytes
from tensile.coordinator import Profile

_SAME_COMPANY = 1  # so often a job that shares may meet as many others as before


@dataclass(frozen=True, slots=True, kw_only=True)
class Shortage:
    """An attempt that memory ended on `device` of a node, beside so many `neighbours`.
    `limit_bytes` is what it might hold then, `peak_bytes` the most that it held; None where nobody
    said.
    """

    attempt: int
    node_id: str
    device: str
    neighbours: int = 0
    limit_bytes: int | None = None
    peak_bytes: int | None = None

    def __str__(self) -> str:
        place = f"attempt {self.attempt} ran out of memory on {self.device}"
        if self.neighbours:
            place += f" beside {self.neighbours} {_jobs(self.neighbours)}"
        figures = []
        if self.limit_bytes is not None:
            figures.append(f"might hold {format_bytes(self.limit_bytes)}")
        if self.peak_bytes is not None:
            figures.append(f"held {format_bytes(self.peak_bytes)} at most")
        return f"{place}, where it {' and '.join(figures)}" if figures else place


@dataclass(frozen=True, slots=True, kw_only=True)
class Terms:
    """On which a job is let on again: `cap_bytes` is the most that it may hold, None for what its
    spec says. `alone`: it has a device for itself, and all of it. `ran_out` are the ends that made
    it so; with `fewer`, it joins only fewer others on those devices. `sentence` is for its story.
    """

    sentence: str
    ran_out: tuple[Shortage, ...]
    cap_bytes: int | None = None
    alone: bool = False
    fewer: bool = False

    def on(self, node_id: str, device: str) -> Shortage | None:
        """The newest end on that device."""
        here = (each for each in self.ran_out if (each.node_id, each.device) == (node_id, device))
        return max(here, key=lambda shortage: shortage.attempt, default=None)

    def refusal(self, node_id: str, device: str, neighbours: int) -> str | None:
        """Why it does not join so many others there, as it goes on from the device's name."""
        shortage = self.on(node_id, device)
        if not self.fewer or shortage is None or neighbours < max(shortage.neighbours, 1):
            return None
        return (
            f"is where {shortage}; it joins fewer than {max(shortage.neighbours, 1)} there, and "
            f"{neighbours} {'is' if neighbours == 1 else 'are'} there now"
        )


def terms(shortages: Sequence[Shortage], profile: Profile | None, *, shares: bool) -> Terms:
    """`shortages` are all of the job's, oldest first, at least one; `profile` is the job's ladder
    as far as it is known, corrected by what was measured.
    """
    last, ran_out = shortages[-1], tuple(shortages)
    lower_bytes = _lower_bytes(profile, last.limit_bytes)
    if lower_bytes is None:
        why = "it has no lower rung" if profile is not None else "its memory is not foreseen"
        sentence = f"{last}; {why}, so it has a device of its own, and all of it"
        return Terms(sentence=sentence, ran_out=ran_out, alone=True)
    if shares and len(shortages) > _SAME_COMPANY + 1:
        times = f"it ran out {len(shortages)} times"
        sentence = f"{last}; {times}, so it has a device of its own, and all of it"
        return Terms(sentence=sentence, ran_out=ran_out, alone=True)
    fewer = shares and len(shortages) > _SAME_COMPANY
    sentence = f"{last}; it is kept to {format_bytes(lower_bytes)} now, one rung lower"
    if fewer:
        sentence += ", beside fewer jobs or on another device"
    elif not shares:
        sentence += ", on another device where one is free"
    return Terms(sentence=sentence, ran_out=ran_out, cap_bytes=lower_bytes, fewer=fewer)


def _lower_bytes(profile: Profile | None, limit_bytes: int | None) -> int | None:
    """The highest rung below what the job had; None where there is none."""
    if profile is None:
        return None
    had_bytes = min(limit_bytes or profile.peak_bytes, profile.peak_bytes)
    return next((rung.bytes for rung in profile.rungs if rung.bytes < had_bytes), None)


def _jobs(count: int) -> str:
    return "other job" if count == 1 else "other jobs"
