"""Sessions on one device: each under what its broker lets it have, whoever comes or goes."""

from __future__ import annotations

import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from helpers.attempts import wait_for
from helpers.invented_costs import COSTS
from helpers.member_sessions import member_of
from helpers.shared_device import SharedDevice, alone, shared_device
from helpers.sharing_process import ROWS
from helpers.small_trainings import Training, contents, differences, language, perceptron
from tensile import LeaseRefused, Membership, PlanError, Session, SessionError, trace
from tensile.coordinator import Member, Share, declared, traced
from tensile.coordinator.broker import Broker
from tensile.coordinator.lease import Lease
from tensile.membership import from_environment

DEVICE_BYTES = 40 * 2**20


@pytest.fixture
def broker(place: Path) -> Iterator[Broker]:
    with Broker(place, DEVICE_BYTES) as broker:
        yield broker


def steps(session: Session, training: Training, count: int) -> int | None:
    """The limit of the last one."""
    for _ in range(count):
        batch = training.batches[len(training.losses) % len(training.batches)]
        with session.step():
            training.step(batch)
    return session.stats().budget_bytes


def reach(session: Session, training: Training, limit_bytes: int) -> None:
    """Steps until one has that limit: what the broker decides is heard a moment later."""
    wait_for("that limit", lambda: steps(session, training, 1) == limit_bytes)


def lease_bytes(broker: Broker, job: str = "mine") -> int:
    return next(share.lease_bytes for share in broker.shares() if share.job == job)


# one session, its neighbours, its broker


