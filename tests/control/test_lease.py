"""Of two servers on one database one decides, whatever their clocks say, whenever one freezes."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from dovetail.service.tenure import LEASE_S, Tenure
from dovetail.store.lease import LeaseLost
from dovetail.store.store import Store
from dovetail_jobs.lifecycle import Placed, State
from helpers.build import at, spec_json
from helpers.databases import run_statement
from helpers.two_servers import Server, World


@pytest.fixture
def store(database_url: str) -> Iterator[Store]:
    with Store(database_url) as opened:
        yield opened


class Hand:
    """A clock that is turned by hand."""

    def __init__(self, now_s: float) -> None:
        self.now_s = now_s

    def __call__(self) -> float:
        return self.now_s


def tenure(store: Store, holder: str, now_s: float = 0.0) -> tuple[Tenure, Hand]:
    hand = Hand(now_s)
    return Tenure(store, holder, monotonic=hand), hand


def test_the_first_server_decides_at_once_and_the_second_stands_by(store: Store) -> None:
    (first, _), (second, _) = tenure(store, "one"), tenure(store, "two")
    assert first.hold() is not None
    assert second.hold() is None
    assert second.decider == "one"
    assert store.lease().holder == "one"


def test_a_holder_that_lives_is_never_replaced(store: Store) -> None:
    (first, clock), (second, watch) = tenure(store, "one"), tenure(store, "two", 900.0)
    held = first.hold()
    for _ in range(20):
        clock.now_s += 3
        watch.now_s += 3
        assert first.hold() is held
        assert second.hold() is None


def test_a_holder_that_stood_still_is_replaced_and_its_writes_change_nothing(store: Store) -> None:
    (first, _), (second, watch) = tenure(store, "one"), tenure(store, "two", 900.0)
    frozen = first.hold()
    assert frozen is not None
    job, _ = store.submit(spec_json(), user="ada", key=None, now=at())
    assert second.hold() is None
    watch.now_s += LEASE_S - 0.1
    assert second.hold() is None
    watch.now_s += 0.1
    assert second.hold() is not None

    placed = Placed(attempt=1, node="n1", device="cpu:0")
    with pytest.raises(LeaseLost, match="another server took the lease"):
        frozen.apply(job.id, job.version, placed, at(), node_id="n", cpus=1.0)
    with pytest.raises(LeaseLost):
        frozen.mark_released(job.id, 1, at())
    assert store.job(job.id) == job
    assert len(store.events(job.id)) == 1


def test_a_holder_that_woke_stands_by(store: Store) -> None:
    (first, clock), (second, watch) = tenure(store, "one"), tenure(store, "two")
    assert first.hold() is not None
    for watch.now_s in (0.0, LEASE_S):
        second.hold()
    clock.now_s = LEASE_S + 1
    assert not first.sure()
    assert first.hold() is None
    assert first.decider == "two"


def test_writing_is_a_sign_of_life(store: Store) -> None:
    (first, _), (second, watch) = tenure(store, "one"), tenure(store, "two")
    held = first.hold()
    assert held is not None
    for _ in range(5):
        assert second.hold() is None
        watch.now_s += LEASE_S - 1
        held.submit(spec_json(), user="ada", key=None, now=at())
    assert second.hold() is None


def test_a_lease_that_was_laid_down_is_free_at_once(store: Store) -> None:
    (first, _), (second, _) = tenure(store, "one"), tenure(store, "two")
    assert first.hold() is not None
    assert second.hold() is None
    first.lay_down()
    assert store.lease().holder is None
    assert second.hold() is not None


def test_the_next_server_of_the_same_home_need_not_wait(store: Store) -> None:
    (killed, _), (following, _) = tenure(store, "home"), tenure(store, "home")
    before = killed.hold()
    assert before is not None
    assert following.hold() is not None
    with pytest.raises(LeaseLost):
        before.renew_lease()


def test_of_two_that_take_over_at_once_one_gets_it(store: Store) -> None:
    seen = store.lease()
    assert store.take_lease("one", seen) is not None
    assert store.take_lease("two", seen) is None
    assert store.lease().holder == "one"


def test_an_outage_of_the_database_is_no_sign_of_death(store: Store) -> None:
    (first, _), (second, watch) = tenure(store, "one"), tenure(store, "two")
    assert first.hold() is not None
    assert second.hold() is None
    second.doubt()  # it could not be asked for a while
    watch.now_s += 10 * LEASE_S
    assert second.hold() is None
    assert first.sure()


@pytest.fixture
def world(database_url: str, tmp_path: Path) -> Iterator[World]:
    world = World(database_url, tmp_path / "storage")
    yield world
    world.close()


def test_a_job_submitted_to_the_standby_is_started_by_the_other_at_its_next_turn(
    world: World,
) -> None:
    world.a.turn(2)
    world.b.turn(2)
    assert (world.a.decides, world.b.decides) == (True, False)
    assert world.b.state.facts.decider == "a"
    job_id = world.submit(world.b)
    world.a.turn()
    assert world.a.store.job(job_id).state is State.STARTING
    assert world.live == {f"{job_id}.1"}


def test_a_server_frozen_in_mid_turn_places_and_launches_nothing_when_it_wakes(
    world: World,
) -> None:
    """Frozen at each of its looks at a clock in turn, until a turn has no more of them."""
    world.a.turn(2)
    looks = 0
    while True:
        frozen, other = world.servers if world.a.decides else world.servers[::-1]
        world.submit(frozen)
        woke = list[bool]()

        def nap(other: Server = other, woke: list[bool] = woke) -> None:
            other.turn(int(LEASE_S) + 4)
            world.begin_and_finish_all(other)
            other.turn(3)
            woke.append(other.decides)

        frozen.turn_and_nap(looks, nap)
        frozen.turn(3)
        world.begin_and_finish_all(other)
        other.turn(3)
        if not woke:
            break
        assert woke == [True]
        assert not frozen.decides
        looks += 1
    assert looks >= 5  # the last of them is the one before a launch
    assert_all_ran_once(world)


ACTIONS = st.one_of(
    st.tuples(st.just("turn"), st.integers(0, 1), st.integers(1, 4)),
    st.tuples(st.just("freeze"), st.integers(0, 1), st.integers(0, 12)),
    st.tuples(st.just("submit"), st.integers(0, 1), st.just(0)),
    st.tuples(st.just("finish"), st.integers(0, 1), st.just(0)),
    st.tuples(st.just("pass"), st.just(0), st.integers(1, 30)),
)


@settings(max_examples=6, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(actions=st.lists(ACTIONS, max_size=16))
def test_whatever_two_servers_do_no_job_and_no_device_is_given_twice(
    database_url: str, tmp_path: Path, actions: list[tuple[str, int, int]]
) -> None:
    carry_out(database_url, tmp_path, actions)


@pytest.mark.long
@settings(max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(actions=st.lists(ACTIONS, min_size=8, max_size=40))
def test_however_long_two_servers_go_on_no_job_and_no_device_is_given_twice(
    database_url: str, tmp_path: Path, actions: list[tuple[str, int, int]]
) -> None:
    carry_out(database_url, tmp_path, actions)


def carry_out(database_url: str, tmp_path: Path, actions: list[tuple[str, int, int]]) -> None:
    """On an empty database; afterwards both servers go on until every job is over."""
    Store(database_url).close()
    for table in ("metric_points", "checkpoints", "events", "attempts", "jobs"):
        run_statement(database_url, f"DELETE FROM {table}")
    run_statement(database_url, "UPDATE leases SET holder = NULL")
    shutil.rmtree(tmp_path / "storage", ignore_errors=True)
    world = World(database_url, tmp_path / "storage")
    for action, which, number in actions:
        server, other = world.servers[which], world.servers[1 - which]
        match action:
            case "turn":
                server.turn(number)
            case "freeze":

                def nap(other: Server = other) -> None:
                    other.turn(int(LEASE_S) + 2)
                    world.begin_and_finish_all(other)
                    other.turn(2)

                server.turn_and_nap(number, nap)
            case "submit":
                world.submit(server)
            case "finish":
                world.begin_and_finish_all(server)
            case "pass":
                world.now_s += number
    assert_all_ran_once(world)
    world.close()


def assert_all_ran_once(world: World) -> None:
    for _ in range(40):
        if not world.a.store.active():
            break
        for server in world.servers:
            server.turn(2)
            world.begin_and_finish_all(server)
    for job_id in world.submitted:
        job = world.a.store.job(job_id)
        assert (job.state, len(job.attempts)) == (State.SUCCEEDED, 1), job
        kinds = [event.kind for event in world.a.store.events(job_id)]
        assert kinds.count("Placed") == kinds.count("AttemptSucceeded") == 1
