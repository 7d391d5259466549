"""One device's bytes, shared: a state machine without clock, threads or sockets.

Why the leases never sum to more than the device: a lease grows in `_grow` and begins in `_let_in`
only, by what is free, and falls only when a job says that it holds no more, or is gone. A cap that
falls is a wish. The one exception is an overdraft: who holds bytes comes back to a new coordinator
of the same device, late or to a smaller device, and is counted with what it holds, since the bytes
are there whatever is counted. While leases sum to more than the device nobody grows and nobody is
let in, so an overdraft only shrinks, by each return and each end, until the next one comes back.
Caps are divided as ever meanwhile: they sum to the device again where the minima fit it.

Why nobody waits for ever inside a step: a job owns the minimum of its profile from `Admitted` to
`Left`, and a plan has certified that a step ends with that alone. Asking for more is answered at
once, with more or with the same. Whoever then waits for others to return what is over does so for
the `patience_s` of its step at most, an eighth of it, and goes on with what it has; so two that
wait for each other both go on. The wait before a step begins is shorter than a step, as that was
foreseen or was of late. A lease is below the minimum only of a job whose minimum has risen: it
`Drifted`, or comes back as another than the one that was let in. It steps with what it has, as it
did so far, and what becomes free is its before anybody's; the others return what is over within a
step: over their caps, which leave room for it; where steps are interlocked, in which caps leave no
room, over what they keep (`Target`), as far as their curves come down to that.

Why a lease has a time to live: a job that says nothing for a while is asked whether it is there.
Its thread that listens answers, however long its step takes; so a job that does not answer is
stopped, not slow, and at TTL_S after its last word it is SILENT: its cap is its minimum, and the
others are divided what it neither holds nor owns. Its bytes are still there, so nobody gets them:
only its end frees them, and its next word makes it what it was. Nobody is silent who was not
asked, and nothing runs out but at a tick, when all that was said by then has been heard; so a clock
that jumps forward costs at most a moment of silence.

Why every newcomer comes in: those who wait are served by priority, then in their order. While one
waits, nobody grows beyond the cap that was computed with it, and each job returns what is over
within a step. Who waits for the end of a job that was here before it came may be passed by those
who fit meanwhile; once only jobs that came after it are in its way nobody passes it any more. So
each waits for the ends of those who were before it and of those who had passed by then, and for no
later ones, of its priority or a lower one: a stream of newcomers of a higher priority is served
before it for as long as it lasts. That is what a priority is for.

The channel to the lower tier is divided too, where all together would keep it busier than it can be
(`channel.py`), and jobs that compute beside one of a higher priority are told to yield to it.
"""

from __future__ import annotations

from collections.abc import Sequence

from tensile.coordinator.apportion import Division, apportion
from tensile.coordinator.channel import copy_limits
from tensile.coordinator.interlock import PATIENCE, wait_s
from tensile.coordinator.job import Job, at_minima
from tensile.coordinator.job import Share as Share
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
    Renew,
    Renewed,
    Returned,
    Target,
    Ticked,
    Wanted,
)
from tensile.coordinator.sentences import outgrown, owes, too_large, why_waiting

TTL_S = 30.0  # for so long after a job's last word its lease is good
_ASKED_AFTER_S = 10.0  # of them it is asked whether it is there


