"""Several jobs on one device: leases never sum above it, and everybody gets through."""

from __future__ import annotations

import pytest

from helpers.leases import comes_back, joins, share_of
from helpers.random_profiles import triangle
from tensile.coordinator import (
    Coordinator,
    Member,
    Profile,
    Rung,
    declared,
)
from tensile.coordinator.messages import (
    Admitted,
    Begin,
    Beginning,
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

DEVICE = 1000


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
    profile = Profile(rungs=(triangle(700, 150), triangle(250, 150, 3.0)))
    for name in ("a", "b"):
        told = coordinator.handle(Joined(member=Member(job=name, profile=profile)), now_s=0)
    # what b's cap leaves of the device need not be given back within a step
    assert Target(job="a", cap_bytes=700, rung=0, keeps_bytes=300) in told
    assert Admitted(job="b", minimum_bytes=250) in told
    assert [share.cap_bytes for share in coordinator.shares(0)] == [700, 700]
    assert coordinator.handle(Ticked(), 0) == ()
    assert coordinator.handle(Returned(job="a", lease_bytes=350), 0) == ()
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
    assert go == Begin(job="a", after_s=0.0, patience_s=0.125)
    (go,) = coordinator.handle(Beginning(job="b"), 2)
    assert isinstance(go, Begin)
    assert 0.2 < go.after_s < 0.7
    told = coordinator.handle(Left(job="b"), 3)
    assert Target(job="a", cap_bytes=700, rung=0) in told  # its cap stays; it need not ask any more


def test_jobs_wait_for_each_other_by_the_steps_that_were_seen_and_not_by_one_long_pause() -> None:
    coordinator = Coordinator(DEVICE)
    profile = Profile(rungs=(triangle(700, 150), triangle(250, 150, 3.0)))
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
    # about half a step, since three of its steps took ten seconds
    assert after_s("b", 540) == pytest.approx(5, abs=0.7)
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


def test_a_job_that_waits_may_turn_out_to_need_less() -> None:
    coordinator = Coordinator(DEVICE)
    joins(coordinator, "here", declared(700))
    joins(coordinator, "waits", declared(400))
    (refused,) = coordinator.handle(Drifted(member=Member(job="waits", profile=declared(1200))), 1)
    assert isinstance(refused, Refused)
    told = coordinator.handle(Drifted(member=Member(job="waits", profile=declared(300))), 1)
    assert Admitted(job="waits", minimum_bytes=300) in told


def test_a_neighbour_keeps_what_it_has_where_a_job_outgrows_what_was_foreseen() -> None:
    coordinator = Coordinator(760)
    joins(coordinator, "neighbour", flat_ladder(480, 120))
    joins(coordinator, "wrong", flat_ladder(280, 70))
    outgrown = Drifted(member=Member(job="wrong", profile=flat_ladder(560, 140)), outgrew=True)
    assert coordinator.handle(outgrown, 1) == (Target(job="wrong", cap_bytes=280, rung=1),)
    neighbour = share_of(coordinator, "neighbour")
    assert (neighbour.lease_bytes, neighbour.cap_bytes, neighbour.speed) == (480, 480, 1.0)
    coordinator.handle(Left(job="neighbour"), 2)
    assert share_of(coordinator, "wrong").lease_bytes == 560


def test_equal_jobs_that_both_outgrow_what_was_foreseen_have_equal_bytes() -> None:
    coordinator = Coordinator(DEVICE)
    joins(coordinator, "neighbour", flat_ladder(300, 100))
    for name in "ab":
        joins(coordinator, name, flat_ladder(200, 100))
    for name in "ab":
        member = Member(job=name, profile=flat_ladder(600, 150))
        coordinator.handle(Drifted(member=member, outgrew=True), 1)
    assert [s.cap_bytes for s in coordinator.shares(1)] == [300, 350, 350]


def test_who_outgrows_what_was_foreseen_but_needs_less_leaves_room_to_who_waits() -> None:
    coordinator = Coordinator(DEVICE)
    joins(coordinator, "wrong", flat_ladder(900, 450))
    joins(coordinator, "first", declared(600))
    joins(coordinator, "second", declared(200))  # waits for a word of `wrong` only
    member = Member(job="wrong", profile=flat_ladder(950, 50))
    coordinator.handle(Drifted(member=member, outgrew=True), 1)
    coordinator.handle(Returned(job="wrong", lease_bytes=200), 2)
    assert share_of(coordinator, "first").admitted


def test_a_neighbour_gives_way_to_a_minimum_that_has_risen_as_far_as_it_has_to() -> None:
    coordinator = Coordinator(760)
    joins(coordinator, "neighbour", flat_ladder(480, 120))
    joins(coordinator, "wrong", flat_ladder(280, 70))
    outgrown = Drifted(member=Member(job="wrong", profile=flat_ladder(560, 400)), outgrew=True)
    told = coordinator.handle(outgrown, 1)
    assert {command.job for command in told if isinstance(command, Target)} == {
        "neighbour",
        "wrong",
    }
    coordinator.handle(
        Returned(job="neighbour", lease_bytes=share_of(coordinator, "neighbour").cap_bytes), 2
    )
    assert share_of(coordinator, "wrong").lease_bytes >= 400
