"""Whatever happens on a shared device: what its coordinator promises holds after every event."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from typing import ClassVar

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)

from helpers.random_profiles import triangle
from tensile.coordinator import Coordinator, Member, Profile, Share
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

MOST_JOBS = 5


@dataclass
class Simulated:
    """A job that does as it is told, once it hears it. `lease` is what it believes in, `target`
    what it was told last, and `number` the order in which the coordinator heard of it; 0 for one
    that came back with bytes. One that `is_stopped` hears and says nothing; `is_deaf` is one whose
    question was lost.
    """

    member: Member
    number: int
    lease: int = 0
    target: Target | None = None
    admitted: bool = False
    is_stopped: bool = False
    is_deaf: bool = False
    inbox: list[Command] = field(default_factory=list)
    began_s: float | None = None
    periods_s: list[float] = field(default_factory=list)

    @property
    def minimum(self) -> int:
        return self.member.profile.minimum_bytes

    @property
    def kept(self) -> int:
        """Of its lease, through a step: what it may plan for, which is what it has between two. Of
        steps that are interlocked, what it is told to keep, as far as its curve comes down to that.
        """
        if self.target is None:
            return self.lease
        if self.target.keeps_bytes is None:
            return max(self.target.cap_bytes, self.minimum)
        curve = self.member.profile.predicted(self.target.cap_bytes).curve
        return max(self.target.keeps_bytes, min(curve), self.minimum)


profiles = st.builds(
    lambda peak, low, step: Profile(
        rungs=tuple(
            rung
            for rung in (
                triangle(peak, min(low, peak), step),
                triangle(low, min(low, peak) // 2 + 1, 2 * step),
            )[: 2 if low < peak else 1]
        )
    ),
    st.integers(50, 1100),
    st.integers(20, 600),
    st.sampled_from([0.5, 1.0, 1.05]),
)
numbers = st.integers(0, 9)


class Sharing(RuleBasedStateMachine):
    """Arrivals, growth, drifts, deaths, stops, commands that are lost with their connection,
    coordinators and devices that are replaced, and a clock that jumps and stands still.
    """

    counts: ClassVar[Counter[str]] = Counter()

    def __init__(self) -> None:
        super().__init__()
        self.now_s, self.device = 0.0, 1000
        self.coordinator = Coordinator(self.device)
        self.jobs: dict[str, Simulated] = {}
        self.away: list[str] = []  # that hold bytes the coordinator has not heard of yet
        self.came = self.numbered = self.overdraft = 0
        self.short: set[str] = set()  # whose minimum has risen over what it has
        self.said: dict[str, Target] = {}  # last, to each on the device, whether heard or lost

    # what is said and heard

    def tell(self, event: Event, *, lost_to: str | None = None) -> tuple[Command, ...]:
        waiting = {name: job for name, job in self.jobs.items() if not job.admitted}
        commands = self.coordinator.handle(event, self.now_s)
        over = max(-self.coordinator.free_bytes, 0)
        comes_back = isinstance(event, Joined) and event.holds_bytes > 0
        assert over <= self.overdraft or comes_back, "an overdraft only shrinks"
        self.overdraft = over
        self.counts["overdrafts"] += over > 0
        for command in commands:
            if isinstance(command, Admitted) and command.job in waiting and not comes_back:
                self.passes_nobody_it_should_not(command.job, waiting)
            if isinstance(command, Target):
                self.said[command.job] = command
        for command in commands:
            job = self.jobs[command.job]
            if command.job == lost_to:
                self.counts[f"lost {type(command).__name__}"] += 1
                job.is_deaf |= isinstance(command, Renew)
            elif job.is_stopped:
                job.inbox.append(command)
            else:
                self.hears(job, command)
        for name in {command.job for command in commands if isinstance(command, Renew)}:
            if not self.jobs[name].is_stopped and not self.jobs[name].is_deaf:
                self.tell(Renewed(job=name))
        self.note_who_is_short()
        return commands

    def hears(self, job: Simulated, command: Command) -> None:
        match command:
            case Refused() if not job.admitted:
                del self.jobs[command.job]
            case Admitted():
                if not job.admitted:
                    job.lease = command.minimum_bytes
                job.admitted = True
            case Target():
                job.target = command
            case Granted():
                job.lease = command.lease_bytes

    def comes(self, name: str, *, holds: int = 0, lost: bool = False) -> None:
        job = self.jobs[name]
        job.inbox.clear()
        job.began_s, job.periods_s, job.is_deaf = None, [], False
        if holds == 0:
            self.numbered += 1
            job.number, job.lease, job.admitted = self.numbered, 0, False
        else:
            job.number = 0
        event = Joined(member=job.member, holds_bytes=holds)
        self.tell(event, lost_to=name if lost else None)

    def says(self, name: str) -> Simulated:
        """That it does, makes it heard again."""
        self.jobs[name].is_deaf = False
        return self.jobs[name]

    def some(self, number: int, *, admitted: bool = True, stopped: bool = False) -> str | None:
        names = [
            name
            for name, job in self.jobs.items()
            if job.admitted == admitted and job.is_stopped == stopped and name not in self.away
        ]
        return names[number % len(names)] if names else None

    def share(self, name: str) -> Share:
        return next(share for share in self.coordinator.shares(self.now_s) if share.job == name)

    def note_who_is_short(self) -> None:
        for share in self.coordinator.shares(self.now_s):
            if share.lease_bytes >= share.minimum_bytes:
                self.short.discard(share.job)

    def passes_nobody_it_should_not(self, name: str, waiting: dict[str, Simulated]) -> None:
        """Who is let in comes before all who wait on, but for those who would not fit beside the
        jobs that were there before them.
        """
        passer = self.jobs[name]
        shares = {share.job: share for share in self.coordinator.shares(self.now_s)}
        for other_name, other in waiting.items():
            if other_name not in shares or shares[other_name].admitted:
                continue
            ahead = (-other.member.priority, other.number), (-passer.member.priority, passer.number)
            if ahead[0] > ahead[1]:
                continue
            before = sum(
                max(
                    share.lease_bytes if share.message.startswith("SILENT") else 0,
                    share.minimum_bytes,
                )
                for share in shares.values()
                if self.jobs[share.job].number < other.number and share.job != name
            )
            assert before + other.minimum > self.device
            self.counts["passed"] += 1

    # what happens

    @rule(profile=profiles, priority=st.integers(0, 1), weight=st.sampled_from([0.5, 1.0, 2.0]))
    @precondition(lambda self: len(self.jobs) < MOST_JOBS)
    def arrives(self, profile: Profile, priority: int, weight: float) -> None:
        name = f"job{self.came}"
        self.came += 1
        member = Member(job=name, profile=profile, priority=priority, weight=weight)
        self.jobs[name] = Simulated(member, number=0)
        self.comes(name)

    @rule(number=numbers, stopped=st.booleans())
    def ends(self, number: int, stopped: bool) -> None:
        name = self.some(number, stopped=stopped)
        if name is not None:
            del self.jobs[name]
            self.said.pop(name, None)
            self.short.discard(name)
            self.tell(Left(job=name))

    @rule(number=numbers, wanted=st.integers(0, 1500), waits=st.booleans(), lost=st.booleans())
    def wants(self, number: int, wanted: int, waits: bool, lost: bool) -> None:
        name = self.some(number)
        if name is not None:
            self.says(name)
            commands = self.tell(
                Wanted(job=name, lease_bytes=wanted, waits=waits), lost_to=name if lost else None
            )
            assert any(isinstance(c, Granted) and c.job == name for c in commands)  # at once

    @rule(number=numbers)
    def steps(self, number: int) -> None:
        name = self.some(number)
        if name is None:
            return
        job = self.says(name)
        commands = self.tell(Beginning(job=name))
        (begin,) = (command for command in commands if isinstance(command, Begin))
        foreseen_s = max(rung.step_s for rung in job.member.profile.rungs)
        if job.began_s is not None and self.now_s > job.began_s:
            job.periods_s.append(self.now_s - job.began_s)
        seen_s = min(job.periods_s[-3:]) if len(job.periods_s) >= 3 else foreseen_s
        assert 0 <= begin.after_s <= max(foreseen_s, seen_s)
        assert 0 <= begin.patience_s <= max(foreseen_s, seen_s) / 8
        job.began_s = self.now_s + begin.after_s
        self.complies(name)

    @rule(number=numbers, profile=profiles, outgrew=st.booleans(), lost=st.booleans())
    def drifts(self, number: int, profile: Profile, outgrew: bool, lost: bool) -> None:
        name = self.some(number)
        if name is None:
            return
        job = self.says(name)
        before = {share.job: share.cap_bytes for share in self.coordinator.shares(self.now_s)}
        member = Member(
            job=name, profile=profile, priority=job.member.priority, weight=job.member.weight
        )
        event = Drifted(member=member, outgrew=outgrew)
        commands = self.tell(event, lost_to=name if lost else None)
        if any(isinstance(command, Refused) and command.job == name for command in commands):
            self.counts["refused drifts"] += 1
            return
        job.member = member
        if self.share(name).lease_bytes < job.minimum:
            self.short.add(name)
        told = {c.job for c in commands if isinstance(c, Target)} - {name}
        self.counts["neighbours kept"] += outgrew and len(before) > 1 and not told

    @rule(number=numbers)
    def stops(self, number: int) -> None:
        name = self.some(number)
        if name is not None:
            self.jobs[name].is_stopped = True

    @rule(number=numbers)
    def goes_on(self, number: int) -> None:
        name = self.some(number, stopped=True)
        if name is not None:
            self.continues(name)

    @rule(
        passes_s=st.sampled_from([0.0, 0.1, 5.0, 11.0, 21.0, 86_400.0]),
        number=numbers,
        lost=st.booleans(),
    )
    def time_passes(self, passes_s: float, number: int, lost: bool) -> None:
        self.now_s += passes_s
        self.tell(Ticked(), lost_to=self.some(number) if lost else None)

    @rule(number=numbers)
    def loses_its_connection(self, number: int) -> None:
        """With what it was told on the way; it comes back with what it believes in."""
        name = self.some(number)
        if name is not None:
            believed = self.jobs[name].lease
            self.tell(Left(job=name), lost_to=name)
            self.short.discard(name)
            self.comes(name, holds=believed, lost=number % 2 == 0)
            if believed < self.jobs[name].minimum:
                self.short.add(name)

    @rule(number=numbers, late=numbers, device=st.sampled_from([600, 1000, 1000, 1400]))
    def is_replaced(self, number: int, late: int, device: int) -> None:
        """The coordinator died, or its device changed: a new one learns from the jobs what they
        hold. Those that are stopped, and some others, are late.
        """
        self.device, self.overdraft, self.said = device, 0, {}
        self.coordinator = Coordinator(device, opens_at_s=self.now_s + 1)
        self.short.clear()
        names = [name for name, job in self.jobs.items() if job.admitted]
        self.away = [name for name in names if self.jobs[name].is_stopped] + names[:late]
        for name in (*names[number % 3 :], *names[: number % 3]):
            if name not in self.away:
                self.returns(name)
        for name in [name for name, job in self.jobs.items() if not job.admitted]:
            self.comes(name)
        self.now_s += 1
        self.tell(Ticked())

    @rule(number=numbers)
    @precondition(lambda self: self.away)
    def is_late(self, number: int) -> None:
        name = self.away[number % len(self.away)]
        if name in self.jobs:
            self.counts["late"] += 1
            self.jobs[name].is_stopped = False
            self.returns(name)

    def returns(self, name: str) -> None:
        job = self.jobs[name]
        self.away = [other for other in self.away if other != name]
        for command in job.inbox:  # from the last coordinator, before its connection closed
            if not isinstance(command, Renew):
                self.hears(job, command)
        self.comes(name, holds=job.lease)
        if self.share(name).lease_bytes < job.minimum:
            self.short.add(name)

    def continues(self, name: str) -> None:
        job = self.jobs[name]
        job.is_stopped = False
        heard, job.inbox = job.inbox, []
        for command in heard:
            self.hears(job, command)
        if any(isinstance(command, Renew) for command in heard):
            self.tell(Renewed(job=name))

    def complies(self, name: str) -> None:
        job = self.jobs[name]
        if job.kept < job.lease:
            job.lease = job.kept
            self.tell(Returned(job=name, lease_bytes=job.lease))

    # what holds

    @invariant()
    def nobody_believes_in_more_than_is_counted_and_all_is_within_the_device(self) -> None:
        shares = {share.job: share for share in self.coordinator.shares(self.now_s)}
        leases = sum(share.lease_bytes for share in shares.values())
        assert leases <= self.device + self.overdraft
        for name, job in self.jobs.items():
            if name not in self.away:
                assert job.lease <= shares[name].lease_bytes
                assert shares[name].admitted or shares[name].lease_bytes == 0

    @invariant()
    def everybody_owns_its_minimum_but_for_those_whose_minimum_has_risen(self) -> None:
        for share in self.coordinator.shares(self.now_s):
            if share.admitted:
                assert share.lease_bytes >= share.minimum_bytes or share.job in self.short
                assert share.cap_bytes >= share.minimum_bytes

    @invariant()
    def caps_fit_the_device_where_the_minima_do_and_steps_are_not_interlocked(self) -> None:
        here = [share for share in self.coordinator.shares(self.now_s) if share.admitted]
        silent = {share.job for share in here if share.message.startswith("SILENT")}

        def total(what: str) -> int:
            return sum(
                max(share.lease_bytes if share.job in silent else 0, getattr(share, what))
                for share in here
            )

        interlocked = any(target.keeps_bytes is not None for target in self.said.values())
        if total("minimum_bytes") <= self.device and not interlocked:
            assert total("cap_bytes") <= self.device

    @invariant()
    def only_who_cannot_answer_is_silent(self) -> None:
        for share in self.coordinator.shares(self.now_s):
            if share.message.startswith("SILENT"):
                self.counts["silent"] += 1
                job = self.jobs[share.job]
                assert job.is_stopped or job.is_deaf
                assert share.cap_bytes == share.minimum_bytes

    def teardown(self) -> None:
        """Once everybody obeys and ends, all who wait come in, and all have their minima, though
        newcomers of their priority or a lower one keep coming.
        """
        for name in list(self.jobs):
            if name in self.away:
                self.jobs[name].is_stopped = False
                self.returns(name)
            elif self.jobs[name].is_stopped:
                self.continues(name)
        waited = [name for name, job in self.jobs.items() if not job.admitted]
        for _ in range(8 * MOST_JOBS):
            self.now_s += 2
            self.tell(Ticked())
            for name, job in list(self.jobs.items()):
                if self.share(name).admitted:  # what was lost with a connection is said again
                    job.admitted, job.target = True, self.said[name]
                    job.lease = self.share(name).lease_bytes
                    self.says(name)
                    self.tell(Renewed(job=name))
                    self.complies(name)
            shares = [share for share in self.coordinator.shares(self.now_s) if share.admitted]
            if sum(share.minimum_bytes for share in shares) <= self.device:
                assert not [s for s in shares if s.lease_bytes < s.minimum_bytes]
            if not any(name in self.jobs and not self.jobs[name].admitted for name in waited):
                return
            self.arrives_small()
            self.ends(0, False)
        raise AssertionError(self.coordinator.shares(self.now_s))

    def arrives_small(self) -> None:
        name = f"job{self.came}"
        self.came += 1
        profile = Profile(rungs=(triangle(60, 30, 1.0),))
        self.jobs[name] = Simulated(Member(job=name, profile=profile), number=0)
        self.comes(name)


def test_what_is_promised_holds_whatever_happens() -> None:
    prove(examples=350)


@pytest.mark.long
def test_what_is_promised_holds_for_long() -> None:
    prove(examples=1500)


def prove(examples: int) -> None:
    """And that all of it did happen."""
    Sharing.counts.clear()
    run_state_machine_as_test(
        Sharing,
        settings=settings(
            max_examples=examples, stateful_step_count=40, deadline=None, derandomize=True
        ),
    )
    for what in (
        *("lost Target", "lost Granted", "lost Renew"),
        *("overdrafts", "passed", "refused drifts", "neighbours kept", "late", "silent"),
    ):
        assert Sharing.counts[what] > 0, (what, Sharing.counts)
