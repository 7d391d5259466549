"""One device's bytes, shared: a state machine without clock, threads or sockets.

Why the leases never sum to more than the device: a lease grows in `_grow` only, by what is free,
and falls only when a job says that it holds no more, or is gone. A cap that falls is a wish.

Why nobody waits for ever inside a step: a job owns the minimum of its profile from `Admitted` to
`Left`, and a plan has certified that a step ends with that alone. Asking for more is answered at
once, with more or with the same; so no job holds bytes while it waits for another's. The one wait,
before a step begins, holds nothing beyond the lease and is shorter than a step, as that was
foreseen or was of late.

Why every newcomer comes in: those who wait are served by priority, then in their order, and nobody
passes one who does not fit. While one waits, nobody grows beyond the cap that was computed with it,
and each job returns what is over within a step. A job that stops answering keeps its lease, since
its bytes are still there: only its end frees them. Newcomers then wait for it, and are told so.

The channel to the lower tier is divided too, where all together would keep it busier than it can be
(`channel.py`), and jobs that compute beside one of a higher priority are told to yield to it.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, field, replace

from tensile.budget import format_bytes
from tensile.coordinator.apportion import Division, Member, Portion, apportion
from tensile.coordinator.channel import Claim, copy_limits
from tensile.coordinator.interlock import wait_s
from tensile.coordinator.messages import (
    Admitted,
    Begin,
    Beginning,
    Command,
    Drifted,
    Event,
    Granted,
    Joined,
    Left,
    Refused,
    Returned,
    Target,
    Ticked,
    Wanted,
)
from tensile.coordinator.profile import Rung

SILENT_AFTER_S = 10.0
_SEEN = 3  # steps of a job whose times are remembered


@dataclass(frozen=True, slots=True, kw_only=True)
class Share:
    """How one job stands. `lease_bytes` is 0 for one that waits; `message` says why it does."""

    job: str
    admitted: bool
    lease_bytes: int
    cap_bytes: int
    minimum_bytes: int
    rung: int
    rungs: int
    speed: float
    silent_s: float
    message: str


@dataclass(slots=True, kw_only=True)
class _Job:
    member: Member
    heard_s: float
    lease_bytes: int = 0
    portion: Portion | None = None
    told: Target | None = None
    began_s: float | None = None
    periods_s: deque[float] = field(default_factory=lambda: deque(maxlen=_SEEN))

    @property
    def minimum_bytes(self) -> int:
        return self.member.profile.minimum_bytes


class Coordinator:
    """`handle` takes an event and the time, in seconds of one clock that never goes back, and gives
    the commands that follow. Jobs with holdings may come back until `opens_at_s`; others are
    admitted after it.
    """

    def __init__(self, device_bytes: int, opens_at_s: float = 0.0) -> None:
        self.device_bytes = device_bytes
        self._opens_at_s = opens_at_s
        self._admitted: dict[str, _Job] = {}
        self._waiting: dict[str, _Job] = {}
        self._interlocked = False

    def handle(self, event: Event, now_s: float) -> tuple[Command, ...]:
        """Raises KeyError for a job that never joined or has left."""
        answer: list[Command] = []
        match event:
            case Joined():
                self._join(event, now_s, answer)
            case Left():
                self._admitted.pop(event.job, None)
                self._waiting.pop(event.job, None)
                self._divide(answer)
            case Wanted():
                job = self._heard(event.job, now_s)
                if now_s >= self._opens_at_s:
                    self._grow(job, event.lease_bytes)
                lease_bytes = self._admitted[event.job].lease_bytes
                answer.append(Granted(job=event.job, lease_bytes=lease_bytes))
            case Returned():
                job = self._heard(event.job, now_s)
                lower_bytes = max(event.lease_bytes, job.minimum_bytes)
                job.lease_bytes = min(job.lease_bytes, lower_bytes)
            case Drifted():
                self._drift(event.member, now_s, answer)
            case Beginning():
                job = self._heard(event.job, now_s)
                if job.began_s is not None and now_s > job.began_s:
                    job.periods_s.append(now_s - job.began_s)
                after_s = self._wait_s(job, now_s)
                job.began_s = now_s + after_s
                answer.append(Begin(job=event.job, after_s=after_s))
            case Ticked():
                pass
        self._let_in(now_s, answer)
        return tuple(answer)

    def shares(self, now_s: float) -> tuple[Share, ...]:
        """All jobs: those on the device, then those that wait, in their order."""
        return (
            *(self._share(job, True, now_s) for job in self._admitted.values()),
            *(self._share(job, False, now_s) for job in self._queue()),
        )

    @property
    def free_bytes(self) -> int:
        """Of no lease."""
        return self.device_bytes - sum(job.lease_bytes for job in self._admitted.values())

    # who is on the device

    def _join(self, event: Joined, now_s: float, answer: list[Command]) -> None:
        member = event.member
        job = _Job(member=member, heard_s=now_s)
        self._waiting.pop(member.job, None)
        before = self._admitted.pop(member.job, None)
        held_bytes = max(event.holds_bytes, 0 if before is None else before.lease_bytes)
        if held_bytes > 0 and self.free_bytes > 0:
            # One that comes back late may find less than it holds: it gives up what is over.
            job.lease_bytes = min(held_bytes, self.free_bytes)
            self._admitted[member.job] = job
            answer.append(Admitted(job=member.job, minimum_bytes=job.minimum_bytes))
            answer.append(Granted(job=member.job, lease_bytes=job.lease_bytes))
        elif job.minimum_bytes > self.device_bytes:
            answer.append(Refused(job=member.job, reason=self._too_large(job)))
        else:
            self._waiting[member.job] = job
        self._divide(answer)

    def _let_in(self, now_s: float, answer: list[Command]) -> None:
        """Those who wait, in their order, for as long as their minima are free; then everybody
        grows to its cap, where caps need not be asked for. Nothing of it before all are back.
        """
        if now_s < self._opens_at_s:
            return
        for job in self._queue():
            if job.portion is None or job.minimum_bytes > self.free_bytes:
                break
            del self._waiting[job.member.job]
            job.lease_bytes, job.heard_s = job.minimum_bytes, now_s
            self._admitted[job.member.job] = job
            answer.append(Admitted(job=job.member.job, minimum_bytes=job.minimum_bytes))
            self._tell_all(answer)
            answer.append(Granted(job=job.member.job, lease_bytes=job.lease_bytes))
        for job in self._admitted.values():
            wanted_bytes = job.minimum_bytes
            if job.portion is not None and not self._interlocked:
                wanted_bytes = job.portion.cap_bytes
            if self._grow(job, wanted_bytes):
                answer.append(Granted(job=job.member.job, lease_bytes=job.lease_bytes))

    def _queue(self) -> list[_Job]:
        return sorted(self._waiting.values(), key=lambda job: -job.member.priority)

    # who may hold what

    def _divide(self, answer: list[Command]) -> None:
        """New caps for all who are here, and for as many of those who wait as fit with them."""
        jobs = list(self._admitted.values())
        division = self._division(jobs) or Division(portions=(), interlocked=False)
        for job in self._waiting.values():
            job.portion = None
        for job in self._queue():
            larger = self._division([*jobs, job])
            if larger is None:
                break
            jobs.append(job)
            division = larger
        self._interlocked = division.interlocked
        for job, portion in zip(jobs, division.portions, strict=False):
            job.portion = portion
            if not self._interlocked:  # nobody says when it begins a step
                job.began_s = None
                job.periods_s.clear()
        self._tell_all(answer)

    def _tell_all(self, answer: list[Command]) -> None:
        """Those on the device, of what they may do beside each other."""
        jobs = list(self._admitted.values())
        limits = copy_limits([_claim(job) for job in jobs])
        highest = max((job.member.priority for job in jobs), default=0)
        for job, copy_share in zip(jobs, limits, strict=True):
            self._tell(job, copy_share, job.member.priority < highest, answer)

    def _tell(
        self, job: _Job, copy_share: float | None, yields: bool, answer: list[Command]
    ) -> None:
        """What to plan for, where that is news. What an interlocked job keeps is what the others'
        caps leave of the device anyway.
        """
        portion, keeps_bytes = job.portion, None
        if portion is None:
            return
        if self._interlocked:
            jobs = (*self._admitted.values(), *self._waiting.values())
            caps = sum(job.portion.cap_bytes for job in jobs if job.portion is not None)
            keeps_bytes = max(self.device_bytes - caps + portion.cap_bytes, 0)
        target = Target(
            job=portion.job,
            cap_bytes=portion.cap_bytes,
            rung=portion.rung,
            keeps_bytes=keeps_bytes,
            copy_share=copy_share,
            yields=yields,
        )
        if job.told != target:
            job.told = target
            answer.append(target)

    def _division(self, jobs: list[_Job]) -> Division | None:
        return apportion([job.member for job in jobs], self.device_bytes)

    def _drift(self, member: Member, now_s: float, answer: list[Command]) -> None:
        """Its minimum becomes what it owns, as far as there is room; a larger one comes by and by
        (`_grow`), and until then it steps with what it has, as it did so far.
        """
        job = self._heard(member.job, now_s)
        others_bytes = sum(j.minimum_bytes for j in self._admitted.values() if j is not job)
        if others_bytes + member.profile.minimum_bytes > self.device_bytes:
            answer.append(Refused(job=member.job, reason=self._outgrown(member, others_bytes)))
            return
        job.member = member
        self._divide(answer)

    def _grow(self, job: _Job, wanted_bytes: int) -> bool:
        """Up to its cap, and by what is free and not promised to the next one who waits."""
        cap_bytes = job.minimum_bytes if job.portion is None else job.portion.cap_bytes
        promised_bytes = 0
        if job.lease_bytes >= job.minimum_bytes:
            promised_bytes = sum(j.minimum_bytes for j in self._waiting.values() if j.portion)
            promised_bytes += sum(
                max(j.minimum_bytes - j.lease_bytes, 0) for j in self._admitted.values()
            )
        more_bytes = min(
            min(wanted_bytes, cap_bytes) - job.lease_bytes, self.free_bytes - promised_bytes
        )
        if more_bytes <= 0:
            return False
        job.lease_bytes += more_bytes
        return True

    def _wait_s(self, job: _Job, now_s: float) -> float:
        """Steps of jobs that are interlocked begin when their curves fit between the others'."""
        if not self._interlocked or job.portion is None:
            return 0.0
        others = [
            (rung, max(now_s - other.began_s, 0.0))
            for other in self._admitted.values()
            if other is not job and other.began_s is not None
            if (rung := _rung(other)) is not None
        ]
        mine = _rung(job)
        return 0.0 if mine is None else wait_s(mine, others, self.device_bytes)

    # words

    def _heard(self, name: str, now_s: float) -> _Job:
        job = self._admitted[name]
        job.heard_s = now_s
        return job

    def _share(self, job: _Job, admitted: bool, now_s: float) -> Share:
        rung = job.member.profile.rung_for(job.lease_bytes)
        speed = job.member.profile.speed(rung)
        if admitted and job.portion is not None:
            rung, speed = job.portion.rung, job.portion.speed
        return Share(
            job=job.member.job,
            admitted=admitted,
            lease_bytes=job.lease_bytes,
            cap_bytes=job.lease_bytes if job.portion is None else job.portion.cap_bytes,
            minimum_bytes=job.minimum_bytes,
            rung=rung,
            rungs=len(job.member.profile.rungs),
            speed=speed,
            silent_s=now_s - job.heard_s,
            message="" if admitted else self._why_waiting(job, now_s),
        )

    def _why_waiting(self, job: _Job, now_s: float) -> str:
        if now_s < self._opens_at_s:
            return "waits until the jobs that were here before have come back"
        free = format_bytes(max(self.free_bytes, 0))
        needed = f"waits for {format_bytes(job.minimum_bytes)}, of which {free} are free"
        silent = [name for name, j in self._admitted.items() if now_s - j.heard_s > SILENT_AFTER_S]
        return f"{needed}; {', '.join(silent)} did not answer of late" if silent else needed

    def _too_large(self, job: _Job) -> str:
        return (
            f"the least that {job.member.job} can do with is {format_bytes(job.minimum_bytes)}, "
            f"and the device has {format_bytes(self.device_bytes)}"
        )

    def _outgrown(self, member: Member, others_bytes: int) -> str:
        return (
            f"the least that {member.job} can do with turned out to be "
            f"{format_bytes(member.profile.minimum_bytes)}; beside the other jobs' "
            f"{format_bytes(others_bytes)} the device has "
            f"{format_bytes(self.device_bytes - others_bytes)}"
        )


def _claim(job: _Job) -> Claim:
    share = 0.0
    if job.portion is not None:
        share = job.member.profile.predicted(job.portion.cap_bytes).copy_share
    return Claim(share=share, weight=job.member.weight, priority=job.member.priority)


def _rung(job: _Job) -> Rung | None:
    """The one that it is on, with the time that its steps were seen to take: predictions are of the
    work alone. The least of some, since there may be a pause beside any.
    """
    if job.portion is None:
        return None
    rung = job.member.profile.rungs[job.portion.rung]
    return rung if len(job.periods_s) < _SEEN else replace(rung, step_s=min(job.periods_s))