class Coordinator:
    """`handle` takes an event and the time, in seconds of one clock that never goes back, and gives
    the commands that follow. Jobs with holdings may come back until `opens_at_s`; others are
    admitted after it.
    """

    def __init__(self, device_bytes: int, opens_at_s: float = 0.0) -> None:
        self.device_bytes = device_bytes
        self._opens_at_s = opens_at_s
        self._admitted: dict[str, Job] = {}
        self._waiting: dict[str, Job] = {}
        self._came = 0
        self._interlocked = False

    def handle(self, event: Event, now_s: float) -> tuple[Command, ...]:
        """Raises KeyError for a job that never joined or has left."""
        answer: list[Command] = []
        try:
            self._take(event, now_s, answer)
            self._let_in(now_s, answer)
        except BaseException:
            for job in self._admitted.values():
                job.told = None  # what was to be said is not: it will be, with the next word
            raise
        return tuple(answer)

    def _take(self, event: Event, now_s: float, answer: list[Command]) -> None:
        match event:
            case Joined():
                self._join(event, now_s, answer)
            case Left():
                self._leave(event, now_s, answer)
            case Wanted():
                job = self._heard(event.job, now_s, answer)
                job.wished_bytes = event.lease_bytes if event.waits else 0
                if now_s >= self._opens_at_s:
                    self._grow(job, event.lease_bytes)
                answer.append(Granted(job=event.job, lease_bytes=job.lease_bytes))
            case Returned():
                job = self._heard(event.job, now_s, answer)
                lower_bytes = max(event.lease_bytes, job.minimum_bytes)
                job.lease_bytes, job.wished_bytes = min(job.lease_bytes, lower_bytes), 0
            case Drifted():
                self._drift(event, now_s, answer)
            case Beginning():
                job = self._heard(event.job, now_s, answer)
                job.wished_bytes = 0
                if job.began_s is not None and now_s > job.began_s:
                    job.periods_s.append(now_s - job.began_s)
                after_s = self._wait_s(job, now_s)
                job.began_s = now_s + after_s
                patience_s = 0.0
                if self._interlocked and job.rung is not None:
                    patience_s = PATIENCE * job.rung.step_s
                answer.append(Begin(job=event.job, after_s=after_s, patience_s=patience_s))
            case Renewed():
                self._heard(event.job, now_s, answer)
            case Ticked():
                self._expire(now_s, answer)

    def shares(self, now_s: float) -> tuple[Share, ...]:
        """All jobs: those on the device, then those that wait, in their order."""
        here = (
            job.share(True, now_s, self._message(job, now_s)) for job in self._admitted.values()
        )
        waiting = (
            job.share(False, now_s, self._why_waiting(job, now_s))
            for job in self._queue()
            if job.name not in self._admitted
        )
        return (*here, *waiting)

    @property
    def free_bytes(self) -> int:
        """Of no lease. Below 0 is an overdraft."""
        return self.device_bytes - sum(job.lease_bytes for job in self._admitted.values())

    # who is on the device

    def _join(self, event: Joined, now_s: float, answer: list[Command]) -> None:
        """Who holds bytes is on the device, whatever else is. Where somebody stands in for it, its
        place is its own, or is kept until there is room for all that it needs.
        """
        name, before = event.member.job, self._admitted.get(event.member.job)
        if event.stands_in and before is not None:
            return  # the job itself was here first
        waits = self._waiting.get(name) if event.stands_in else self._waiting.pop(name, None)
        job = Job(member=event.member, number=self._number(before, event), heard_s=now_s)
        held_bytes = max(event.holds_bytes, 0 if before is None else before.lease_bytes)
        if event.holds_bytes > 0 or held_bytes >= job.minimum_bytes:
            job.lease_bytes = held_bytes
            self._admitted[name] = job
            if not event.stands_in or waits is None:  # else it is the job itself that would hear it
                answer.append(Admitted(job=name, minimum_bytes=job.minimum_bytes))
                answer.append(Granted(job=name, lease_bytes=held_bytes))
        elif job.minimum_bytes > self.device_bytes:
            answer.append(Refused(job=name, reason=too_large(job.member, self.device_bytes)))
        else:
            self._waiting[name] = job
        self._divide(answer)

    def _number(self, before: Job | None, event: Joined) -> int:
        """Who holds bytes was here before everybody who waits."""
        if before is not None:
            return before.number
        if event.holds_bytes > 0:
            return 0
        self._came += 1
        return self._came

    def _leave(self, event: Left, now_s: float, answer: list[Command]) -> None:
        self._waiting.pop(event.job, None)
        left = self._admitted.pop(event.job, None)
        if event.stand_in is not None:
            number = self._came if left is None else left.number
            job = Job(member=event.stand_in, number=number, heard_s=now_s)
            if left is None:
                self._waiting[event.job] = job
            else:
                job.lease_bytes = min(left.lease_bytes, job.minimum_bytes)
                self._admitted[event.job] = job
                answer.append(Granted(job=event.job, lease_bytes=job.lease_bytes))
        self._divide(answer)

    def _let_in(self, now_s: float, answer: list[Command]) -> None:
        """Those who wait, in their order, for as long as their minima are free; then everybody
        grows to its cap, where caps need not be asked for. Nothing of it before all are back.
        """
        if now_s < self._opens_at_s:
            return
        for job in self._queue():
            if job.portion is None:
                continue  # it waits for somebody's end, or behind one who does not
            missing_bytes = sum(other.missing_bytes for other in self._admitted.values())
            if self._needed_bytes(job) > self.free_bytes - missing_bytes:
                break
            del self._waiting[job.name]
            job.lease_bytes, job.heard_s = job.minimum_bytes, now_s
            self._admitted[job.name] = job
            answer.append(Admitted(job=job.name, minimum_bytes=job.minimum_bytes))
            self._tell_all(answer)
            answer.append(Granted(job=job.name, lease_bytes=job.lease_bytes))
        untold = False
        for job in self._admitted.values():
            wanted_bytes = job.cap_bytes
            if self._interlocked:
                wanted_bytes = max(job.minimum_bytes, job.wished_bytes)
            is_untold = job.told is None and job.portion is not None
            if self._grow(job, wanted_bytes) or is_untold:
                answer.append(Granted(job=job.name, lease_bytes=job.lease_bytes))
            untold = untold or is_untold
        if untold:
            self._tell_all(answer)

    def _queue(self) -> list[Job]:
        return sorted(self._waiting.values(), key=lambda job: -job.member.priority)

    def _needed_bytes(self, job: Job) -> int:
        """Of the device's free ones, by who waits: what is held for it is its own."""
        stand_in = self._admitted.get(job.name)
        return job.minimum_bytes - (0 if stand_in is None else stand_in.lease_bytes)

    def _may_be_passed(self, job: Job, others: Sequence[Job]) -> bool:
        """Whether it would wait even if, of the others, nobody had come after it."""
        before_bytes = sum(other.least_bytes for other in others if other.number < job.number)
        return before_bytes + job.minimum_bytes > self.device_bytes

    # whose lease runs out

    def _heard(self, name: str, now_s: float, answer: list[Command]) -> Job:
        job = self._admitted[name]
        if job.heard(now_s):
            self._divide(answer)
        return job

    def _expire(self, now_s: float, answer: list[Command]) -> None:
        expired = False
        for job in self._admitted.values():
            if job.asked_s is None:
                if now_s - job.heard_s >= _ASKED_AFTER_S:
                    job.asked_s = now_s
                    answer.append(Renew(job=job.name))
            elif not job.is_silent and now_s - job.asked_s >= TTL_S - _ASKED_AFTER_S:
                job.is_silent = expired = True
        if expired:
            self._divide(answer)

    # who may hold what

    def _divide(self, answer: list[Command]) -> None:
        """New caps for all who are here, and for as many of those who wait as fit with them."""
        jobs = list(self._admitted.values())
        division = self._division(jobs)
        for job in self._waiting.values():
            job.portion = None
        for job in self._queue():
            others = [other for other in jobs if other.name != job.name]
            larger = self._division([*others, job])
            if larger is not None:
                jobs, division = [*others, job], larger
            elif not self._may_be_passed(job, others):
                break
        self._interlocked = division is not None and division.interlocked
        portions = at_minima(jobs) if division is None else division.portions
        for job, portion in zip(jobs, portions, strict=True):
            job.portion, job.outgrew = portion, False
            if not self._interlocked:  # nobody says when it begins a step
                job.began_s = None
                job.periods_s.clear()
        self._tell_all(answer)

    def _division(self, jobs: Sequence[Job]) -> Division | None:
        return apportion([job.counted for job in jobs], self.device_bytes)

    def _drift(self, event: Drifted, now_s: float, answer: list[Command]) -> None:
        """Its minimum becomes what it owns, as far as there is room; a larger one comes by and by
        (`_grow`). Who outgrew what was foreseen is no reason for its neighbours to have less, as
        long as its minimum fits beside what they have; and none for those who wait to be let in,
        unless its minimum is smaller than it was.
        """
        name, member = event.member.job, event.member
        waits = self._waiting.get(name)
        if waits is not None:
            if member.profile.minimum_bytes > self.device_bytes:
                answer.append(Refused(job=name, reason=too_large(member, self.device_bytes)))
                return
            waits.member = member
            self._divide(answer)
            return
        job = self._heard(name, now_s, answer)
        others_bytes = sum(j.least_bytes for j in self._admitted.values() if j is not job)
        least_bytes = member.profile.minimum_bytes
        if least_bytes > max(self.device_bytes - others_bytes, job.minimum_bytes):
            room_bytes = self.device_bytes - others_bytes
            answer.append(Refused(job=name, reason=outgrown(member, others_bytes, room_bytes)))
            return
        leaves_room = least_bytes < job.minimum_bytes
        job.member = member
        if leaves_room or not (event.outgrew and self._divide_rest(job)):
            self._divide(answer)
        self._tell_all(answer)

    def _divide_rest(self, job: Job) -> bool:
        """Among all who outgrew what was foreseen since the last division, what the others' caps
        leave; False where that is not enough for them.
        """
        job.outgrew = True
        here = (*self._admitted.values(), *self._waiting.values())
        outgrown = [each for each in here if each.outgrew]
        kept_bytes = sum(
            each.portion.cap_bytes for each in here if not each.outgrew and each.portion is not None
        )
        division = apportion([each.counted for each in outgrown], self.device_bytes - kept_bytes)
        if self._interlocked or division is None or division.interlocked:
            return False
        for each, portion in zip(outgrown, division.portions, strict=True):
            each.portion = portion
        return True

    def _grow(self, job: Job, wanted_bytes: int) -> bool:
        """Up to its cap, and by what is free and not promised to others: to their minima, or to the
        next one who waits. Its own minimum is promised to nobody else.
        """
        promised_bytes = sum(self._needed_bytes(j) for j in self._waiting.values() if j.portion)
        promised_bytes += sum(j.missing_bytes for j in self._admitted.values() if j is not job)
        own_bytes = min(job.missing_bytes, self.free_bytes)
        more_bytes = min(
            min(wanted_bytes, job.cap_bytes) - job.lease_bytes,
            max(self.free_bytes - promised_bytes, own_bytes),
        )
        if more_bytes <= 0:
            return False
        job.lease_bytes += more_bytes
        return True

    def _wait_s(self, job: Job, now_s: float) -> float:
        """Steps of jobs that are interlocked begin when their curves fit between the others'."""
        mine = job.rung
        if not self._interlocked or mine is None:
            return 0.0
        room_bytes = self.device_bytes
        others = []
        for other in self._admitted.values():
            if other.is_silent:
                room_bytes -= other.least_bytes
            elif other is not job and other.began_s is not None and other.rung is not None:
                others.append((other.rung, now_s - other.began_s))
        return wait_s(mine, others, room_bytes)

    # words

    def _tell_all(self, answer: list[Command]) -> None:
        """Those on the device, of what they may do beside each other."""
        jobs = list(self._admitted.values())
        limits = copy_limits([job.claim for job in jobs])
        highest = max((job.member.priority for job in jobs), default=0)
        for job, copy_share in zip(jobs, limits, strict=True):
            self._tell(job, copy_share, job.member.priority < highest, answer)

    def _tell(
        self, job: Job, copy_share: float | None, yields: bool, answer: list[Command]
    ) -> None:
        """What to plan for, where that is news. What an interlocked job keeps is what the others'
        caps leave of the device anyway.
        """
        portion, keeps_bytes = job.portion, None
        if portion is None:
            return
        if self._interlocked:
            jobs = (*self._admitted.values(), *self._waiting.values())
            caps = sum(each.portion.cap_bytes for each in jobs if each.portion is not None)
            keeps_bytes = max(self.device_bytes - caps + portion.cap_bytes, 0)
        target = Target(
            job=job.name,
            cap_bytes=job.cap_bytes,
            rung=job.rung_number,
            keeps_bytes=keeps_bytes,
            copy_share=copy_share,
            yields=yields,
        )
        if job.told != target:
            job.told = target
            answer.append(target)

    def _message(self, job: Job, now_s: float) -> str:
        if job.is_silent:
            return f"SILENT: it {owes(job, now_s)}; only its next word or its end changes that"
        waits = self._waiting.get(job.name)
        return "" if waits is None else self._why_waiting(waits, now_s)

    def _why_waiting(self, job: Job, now_s: float) -> str:
        if now_s < self._opens_at_s:
            return "waits until the jobs that were here before have come back"
        here = self._admitted.values()
        return why_waiting(self._needed_bytes(job), self.free_bytes, here, now_s)
