"""How a job comes back that ended for want of memory: kept to less, beside fewer others, alone.
Pure.

Each of its tries (`dovetail_jobs.lifecycle.MEMORY_TRIES`) goes further than the one before. A job
that shares its device is first kept to a lower rung of its ladder, then to a lower one still and
away from where it ran out, unless fewer are there now, and at last has a device alone. One that had
its device alone goes down its ladder. One that has no lower rung, such as a script that took more
than it declares, has a whole device at once: there it takes no neighbour's bytes.

A job that was ended for holding more than it might has shown that its plans take more than is
foreseen of them. A lower limit would end it again, so it is let on under the rung of its corrected
ladder that has room for what it held.
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
    said. `overrun` is how many times what its plans foresee it held, if it was ended for that.
    """

    attempt: int
    node_id: str
    device: str
    neighbours: int = 0
    limit_bytes: int | None = None
    peak_bytes: int | None = None
    overrun: float | None = None

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


def terms(
    shortages: Sequence[Shortage],
    profile: Profile | None,
    *,
    shares: bool,
    unmanaged: bool = False,
) -> Terms:
    """`shortages` are all of the job's, oldest first, at least one; `profile` is the job's ladder
    as far as it is known, corrected by what was measured. `unmanaged`: nobody keeps it to a rung,
    but tensile would.
    """
    last, ran_out = shortages[-1], tuple(shortages)
    had_room, room_bytes = _room(profile, last)
    if room_bytes is None:
        why = "it has no lower rung" if profile is not None else "its memory is not foreseen"
        if unmanaged:
            why = "nobody moves its memory (with memory: {policy: tensile} it would run under less)"
        sentence = f"{last}; {why}, so it has a device of its own, and all of it"
        return Terms(sentence=sentence, ran_out=ran_out, alone=True)
    if shares and len(shortages) > _SAME_COMPANY + 1:
        times = f"it ran out {len(shortages)} times"
        sentence = f"{last}; {times}, so it has a device of its own, and all of it"
        return Terms(sentence=sentence, ran_out=ran_out, alone=True)
    fewer = shares and len(shortages) > _SAME_COMPANY
    sentence = f"{last}; it is kept to {format_bytes(room_bytes)} now, one rung lower"
    if had_room:
        times = f"its plans are taken to hold {last.overrun:.2f} times what was foreseen of them"
        sentence = f"{last}; {times}, and it is kept to {format_bytes(room_bytes)} now"
    if fewer:
        sentence += ", beside fewer jobs or on another device"
    elif not shares:
        sentence += ", on another device where one is free"
    return Terms(sentence=sentence, ran_out=ran_out, cap_bytes=room_bytes, fewer=fewer)


def _room(profile: Profile | None, last: Shortage) -> tuple[bool, int | None]:
    """What the job comes back with, None for all of a device, and whether that is the rung that has
    room for what it held when it was ended for it. Otherwise it is the highest rung below what it
    had.
    """
    if profile is None:
        return False, None
    if last.overrun is not None and last.peak_bytes is not None:
        wide = [rung.bytes for rung in profile.rungs if rung.bytes >= last.peak_bytes]
        if len(profile.rungs) > 1 and wide:
            return True, wide[-1]
    had_bytes = min(last.limit_bytes or profile.peak_bytes, profile.peak_bytes)
    lower = (rung.bytes for rung in profile.rungs if rung.bytes < had_bytes)
    return False, next(lower, None)


def _jobs(count: int) -> str:
    return "other job" if count == 1 else "other jobs"
