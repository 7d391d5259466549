"""What is known of the memory of the jobs that are not over, and what the scheduler makes of it.

Nothing of it is stored: after a restart it is asked for again, and the kept forecasts answer.
"""

from __future__ import annotations

import math
import threading
from collections.abc import Collection, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

from dovetail.scheduler.view import Sharing
from dovetail_jobs.memory_terms import above_reserved
from dovetail_jobs.spec import JobSpec
from dovetail_jobs.units import format_bytes
from tensile.coordinator import Profile, declared

_MIB = 2**20
WORTH_SAYING = 1.1  # times what was foreseen: less is within what a forecast can miss by
Provenance = Literal["traced", "measured", "declared"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Foreseen:
    """A job's step peaks at so many bytes, if nothing is done about it; `profile` is what it asks
    of a device that it shares. Where nothing could be found out, `cause` says why. `busy` is the
    highest share of its device that a job of this configuration was measured to keep busy. Of a
    `measured` peak, `traced_bytes` is what had been foreseen, and `raised` how many times that the
    ladder is. Of a script only what it was measured to take is known, if anything is.
    """

    job_id: str
    peak_bytes: int | None = None
    profile: Profile | None = None
    provenance: Provenance = "traced"
    cause: str | None = None
    busy: float | None = None
    traced_bytes: int | None = None
    raised: float = 1.0


def foreseen(job_id: str, answer: dict[str, Any]) -> Foreseen:
    """From a kept forecast. A peak that was measured since corrects all of it, if it is higher than
    the profile's: that has room for what a process takes beside its tensors. So does an overrun.

    Raises KeyError, TypeError or ValueError for an answer that is none.
    """
    if "forecast" not in answer:  # of a script
        return Foreseen(
            job_id=job_id, peak_bytes=int(answer["measured_bytes"]), provenance="measured"
        )
    peak_bytes = answer["forecast"]["peak_bytes"]
    profile = Profile.from_json(answer["profile"]) if "profile" in answer else None
    traced = Foreseen(
        job_id=job_id,
        peak_bytes=peak_bytes,
        profile=profile,
        busy=answer.get("measured_busy"),
    )
    return corrected(traced, answer.get("measured_bytes"), answer.get("measured_overrun"))


def corrected(
    found: Foreseen, measured_bytes: int | None, overrun: float | None = None
) -> Foreseen:
    """By a peak that was measured and by `overrun`, how many times what was traced a plan under a
    limit was measured to hold: where either is higher than what is known, all of it is raised.
    """
    profile = found.profile
    expected_bytes = found.peak_bytes if profile is None else profile.peak_bytes
    if expected_bytes is None:
        return found
    ratio = max((measured_bytes or 0) / expected_bytes, (overrun or 0) / found.raised)
    if ratio <= 1:
        return found
    return replace(
        found,
        peak_bytes=max(measured_bytes or 0, math.ceil(expected_bytes * ratio)),
        profile=None if profile is None else profile.times(ratio),
        provenance="measured",
        traced_bytes=found.traced_bytes or expected_bytes,
        raised=found.raised * ratio,
    )


class Outlooks:
    """Filled by the daemon, read by the use cases too."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._known: dict[str, Foreseen] = {}

    def put(self, found: Foreseen) -> None:
        with self._lock:
            self._known[found.job_id] = found

    def of(self, job_id: str) -> Foreseen | None:
        with self._lock:
            return self._known.get(job_id)

    def forget_all_but(self, job_ids: Collection[str]) -> None:
        with self._lock:
            self._known = {key: found for key, found in self._known.items() if key in job_ids}


def sharing(
    spec: JobSpec, found: Foreseen | None, measured_busy: Sequence[float | None] = ()
) -> Sharing:
    """What the scheduler is told of a job; None is found while it is asked for. How busy it keeps
    its device is the most that was measured, of it or of its configuration; before, all of it.
    """
    known = (*measured_busy, None if found is None else found.busy)
    return Sharing(
        busy=max((share for share in known if share is not None), default=1.0),
        share=spec.resources.share if spec.shares else False,
        profile=_profile(spec, found),
        alone=_alone(spec, found),
        min_speed=spec.resources.min_speed,
        priority=spec.priority,
    )


def on_terms(offered: Sharing, cap_bytes: int | None, alone: bool) -> Sharing:
    """Of a job that ran out of memory and comes back with less of it, or with no neighbours."""
    if alone:
        return replace(offered, share=False, alone="it ran out of memory before")
    if cap_bytes is None or offered.profile is None:
        return offered
    profile = capped(offered.profile, cap_bytes)
    if len(offered.profile.rungs) == 1 and cap_bytes < profile.minimum_bytes:
        profile = declared(cap_bytes)  # it holds no more than it may, whatever one like it took
    return replace(offered, profile=profile)


def warnings(spec: JobSpec, found: Foreseen) -> tuple[str, ...]:
    """What the user should know: that the job cannot share, that an earlier one took more than was
    foreseen, where that decides who it shares a device with, that less is reserved than it will
    want, or than its budget.
    """
    said = []
    if spec.script is not None:
        return _of_a_script(spec, found)
    if spec.family is not None and (alone := _alone(spec, found)) is not None:
        said.append(f"{alone}, so it waits for a device of its own")
    if (more := _more_than_foreseen(spec, found)) is not None:
        said.append(more)
    if (short := _short(spec, found)) is not None:
        said.append(short)
    traced_bytes = found.traced_bytes or found.peak_bytes
    above = above_reserved(spec.memory.budget, spec.resources.memory, traced_bytes)
    if above is not None:
        said.append(above)
    return tuple(said)


def counted_bytes(spec: JobSpec, found: Foreseen | None) -> int | None:
    """Of a script that declares less than one of its command took before: what that took. None
    where what is declared counts.
    """
    declared_bytes, measured_bytes = spec.resources.memory, found.peak_bytes if found else None
    if spec.script is None or not isinstance(declared_bytes, int) or not declared_bytes:
        return None
    if measured_bytes is None or measured_bytes <= declared_bytes:
        return None
    return measured_bytes


def _of_a_script(spec: JobSpec, found: Foreseen) -> tuple[str, ...]:
    measured_bytes = counted_bytes(spec, found)
    if measured_bytes is None:
        return ()
    needed = format_bytes(-(-measured_bytes // _MIB) * _MIB)
    return (
        f"resources.memory: {format_bytes(int(spec.resources.memory))} is less than the "
        f"{format_bytes(measured_bytes)} that the same command took before, which is what is "
        f"counted with; write resources.memory: {needed} or more",
    )


def _more_than_foreseen(spec: JobSpec, found: Foreseen) -> str | None:
    peak_bytes, traced_bytes = found.peak_bytes, found.traced_bytes
    if not spec.shares or peak_bytes is None or traced_bytes is None:
        return None
    if peak_bytes <= WORTH_SAYING * traced_bytes:
        return None
    return (
        f"a job of this configuration took {format_bytes(peak_bytes)}, more than the "
        f"{format_bytes(traced_bytes)} that were foreseen; that is what is counted with"
    )


def _short(spec: JobSpec, found: Foreseen) -> str | None:
    reserved, peak_bytes = spec.resources.memory, found.peak_bytes
    if not isinstance(reserved, int) or peak_bytes is None or reserved >= peak_bytes:
        return None
    peak = f"the forecast peak of {format_bytes(peak_bytes)}"
    if found.provenance == "measured":
        peak = f"the {format_bytes(peak_bytes)} that a job of this configuration took"
    said = f"resources.memory: {format_bytes(reserved)} is below {peak}"
    if spec.memory.policy == "none":
        return (
            f"{said}, and the job is ended where it takes more; reserve more, or use "
            "memory.policy: tensile"
        )
    least_bytes = found.profile.minimum_bytes if found.profile is not None else 0
    if reserved < least_bytes:
        return f"{said}, and below {format_bytes(least_bytes)}, the least that a plan of it keeps"
    return f"{said}; the job is kept to it and pays with time"


def capped(profile: Profile, cap_bytes: int) -> Profile:
    """Of a job that is kept to so many bytes. Its speed counts from the best that they allow."""
    rungs = [rung for rung in profile.rungs if rung.bytes <= cap_bytes]
    return Profile(rungs=tuple(rungs or profile.rungs[-1:]))


def _alone(spec: JobSpec, found: Foreseen | None) -> str | None:
    """Why a job that would share a device cannot."""
    if not spec.shares or _profile(spec, found) is not None:
        return None
    if found is None:
        return "its memory is not foreseen yet"
    return f"its memory cannot be foreseen ({found.cause or 'there is no profile of its step'})"


def _profile(spec: JobSpec, found: Foreseen | None) -> Profile | None:
    """None for a job that keeps to no part of a device, and for one of which nothing is known."""
    reserved = spec.resources.memory
    if spec.script is not None:
        size_bytes = counted_bytes(spec, found) or reserved
        return declared(size_bytes) if isinstance(size_bytes, int) and size_bytes else None
    if spec.memory.policy == "none" or found is None:
        return None
    if found.profile is None:
        return declared(reserved) if isinstance(reserved, int) and reserved else None
    caps = [cap for cap in (reserved, _budget_bytes(spec, found)) if isinstance(cap, int)]
    return capped(found.profile, min(caps)) if caps else found.profile


def _budget_bytes(spec: JobSpec, found: Foreseen) -> int | None:
    budget = spec.memory.budget
    if isinstance(budget, int):
        return budget
    if budget == "auto" or found.peak_bytes is None:
        return None
    return int(found.peak_bytes * float(budget.rstrip("%")) / 100)