def test_a_session_makes_room_for_a_newcomer_and_grows_when_that_leaves_with_the_same_bits(
    broker: Broker, place: Path, tmp_path: Path
) -> None:
    free, training = perceptron(), perceptron()
    training.start()
    with member_of(training, place, tmp_path) as session:
        session.prepare(training.step, training.batches[0], costs=COSTS)
        assert session.forecast is not None
        natural = steps(session, training, 2)
        assert natural is not None
        assert session.forecast.peak_bytes < natural < DEVICE_BYTES
        newcomer = Member(job="new", profile=declared(DEVICE_BYTES - natural * 2 // 3))
        with Lease(place, newcomer) as lease:
            assert not lease.join(0.1)  # nothing is taken from a step that runs, or from none
            reach(session, training, natural * 2 // 3)
            assert lease.join(10)
            assert lease_bytes(broker) == natural * 2 // 3
            assert steps(session, training, 1) == natural * 2 // 3
        reach(session, training, natural)
        assert session.stats().replans >= 2
    wait_for("its end", lambda: broker.shares() == () or None)
    for batch in training.batches:  # without a session it trains on, though all is below
        training.step(batch)
    found, count = contents(training), len(training.losses) - 4
    free.start()
    for batch in [free.batches[number % 4] for number in range(count)] + [*free.batches]:
        free.step(batch)
    assert differences(found, contents(free)) == []


def test_the_broker_knows_what_the_bare_process_holds_from_when_a_session_joins(
    broker: Broker, place: Path, tmp_path: Path
) -> None:
    def told() -> int:
        return next(share.base_bytes or 0 for share in broker.shares())

    training = perceptron()
    training.start()
    with member_of(training, place, tmp_path) as session:
        session.prepare(training.step, training.batches[0], costs=COSTS)
        wait_for("a first word", told)  # before a step: whoever measures it may look already
        for _ in range(3):
            steps(session, training, 1)
            found = session.stats().base_bytes
            wait_for("what it is now", lambda found=found: abs(told() - found) < 2**20 or None)


def test_a_session_that_knows_no_step_has_the_device_alone_until_one_was_observed(
    broker: Broker, place: Path, tmp_path: Path
) -> None:
    training = perceptron()
    with member_of(training, place, tmp_path) as session:
        assert steps(session, training, 1) == DEVICE_BYTES == lease_bytes(broker)
        with Lease(place, Member(job="new", profile=declared(2**20))) as lease:
            assert not lease.join(0.1)
            steps(session, training, 1)
            wait_for("room", lambda: steps(session, training, 1) and lease.join(0.1))
            assert lease_bytes(broker) < DEVICE_BYTES


def test_a_session_that_knows_no_step_keeps_to_what_is_held_for_it(
    broker: Broker, place: Path, tmp_path: Path
) -> None:
    """As a script's that declares its memory: its supervisor stands in for it (`stand_in.py`)."""
    training, declared_bytes = perceptron(), 4 * 2**20
    held = Member(job="mine", profile=declared(declared_bytes))
    with (
        Lease(place, Member(job="other", profile=declared(DEVICE_BYTES // 2))) as other,
        Lease(place, held, stands_in=True) as stand_in,
    ):
        assert other.join(10)
        assert stand_in.join(10)
        with member_of(training, place, tmp_path) as session:
            assert steps(session, training, 1) == declared_bytes == lease_bytes(broker)
            with Lease(place, Member(job="new", profile=declared(declared_bytes))) as newcomer:
                assert newcomer.join(10)
        wait_for("its place", lambda: lease_bytes(broker) == declared_bytes)


def test_bytes_that_the_user_allows_are_all_that_is_asked_for(
    broker: Broker, place: Path, tmp_path: Path
) -> None:
    training = perceptron()
    with member_of(training, place, tmp_path, budget="4MiB") as session:
        assert steps(session, training, 1) == 4 * 2**20 == lease_bytes(broker)
        session.prepare(training.step, training.batches[0], costs=COSTS)
        assert steps(session, training, 1) == 4 * 2**20
        session.set_budget("3MiB")
        reach(session, training, 3 * 2**20)
        wait_for("the rest to be free", lambda: lease_bytes(broker) == 3 * 2**20)
        lower = session.step_down()
        assert lower is not None
        assert steps(session, training, 1) == lower < 3 * 2**20
        wait_for("the rest to be free", lambda: lease_bytes(broker) == lower)
        with pytest.raises(PlanError):
            session.set_budget(1)
        assert steps(session, training, 1) == lower


@pytest.mark.long
def test_sessions_outlive_their_broker_and_keep_to_what_they_hold(
    place: Path, tmp_path: Path
) -> None:
    training = perceptron()
    with Broker(place, DEVICE_BYTES) as first:
        session = member_of(training, place, tmp_path, budget="3MiB")
        session.prepare(training.step, training.batches[0], costs=COSTS)
        steps(session, training, 1)
        held_bytes = lease_bytes(first)  # more, where this process took more than was foreseen
    with session:
        session.set_budget(held_bytes + 2**20)
        assert steps(session, training, 2) == held_bytes
        with Broker(place, DEVICE_BYTES, resumes=True) as second:
            wait_for("its return", second.shares)
            assert lease_bytes(second) >= held_bytes
            reach(session, training, held_bytes + 2**20)
            assert lease_bytes(second) >= held_bytes + 2**20


def test_a_step_that_holds_more_than_its_plan_knows_is_given_more_and_its_neighbour_no_less(
    place: Path, tmp_path: Path
) -> None:
    hidden_bytes = 24 * 2**20  # of Python's own, which no trace sees and nothing can let leave
    training = perceptron()
    batch = training.batches[0]
    with (
        Broker(place, 100 * 2**20) as broker,
        Lease(place, Member(job="old", profile=declared(20 * 2**20))) as neighbour,
        member_of(training, place, tmp_path) as session,
    ):
        assert neighbour.join(10)
        session.prepare(training.step, batch, costs=COSTS)
        foreseen = steps(session, training, 1)
        assert foreseen is not None
        for _ in range(3):
            with session.step():
                hidden = b"x" * hidden_bytes
                training.step(batch)
                del hidden
        wait_for("more of it", lambda: lease_bytes(broker) > foreseen + hidden_bytes // 2)
        wait_for("it all", lambda: steps(session, training, 1) == lease_bytes(broker))
        assert any("times what was foreseen" in note for note in session.stats().notes)
        assert neighbour.lease_bytes == lease_bytes(broker, "old") == 20 * 2**20


def test_where_steps_are_interlocked_a_neighbour_has_the_bytes_between_two_peaks(
    place: Path, tmp_path: Path
) -> None:
    free = language()
    for number in range(4):
        free.step(free.batches[number % 4])
    expected = contents(free)
    training = language()
    training.start()
    step = trace(training.step, training.model, training.optimizer, training.batches[0])
    other = Member(job="other", profile=traced(step, COSTS))
    natural = other.profile.peak_bytes
    leases: list[int] = []

    def note(shares: tuple[Share, ...]) -> None:
        leases.extend(share.lease_bytes for share in shares if share.job == "mine")

    with (
        Broker(place, natural * 3 // 2, on_change=note) as broker,
        Lease(place, other) as neighbour,
        member_of(training, place, tmp_path) as session,
    ):
        assert neighbour.join(10)
        session.prepare(training.step, training.batches[0], costs=COSTS)
        neighbour.give_back(0)
        leases.clear()
        steps(session, training, 2)
        at_rest = lease_bytes(broker)
        assert at_rest < 0.75 * natural < 0.9 * natural < max(leases)
        assert neighbour.want(natural) == min(natural, natural * 3 // 2 - at_rest)
        leases.clear()
        steps(session, training, 2)  # with what is left, it lets more leave
        assert max(leases) + neighbour.lease_bytes <= natural * 3 // 2
        found = contents(training)
    assert differences(found, expected) == []


def test_who_waits_says_so_and_holds_nothing_meanwhile(
    broker: Broker, place: Path, tmp_path: Path
) -> None:
    training, said = perceptron(), list[str]()
    neighbour = Lease(place, Member(job="old", profile=declared(DEVICE_BYTES)))
    assert neighbour.join(10)

    def leave(sentence: str) -> None:
        said.append(sentence)
        neighbour.close()

    lease = Membership(path=place, job="mine", say=leave)
    with Session(training.model, training.optimizer, folder=tmp_path, lease=lease) as session:
        session.prepare(training.step, training.batches[0], costs=COSTS)
        assert steps(session, training, 1) == lease_bytes(broker)
        assert session.stats().notes[:2] == tuple(said)
    assert "0 bytes are free, before its first step" in said[0]
    assert "was let in after" in said[1]


def test_who_never_fits_is_told_so_and_trains_no_step(
    broker: Broker, place: Path, tmp_path: Path
) -> None:
    training = perceptron()
    with Broker(place.with_name("small.sock"), 2**16):
        with member_of(training, place.with_name("small.sock"), tmp_path) as session:
            with pytest.raises(LeaseRefused, match=r"the device has 64\.0 KiB"):
                session.prepare(training.step, training.batches[0], costs=COSTS)
            with pytest.raises(LeaseRefused), session.step():
                training.step(training.batches[0])
        assert training.losses == []


def test_what_the_environment_says_is_read_or_refused(
    place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert from_environment(environment={"TENSILE_JOB": "a"}) is None
    there = {"TENSILE_BROKER": str(place), "TENSILE_JOB": "a.1"}
    assert from_environment(environment=there) == Membership(path=place, job="a.1")
    more = {**there, "TENSILE_WEIGHT": "2.5", "TENSILE_PRIORITY": "-3", "TENSILE_OVERRUN": "1.5"}
    expected = Membership(path=place, job="a.1", weight=2.5, priority=-3, overrun=1.5)
    assert from_environment(environment=more) == expected
    for wrong, sentence in (
        ({"TENSILE_JOB": ""}, "TENSILE_JOB is not; set it to a name"),
        ({"TENSILE_WEIGHT": "0"}, "TENSILE_WEIGHT: '0' is no number above 0"),
        ({"TENSILE_WEIGHT": "much"}, "TENSILE_WEIGHT: 'much' is no number"),
        ({"TENSILE_PRIORITY": "1.5"}, "TENSILE_PRIORITY: '1.5' is no whole number"),
        ({"TENSILE_OVERRUN": "0.5"}, "TENSILE_OVERRUN: '0.5' is no number from 1 on"),
    ):
        with pytest.raises(SessionError, match=sentence):
            from_environment(environment=there | wrong)
    monkeypatch.setenv("TENSILE_BROKER", str(place))
    training = perceptron()
    with pytest.raises(SessionError, match="TENSILE_JOB is not"):
        Session(training.model, training.optimizer)


def test_a_forked_child_does_not_keep_the_bytes_of_a_parent_that_is_killed(
    broker: Broker, place: Path
) -> None:
    program = (
        "import os, sys; from pathlib import Path; from tensile.coordinator import Member, "
        "declared; from tensile.coordinator.lease import Lease; "
        "lease = Lease(Path(sys.argv[1]), Member(job='b', profile=declared(600))); "
        "joined = lease.join(20); child = os.fork(); "
        "print(joined, flush=True) if child else None; sys.stdin.read()"
    )
    command = [sys.executable, "-c", program, str(place)]
    with subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as parent:
        assert parent.stdout is not None
        assert parent.stdout.readline() == "True\n"
        assert lease_bytes(broker, "b") == 600
        parent.send_signal(signal.SIGKILL)
        wait_for("its bytes back", lambda: broker.shares() == ())


# real processes, looked at from outside


@pytest.mark.long
def test_one_comes_one_is_killed_and_one_leaves_and_the_others_share_its_bytes(
    tmp_path: Path,
) -> None:
    expected = alone(tmp_path, steps=14)
    device_bytes = 280 * 10**6
    with shared_device(tmp_path, device_bytes) as device:
        assert isinstance(device, SharedDevice)
        first, second = device.ready("first", "second", steps=14)
        (third,) = device.ready("third", steps=3)
        first.go()
        second.go()
        wait_for("two steps of each", lambda: len(first.limits) >= 2 and len(second.limits) >= 2)
        assert sum(device.lease_bytes(name) for name in ("first", "second")) <= device_bytes
        third.go()
        wait_for("a step of the third", lambda: third.limits)
        arrived_s = next(at for at, shares in device.shares if len(shares) == 3)
        let_in_s = device.time_of(arrived_s, lambda shares: all(s.admitted for s in shares))
        between = max(
            sum(arrived_s < at < arrived_s + let_in_s for at in trainee.times_s)
            for trainee in (first, second)
        )
        assert let_in_s < 1 or between <= 1
        assert all(device.lease_bytes(name) > 0 for name in ("first", "second", "third"))
        killed_s = time.monotonic()
        first.process.send_signal(signal.SIGKILL)
        assert first.finished() == {}
        wait_for("its bytes with the others", lambda: device.lease_bytes("second") > 95 * 10**6)
        regained_s = device.time_of(
            killed_s,
            lambda shares: sum(share.lease_bytes for share in shares) > 0.99 * device_bytes,
        )
        assert regained_s < 1
        left, stayed = third.finished(), second.finished()
        alone_s, (last,) = next(
            (at, shares)
            for at, shares in device.shares
            if at > killed_s and [share.job for share in shares] == ["second"]
        )
        regained_s = device.time_of(alone_s, lambda shares: shares[0].lease_bytes == last.cap_bytes)
        assert regained_s < 1
        after = [
            limit
            for at, limit in zip(second.times_s, second.limits, strict=True)
            if at > alone_s + regained_s
        ]
        assert min(after[1:]) > 0.98 * last.cap_bytes > device_bytes // 2  # but for one that ran
        assert stayed["losses"] == expected["losses"]
        assert stayed["digest"] == expected["digest"]
        assert left["losses"] == expected["losses"][:3]
        assert min(second.limits) < device_bytes // 3 + 1
        assert device.peak_bytes < 1.05 * device_bytes, device.peak


@pytest.mark.long
def test_a_job_that_takes_twice_what_was_foreseen_meets_its_limit_and_its_neighbour_nothing(
    tmp_path: Path,
) -> None:
    expected, device_bytes = alone(tmp_path, steps=8), 320 * 10**6
    with shared_device(tmp_path, device_bytes) as device:
        assert isinstance(device, SharedDevice)
        (neighbour,) = device.ready("neighbour", steps=8)
        (wrong,) = device.ready("wrong", steps=8, foreseen_rows=ROWS // 7)
        neighbour.go()
        wait_for("all that it wants", lambda: neighbour.limits)
        wrong.go()
        found, beside = wrong.finished(), neighbour.finished()
        true_bytes = neighbour.limits[0]
        assert 2 * true_bytes > device_bytes
        assert wrong.limits[0] == pytest.approx(true_bytes / 2, rel=0.05)
        assert found["stats"]["replans"] >= 1
        assert wrong.limits[0] < max(wrong.limits)
        assert found["losses"] == beside["losses"] == expected["losses"]
        assert found["digest"] == beside["digest"] == expected["digest"]
        leases = {
            s.lease_bytes for _, shares in device.shares for s in shares if s.job == "neighbour"
        }
        assert leases - {true_bytes} <= {min(leases)}  # its minimum, when it was let in
        assert set(neighbour.limits) == {true_bytes}
        assert device.peak_bytes < 1.05 * device_bytes, device.peak
