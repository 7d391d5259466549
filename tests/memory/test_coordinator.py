"""Several jobs on one device: leases never sum above it, and everybody gets through."""

from __future__ import annotations

from dataclasses import dataclass, field, replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from helpers import synthetic_trace
from helpers.random_profiles import any_profile, triangle
from helpers.shares import jain
from tensile.allowance import with_allowance
from tensile.coordinator import (
    Coordinator,
    Member,
    Profile,
    Rung,
    Share,
    apportion,
    declared,
    traced,
)
from tensile.coordinator.interlock import interlock, wait_s
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
from tensile.coordinator.profile import SAMPLES
from tensile.costs import Costs
from tensile.floor import floor_bytes
from tensile.forecasting import forecast
from tensile.rungs import ladder as ladder_of
from tensile.sequence import Trace

DEVICE = 1000


def ladder(peak: int, *, base: int | None = None, minimum: int | None = None) -> Profile:
    """Ever fewer bytes for ever longer steps."""
    base = peak // 4 if base is None else base
    minimum = peak // 4 if minimum is None else minimum
    sizes = sorted({peak, *(s for s in (peak * 3 // 4, peak // 2) if s > minimum), minimum})
    rungs = [triangle(size, min(base, size), 1 + (peak - size) / peak) for size in reversed(sizes)]
    return Profile(rungs=tuple(rungs))


# dividing


def test_two_equal_steps_that_interlock_need_three_quarters_of_the_sum_of_their_peaks() -> None:
    rung = triangle(400, 100)
    assert interlock([rung, rung]).peak_bytes <= 0.75 * 800
    assert abs(interlock([rung, rung]).offsets[1] - SAMPLES // 2) <= 1


def test_steps_of_unlike_length_count_with_the_sum_of_their_peaks() -> None:
    assert interlock([triangle(400, 100, 1.0), triangle(400, 100, 1.5)]).peak_bytes == 800


def test_a_step_waits_until_the_other_ones_peak_has_passed_and_not_longer() -> None:
    rung = triangle(400, 100)
    assert wait_s(rung, [(rung, 0.0)], 800) == 0.0
    assert wait_s(rung, [(rung, 0.0)], 600) == pytest.approx(0.4, abs=0.15)
    assert wait_s(rung, [(rung, 0.5)], 600) == 0.0
    assert wait_s(rung, [(rung, 0.0)], 100) == 0.0  # no wait would help


def test_bytes_go_where_they_make_most_speed_and_none_is_left_unused() -> None:
    thrifty = Profile(rungs=(Rung.flat(600, 1.0), Rung.flat(300, 1.01)))
    hungry = Profile(rungs=(Rung.flat(600, 1.0), Rung.flat(300, 2.0)))
    division = apportion(
        [Member(job="thrifty", profile=thrifty), Member(job="hungry", profile=hungry)], DEVICE
    )
    assert division is not None
    assert [p.rung for p in division.portions] == [1, 0]
    assert sum(p.cap_bytes for p in division.portions) == DEVICE


def test_a_high_priority_is_served_before_the_others_get_more_than_their_minimum() -> None:
    members = [Member(job=str(i), profile=ladder(600), priority=int(i == 1)) for i in range(3)]
    division = apportion(members, DEVICE)
    assert division is not None
    assert division.portions[1].speed == 1.0


@given(
    peaks=st.lists(st.integers(40, 900), min_size=1, max_size=4),
    weights=st.lists(st.floats(0.25, 4), min_size=4, max_size=4),
)
def test_a_division_fits_and_nobody_is_below_the_minimum(
    peaks: list[int], weights: list[float]
) -> None:
    members = [
        Member(job=str(i), profile=ladder(peak), weight=weights[i]) for i, peak in enumerate(peaks)
    ]
    division = apportion(members, DEVICE)
    minima = sum(member.profile.minimum_bytes for member in members)
    assert (division is None) == (minima > DEVICE)
    if division is None:
        return
    for member, portion in zip(members, division.portions, strict=True):
        profile = member.profile
        assert profile.minimum_bytes <= portion.cap_bytes <= profile.peak_bytes
        assert profile.rungs[portion.rung].bytes <= portion.cap_bytes
    if division.interlocked:
        rungs = [m.profile.rungs[p.rung] for m, p in zip(members, division.portions, strict=True)]
        assert interlock(rungs).peak_bytes <= DEVICE
    else:
        assert sum(portion.cap_bytes for portion in division.portions) <= DEVICE


members = st.builds(
    Member,
    job=st.just("any"),
    profile=any_profile(),
    weight=st.sampled_from([0.5, 1.0, 2.0]),
    priority=st.integers(0, 1),
)


@given(profile=any_profile(), count=st.integers(2, 5), device=st.integers(100, 4000))
def test_equal_jobs_are_equally_slow(profile: Profile, count: int, device: int) -> None:
    equals = [Member(job=str(i), profile=profile) for i in range(count)]
    division = apportion(equals, device)
    assert (division is None) == (count * profile.minimum_bytes > device)
    if division is not None:
        assert len({portion.cap_bytes for portion in division.portions}) == 1
        assert jain([1 / portion.speed for portion in division.portions]) >= 0.95


@given(
    peak=st.integers(300, 900),
    others=st.lists(st.floats(0.97, 1.03), min_size=2, max_size=2),
    room=st.floats(0.3, 1),
)
def test_alike_jobs_are_almost_equally_slow(peak: int, others: list[float], room: float) -> None:
    peaks = [peak, *(int(peak * ratio) for ratio in others)]
    alike = [Member(job=str(size), profile=ladder(size)) for size in peaks]
    division = apportion(alike, int(room * sum(peaks)))
    assert division is not None
    assert jain([1 / portion.speed for portion in division.portions]) >= 0.95


@given(several=st.lists(members, min_size=1, max_size=5), data=st.data())
def test_neither_order_nor_name_changes_what_anybody_gets(
    several: list[Member], data: st.DataObject
) -> None:
    order = data.draw(st.permutations(range(len(several))))
    first = apportion([replace(m, job=str(i)) for i, m in enumerate(several)], 2 * DEVICE)
    shuffled = [replace(several[i], job=f"other {place}") for place, i in enumerate(order)]
    second = apportion(shuffled, 2 * DEVICE)
    if first is None or second is None:
        assert first is second
        return
    assert first.interlocked == second.interlocked
    for place, i in enumerate(order):
        assert replace(second.portions[place], job=str(i)) == first.portions[i]


@given(several=st.lists(members, min_size=1, max_size=5))
def test_a_higher_priority_is_as_fast_as_if_the_others_had_their_minima_only(
    several: list[Member],
) -> None:
    division = apportion(several, 2 * DEVICE)
    if division is None:
        return
    high = [member for member in several if member.priority == 1]
    left = 2 * DEVICE - sum(m.profile.minimum_bytes for m in several if m.priority == 0)
    fixed = apportion(high, left)
    assert fixed is not None
    if not fixed.interlocked:
        found = [p for m, p in zip(several, division.portions, strict=True) if m.priority == 1]
        for portion, expected in zip(found, fixed.portions, strict=True):
            assert portion.speed >= expected.speed


def test_three_equal_jobs_get_the_same_bytes_where_rungs_would_give_one_of_them_half() -> None:
    equals = [Member(job=name, profile=flat_ladder(900, 300)) for name in "abc"]
    division = apportion(equals, 1700)
    assert division is not None
    assert [portion.cap_bytes for portion in division.portions] == [566, 566, 566]
    assert division.portions[0].speed == pytest.approx(1 / (2 - 266 / 600))


@settings(max_examples=30, deadline=None)
@given(trace=synthetic_trace.traces, costs=synthetic_trace.costs)
def test_a_traced_job_is_a_ladder_whose_curves_reach_what_their_plans_hold(
    trace: Trace, costs: Costs
) -> None:
    profile = traced(trace, costs)
    plans = [with_allowance(plan.peak_bytes) for plan in ladder_of(trace, costs)]
    assert profile.minimum_bytes >= min(floor_bytes(trace), profile.peak_bytes)
    natural_bytes = max(plans[0], with_allowance(forecast(trace).peak_bytes))
    assert profile.peak_bytes == natural_bytes  # eager training's, whose optimizer is not chunked
    assert max(profile.rungs[0].curve) <= natural_bytes
    for rung in profile.rungs[1:]:
        assert max(rung.curve) == rung.bytes
        assert rung.bytes in plans


# one event after the other


def lease_of(coordinator: Coordinator, job: str) -> int:
    return next(share.lease_bytes for share in coordinator.shares(0) if share.job == job)


def flat_ladder(peak: int, minimum: int) -> Profile:
    return Profile(rungs=(Rung.flat(peak, 1.0), Rung.flat(minimum, 2.0)))


def test_a_job_alone_gets_all_that_it_wants_and_gives_way_to_the_next() -> None:
    coordinator = Coordinator(DEVICE)
    first = coordinator.handle(
        Joined(member=Member(job="a", profile=flat_ladder(900, 300))), now_s=0
    )
    assert first == (
        Admitted(job="a", minimum_bytes=300),
        Target(job="a", cap_bytes=900, rung=0),
        Granted(job="a", lease_bytes=300),
        Granted(job="a", lease_bytes=900),
    )
    second = coordinator.handle(
        Joined(member=Member(job="b", profile=flat_ladder(900, 300))), now_s=1
    )
    (told,) = second  # that it has to shrink; the newcomer waits for it
    assert isinstance(told, Target)
    assert (told.job, told.cap_bytes < 900) == ("a", True)
    assert "waits for 300 bytes, of which 100 bytes are free" in coordinator.shares(1)[1].message
    third = coordinator.handle(Returned(job="a", lease_bytes=told.cap_bytes), now_s=2)
    assert third[0] == Admitted(job="b", minimum_bytes=300)
    assert third[-1] == Granted(job="b", lease_bytes=DEVICE - told.cap_bytes)
    last = coordinator.handle(Left(job="b"), now_s=3)
    assert last == (
        Target(job="a", cap_bytes=900, rung=0),
        Granted(job="a", lease_bytes=900),
    )


def test_a_minimum_that_no_device_has_is_refused_with_both_numbers() -> None:
    (refused,) = Coordinator(DEVICE).handle(
        Joined(member=Member(job="a", profile=declared(1200))), now_s=0
    )
    assert isinstance(refused, Refused)
    assert "1.2 KiB" in refused.reason
    assert "1000 bytes" in refused.reason


def test_interlocked_jobs_ask_for_more_and_are_answered_at_once() -> None:
    coordinator = Coordinator(DEVICE)
    profile = Profile(rungs=(triangle(700, 150), triangle(350, 150, 3.0)))
    for name in ("a", "b"):
        told = coordinator.handle(Joined(member=Member(job=name, profile=profile)), now_s=0)
    # what b's cap leaves of the device need not be given back within a step
    assert told == (Target(job="a", cap_bytes=700, rung=0, keeps_bytes=300),)
    assert [share.cap_bytes for share in coordinator.shares(0)] == [700, 700]
    assert coordinator.handle(Ticked(), 0) == ()
    told = coordinator.handle(Returned(job="a", lease_bytes=350), 0)
    assert told[0] == Admitted(job="b", minimum_bytes=350)
    assert coordinator.handle(Wanted(job="a", lease_bytes=650), 1) == (
        Granted(job="a", lease_bytes=650),
    )
    assert coordinator.handle(Wanted(job="b", lease_bytes=600), 1) == (
        Granted(job="b", lease_bytes=350),
    )
    coordinator.handle(Returned(job="a", lease_bytes=400), 1)
    assert coordinator.handle(Wanted(job="b", lease_bytes=600), 1) == (
        Granted(job="b", lease_bytes=600),
    )
    (go,) = coordinator.handle(Beginning(job="a"), 2)
    assert go == Begin(job="a", after_s=0.0)
    (go,) = coordinator.handle(Beginning(job="b"), 2)
    assert isinstance(go, Begin)
    assert 0.2 < go.after_s < 0.7
    told = coordinator.handle(Left(job="b"), 3)
    assert Target(job="a", cap_bytes=700, rung=0) in told  # its cap stays; it need not ask any more


def test_jobs_wait_for_each_other_by_the_steps_that_were_seen_and_not_by_one_long_pause() -> None:
    coordinator = Coordinator(DEVICE)
    profile = Profile(rungs=(triangle(700, 150), triangle(350, 150, 3.0)))
    for name in ("a", "b"):
        coordinator.handle(Joined(member=Member(job=name, profile=profile)), now_s=0)
    coordinator.handle(Returned(job="a", lease_bytes=350), 0)

    def after_s(name: str, now_s: float) -> float:
        (go,) = coordinator.handle(Beginning(job=name), now_s)
        assert isinstance(go, Begin)
        return go.after_s

    assert [after_s("a", now_s) for now_s in (0, 10, 20, 500, 510)] == [0.0] * 5
    assert after_s("b", 510) < 1  # as its own steps are foreseen
    after_s("b", 520)
    after_s("b", 530)
    assert 2 < after_s("b", 540) < 5  # three of its steps took ten seconds
    assert after_s("a", 550) == 0  # the other one has waited for it


def test_a_new_coordinator_waits_for_those_who_were_here_before() -> None:
    coordinator = Coordinator(DEVICE, opens_at_s=5)
    newcomer = Joined(member=Member(job="new", profile=flat_ladder(900, 300)))
    assert coordinator.handle(newcomer, now_s=1) == ()
    back = Joined(member=Member(job="old", profile=flat_ladder(900, 300)), holds_bytes=800)
    told = coordinator.handle(back, now_s=2)
    assert told[:2] == (
        Admitted(job="old", minimum_bytes=300),
        Granted(job="old", lease_bytes=800),
    )
    coordinator.handle(Returned(job="old", lease_bytes=500), now_s=3)
    assert not any(isinstance(c, Admitted) for c in coordinator.handle(Ticked(), now_s=4))
    assert Admitted(job="new", minimum_bytes=300) in coordinator.handle(Ticked(), now_s=5)


def joins(coordinator: Coordinator, name: str, profile: Profile, now_s: float = 0) -> None:
    coordinator.handle(Joined(member=Member(job=name, profile=profile)), now_s)


def share_of(coordinator: Coordinator, name: str, now_s: float = 0) -> Share:
    return next(share for share in coordinator.shares(now_s) if share.job == name)


# leases that run out


def test_a_job_that_says_nothing_is_asked_and_its_answer_renews_its_lease() -> None:
    coordinator = Coordinator(DEVICE)
    joins(coordinator, "quiet", flat_ladder(900, 300))
    asked = []
    for now_s in range(1, 100):  # it computes, and has nothing to say
        commands = coordinator.handle(Ticked(), now_s)
        if Renew(job="quiet") in commands:
            asked.append(now_s)
            assert coordinator.handle(Renewed(job="quiet"), now_s + 0.5) == ()
    assert asked[0] == 10
    assert len(asked) == 9
    joins(coordinator, "new", flat_ladder(900, 300), 100)
    assert share_of(coordinator, "quiet", 100).silent_s == 0
    assert "answer" not in share_of(coordinator, "new", 100).message


def test_a_job_that_does_not_answer_is_silent_keeps_its_bytes_and_is_named() -> None:
    coordinator = Coordinator(DEVICE)
    joins(coordinator, "mute", flat_ladder(900, 300))
    joins(coordinator, "new", flat_ladder(900, 300))
    assert coordinator.handle(Ticked(), 9) == ()
    assert coordinator.handle(Ticked(), 10) == (Renew(job="mute"),)
    assert coordinator.handle(Ticked(), 29) == ()
    assert coordinator.handle(Ticked(), 30) == (Target(job="mute", cap_bytes=300, rung=1),)
    mute = share_of(coordinator, "mute", 40)
    assert (mute.lease_bytes, mute.cap_bytes, mute.silent_s) == (900, 300, 30)
    assert mute.message.startswith("SILENT: it did not answer for 30 s, and keeps 900 bytes")
    assert "mute did not answer for 30 s" in share_of(coordinator, "new", 40).message
    assert not share_of(coordinator, "new", 40).admitted


@pytest.mark.parametrize(
    "word", [Renewed(job="mute"), Wanted(job="mute", lease_bytes=0), Beginning(job="mute")]
)
def test_the_next_word_of_a_silent_job_makes_it_what_it_was(word: Event) -> None:
    coordinator = Coordinator(DEVICE)
    joins(coordinator, "mute", flat_ladder(900, 300))
    before = share_of(coordinator, "mute")
    for now_s in (10, 30):
        coordinator.handle(Ticked(), now_s)
    assert Target(job="mute", cap_bytes=900, rung=0) in coordinator.handle(word, 60)
    assert share_of(coordinator, "mute", 60) == before


def test_others_share_what_a_silent_job_does_not_hold_and_its_end_frees_the_rest() -> None:
    coordinator = Coordinator(DEVICE)
    joins(coordinator, "mute", flat_ladder(500, 100))
    joins(coordinator, "busy", flat_ladder(900, 300))
    for now_s in (10, 30):
        coordinator.handle(Ticked(), now_s)
        coordinator.handle(Renewed(job="busy"), now_s)
    assert share_of(coordinator, "busy", 30).cap_bytes == 500
    joins(coordinator, "new", declared(200), 31)
    assert share_of(coordinator, "busy", 31).cap_bytes == 300  # so it can come in beside both
    coordinator.handle(Returned(job="busy", lease_bytes=300), 32)
    assert share_of(coordinator, "new", 32).admitted
    coordinator.handle(Left(job="mute"), 33)
    assert share_of(coordinator, "busy", 33).lease_bytes == DEVICE - 200


def test_a_clock_that_jumps_makes_nobody_silent_who_was_not_asked() -> None:
    coordinator = Coordinator(DEVICE)
    joins(coordinator, "quiet", flat_ladder(900, 300))
    assert coordinator.handle(Ticked(), 10_000) == (Renew(job="quiet"),)
    assert share_of(coordinator, "quiet", 10_000).message == ""
    assert coordinator.handle(Renewed(job="quiet"), 10_000) == ()


# those who come back with what they hold


def comes_back(
    coordinator: Coordinator, name: str, profile: Profile, holds_bytes: int, now_s: float = 5
) -> tuple[Command, ...]:
    member = Member(job=name, profile=profile)
    return coordinator.handle(Joined(member=member, holds_bytes=holds_bytes), now_s)


def test_a_job_that_comes_back_late_is_counted_with_what_it_holds_and_told_to_hold_less() -> None:
    coordinator = Coordinator(DEVICE)
    joins(coordinator, "new", flat_ladder(950, 200))
    told = comes_back(coordinator, "old", flat_ladder(900, 300), holds_bytes=900)
    assert Granted(job="old", lease_bytes=900) in told
    caps = {command.job: command.cap_bytes for command in told if isinstance(command, Target)}
    assert sum(caps.values()) == DEVICE
    assert caps["old"] >= 300
    assert coordinator.free_bytes == DEVICE - 1850
    joins(coordinator, "third", declared(100), 6)
    assert "hold 850 bytes too much" in share_of(coordinator, "third", 6).message
    assert coordinator.handle(Wanted(job="new", lease_bytes=950), 6) == (
        Granted(job="new", lease_bytes=950),
    )
    for name in ("old", "new"):
        coordinator.handle(
            Returned(job=name, lease_bytes=share_of(coordinator, name, 7).cap_bytes), 7
        )
    assert [share.admitted for share in coordinator.shares(7)] == [True] * 3
    assert coordinator.free_bytes == 0


def test_where_not_even_the_minima_fit_each_is_told_its_own_and_nobody_grows() -> None:
    coordinator = Coordinator(DEVICE)
    joins(coordinator, "new", declared(950))
    told = comes_back(coordinator, "old", flat_ladder(900, 300), holds_bytes=900)
    assert Target(job="old", cap_bytes=300, rung=1) in told
    coordinator.handle(Returned(job="old", lease_bytes=300), 6)
    assert share_of(coordinator, "old", 6).lease_bytes == 300
    coordinator.handle(Left(job="new"), 7)
    assert share_of(coordinator, "old", 7).lease_bytes == 900


# who waits behind whom


def test_who_waits_for_an_earlier_jobs_end_is_passed_by_those_who_fit() -> None:
    coordinator = Coordinator(DEVICE)
    joins(coordinator, "here", declared(500))
    joins(coordinator, "large", declared(900))
    joins(coordinator, "small", declared(160))
    assert share_of(coordinator, "small").admitted
    assert not share_of(coordinator, "large").admitted


def test_who_waits_for_later_jobs_only_is_passed_by_nobody() -> None:
    coordinator = Coordinator(DEVICE)
    joins(coordinator, "here", declared(500))
    joins(coordinator, "large", declared(900))
    joins(coordinator, "small 0", declared(160))
    coordinator.handle(Left(job="here"), 1)
    for number in range(1, 9):
        joins(coordinator, f"small {number}", declared(160))
    assert [s.job for s in coordinator.shares(1) if s.admitted] == ["small 0"]
    coordinator.handle(Left(job="small 0"), 2)
    assert share_of(coordinator, "large", 2).admitted


def test_within_a_priority_the_first_comes_first_and_a_lower_one_waits_while_higher_ones_come() -> (
    None
):
    coordinator = Coordinator(DEVICE)

    def high(number: int) -> Joined:
        return Joined(member=Member(job=f"high {number}", profile=declared(600), priority=1))

    coordinator.handle(high(0), 0)
    joins(coordinator, "low", declared(600))
    for number in range(1, 50):
        coordinator.handle(high(number), number)
        coordinator.handle(Left(job=f"high {number - 1}"), number)
        assert [s.job for s in coordinator.shares(0) if s.admitted] == [f"high {number}"]
    coordinator.handle(Left(job="high 49"), 50)
    assert share_of(coordinator, "low", 50).admitted


# who stands in


def test_what_is_held_for_a_job_stays_until_there_is_room_for_all_that_it_needs() -> None:
    coordinator = Coordinator(DEVICE)
    joins(coordinator, "other", declared(500))
    held = Member(job="script", profile=declared(160))
    coordinator.handle(Joined(member=held, stands_in=True), 0)
    joins(coordinator, "script", declared(700))
    share = share_of(coordinator, "script")
    assert (share.admitted, share.lease_bytes) == (True, 160)
    assert "waits for 540 bytes, of which 340 bytes are free" in share.message
    joins(coordinator, "new", declared(160))
    assert share_of(coordinator, "new").admitted
    coordinator.handle(Left(job="new"), 1)
    told = coordinator.handle(Left(job="other"), 1)
    assert Admitted(job="script", minimum_bytes=700) in told
    assert [(s.job, s.lease_bytes) for s in coordinator.shares(1)] == [("script", 700)]
    told = coordinator.handle(Left(job="script", stand_in=held), 2)
    assert told[0] == Granted(job="script", lease_bytes=160)
    assert share_of(coordinator, "script", 2).message == ""


def test_who_stands_in_for_a_job_that_waits_is_counted_when_it_comes_back() -> None:
    coordinator = Coordinator(DEVICE, opens_at_s=1)
    comes_back(coordinator, "other", declared(700), 700, 0)
    joins(coordinator, "script", declared(400))
    held = Joined(member=Member(job="script", profile=declared(160)), holds_bytes=160)
    told = coordinator.handle(replace(held, stands_in=True), 0.5)
    assert not any(isinstance(command, Admitted | Granted) for command in told)
    assert share_of(coordinator, "script", 2).lease_bytes == 160
    assert Admitted(job="script", minimum_bytes=400) in coordinator.handle(Left(job="other"), 2)


# profiles that were wrong


def test_a_profile_that_was_wrong_is_replaced_and_the_neighbour_keeps_its_minimum() -> None:
    coordinator = Coordinator(DEVICE)
    for name in ("a", "b"):
        coordinator.handle(Joined(member=Member(job=name, profile=flat_ladder(480, 200))), now_s=0)
    wrong = coordinator.handle(
        Drifted(member=Member(job="a", profile=flat_ladder(960, 300))), now_s=1
    )
    assert not any(isinstance(command, Refused) for command in wrong)
    assert lease_of(coordinator, "b") == 480
    (refused,) = coordinator.handle(Drifted(member=Member(job="a", profile=declared(900))), now_s=1)
    assert isinstance(refused, Refused)


# whatever happens


@dataclass
class Simulated:
    """A job that does as it is told, when its messages are delivered."""

    profile: Profile
    lease: int = 0
    cap: int = 0
    admitted: bool = False
    answered: list[Command] = field(default_factory=list)
    began_s: float | None = None
    periods_s: list[float] = field(default_factory=list)


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


class Sharing(RuleBasedStateMachine):
    """Arrivals, growth, drifts, deaths, and commands that never arrive."""

    def __init__(self) -> None:
        super().__init__()
        self.now_s = 0.0
        self.coordinator = Coordinator(DEVICE)
        self.jobs: dict[str, Simulated] = {}
        self.number = 0

    def tell(self, event: Event, *, lost: bool = False) -> tuple[Command, ...]:
        self.now_s += 0.1
        commands = self.coordinator.handle(event, self.now_s)
        for command in commands:
            job = self.jobs[command.job]
            if isinstance(command, Refused) and not job.admitted:
                del self.jobs[command.job]
            elif isinstance(command, Admitted):
                job.admitted = True
            elif isinstance(command, Target) and not lost:
                job.cap = command.cap_bytes
            elif isinstance(command, Granted):
                job.lease = command.lease_bytes
        return commands

    def some(self, number: int, *, admitted: bool = True) -> str | None:
        names = [name for name, job in self.jobs.items() if job.admitted == admitted]
        return names[number % len(names)] if names else None

    @rule(profile=profiles, priority=st.integers(0, 1), weight=st.sampled_from([0.5, 1.0, 2.0]))
    @precondition(lambda self: len(self.jobs) < 5)
    def arrives(self, profile: Profile, priority: int, weight: float) -> None:
        name = f"job{self.number}"
        self.number += 1
        self.jobs[name] = Simulated(profile)
        member = Member(job=name, profile=profile, priority=priority, weight=weight)
        self.tell(Joined(member=member))

    @rule(number=st.integers(0, 9))
    def ends(self, number: int) -> None:
        name = self.some(number)
        if name is not None:
            del self.jobs[name]
            self.tell(Left(job=name))

    @rule(number=st.integers(0, 9), wanted=st.integers(0, 1500), lost=st.booleans())
    def wants(self, number: int, wanted: int, lost: bool) -> None:
        name = self.some(number)
        if name is not None:
            commands = self.tell(Wanted(job=name, lease_bytes=wanted), lost=lost)
            assert isinstance(commands[0], Granted)  # at once, whatever others do
            assert commands[0].job == name

    @rule(number=st.integers(0, 9))
    def steps(self, number: int) -> None:
        name = self.some(number)
        if name is not None:
            (begin, *_) = self.tell(Beginning(job=name))
            assert isinstance(begin, Begin)
            job = self.jobs[name]
            foreseen_s = max(rung.step_s for rung in job.profile.rungs)
            if job.began_s is not None and self.now_s > job.began_s:
                job.periods_s.append(self.now_s - job.began_s)
            seen_s = min(job.periods_s[-3:]) if len(job.periods_s) >= 3 else foreseen_s
            assert 0 <= begin.after_s <= max(foreseen_s, seen_s)
            job.began_s = self.now_s + begin.after_s
            self.complies(name)

    @rule(number=st.integers(0, 9), profile=profiles)
    def drifts(self, number: int, profile: Profile) -> None:
        name = self.some(number)
        if name is not None:
            commands = self.tell(Drifted(member=Member(job=name, profile=profile)))
            if not any(isinstance(c, Refused) and c.job == name for c in commands):
                self.jobs[name].profile = profile

    @rule(number=st.integers(0, 9))
    def dies_and_comes_back(self, number: int) -> None:
        """The coordinator died: a new one learns from the jobs what they hold."""
        names = [name for name, job in self.jobs.items() if job.admitted]
        waiting = [name for name, job in self.jobs.items() if not job.admitted]
        self.coordinator = Coordinator(DEVICE, opens_at_s=self.now_s + 1)
        for name in names[number % 3 :] + names[: number % 3]:
            job = self.jobs[name]
            held, job.began_s, job.periods_s = job.lease, None, []
            self.tell(
                Joined(member=Member(job=name, profile=job.profile), holds_bytes=max(held, 1))
            )
        for name in waiting:
            self.tell(Joined(member=Member(job=name, profile=self.jobs[name].profile)))
        self.now_s += 1
        self.tell(Ticked())

    def complies(self, name: str) -> None:
        job = self.jobs[name]
        if job.cap < job.lease:
            job.lease = max(job.cap, job.profile.minimum_bytes)
            self.tell(Returned(job=name, lease_bytes=job.lease))

    @invariant()
    def leases_sum_to_at_most_the_device(self) -> None:
        leases = {share.job: share.lease_bytes for share in self.coordinator.shares(self.now_s)}
        assert sum(leases.values()) <= DEVICE
        told = {name: job.lease for name, job in self.jobs.items() if job.admitted}
        assert {name: leases[name] for name in told} == told

    @invariant()
    def who_waits_has_nothing(self) -> None:
        for share in self.coordinator.shares(self.now_s):
            assert share.admitted or share.lease_bytes == 0

    def teardown(self) -> None:
        """Once everybody obeys and ends, everybody who waits comes in: nobody starves."""
        for _ in range(2 * len(self.jobs) + 2):
            self.now_s += 2
            self.tell(Ticked())
            for share in self.coordinator.shares(self.now_s):
                if share.job in self.jobs and self.jobs[share.job].admitted:
                    self.jobs[share.job].cap = share.cap_bytes
                    self.complies(share.job)
            done = self.some(0)
            if done is not None:
                del self.jobs[done]
                self.tell(Left(job=done))
        assert self.jobs == {}, self.coordinator.shares(self.now_s)


Sharing.TestCase.settings = settings(
    max_examples=40, stateful_step_count=25, deadline=None, derandomize=True
)
TestSharing = Sharing.TestCase
