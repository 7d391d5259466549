"""Every pair of state and event, and walks over the table that must never go wrong."""

from __future__ import annotations

import pickle
from dataclasses import replace
from typing import get_args

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dovetail_jobs.lifecycle import (
    MEMORY_TRIES,
    AttemptReleased,
    AttemptStarted,
    AttemptSucceeded,
    CancelRequested,
    Event,
    InvalidTransition,
    JobFacts,
    LaunchFailed,
    MemoryRanOut,
    Placed,
    ProgramFailed,
    Reason,
    RuledOut,
    State,
    TimeLimitReached,
    WorkerLost,
    transition,
)

FACTS = JobFacts(
    job_id="k3f9qz",
    state=State.QUEUED,
    reason=Reason.SUBMITTED,
    attempt=1,
    losses=0,
    failures=0,
    retry_max=3,
    retry_on_failure=False,
)
EVENTS: dict[str, Event] = {
    "Placed": Placed(attempt=2, node="n1", device="cpu:0"),
    "AttemptStarted": AttemptStarted(attempt=1),
    "AttemptSucceeded": AttemptSucceeded(attempt=1),
    "ProgramFailed": ProgramFailed(attempt=1, exit_code=3, message="", refused=False),
    "WorkerLost": WorkerLost(attempt=1, cause="node n1 is gone"),
    "LaunchFailed": LaunchFailed(attempt=1, cause="no such device"),
    "MemoryRanOut": MemoryRanOut(attempt=1, cause="out of memory: a step found none"),
    "RuledOut": RuledOut(cause="does not fit: the largest device is cpu:0 with 1GiB"),
    "CancelRequested": CancelRequested(by="ada"),
    "TimeLimitReached": TimeLimitReached(limit_s=7200.0),
    "AttemptReleased": AttemptReleased(attempt=1),
}
OF_NO_ATTEMPT = {"CancelRequested", "RuledOut", "TimeLimitReached"}
REASONS = {  # how a job came into the state from which each pair is tried
    "QUEUED": "WORKER_LOST",
    "STARTING": "PLACED",
    "RUNNING": "TRAINING",
    "STOPPING": "CANCELLED_BY_USER",
    "PAUSED": "SUBMITTED",
    "SUCCEEDED": "FINISHED",
    "FAILED": "PROGRAM_FAILED",
    "CANCELLED": "CANCELLED_BY_USER",
}
STAYS = None
EXPECTED: dict[tuple[str, str], tuple[str, str, str | None, str | None] | None] = {
    # (state, event): (state, reason, attempt's state, attempt's reason); any other pair is illegal
    ("QUEUED", "Placed"): ("STARTING", "PLACED", "STARTING", "PLACED"),
    ("QUEUED", "RuledOut"): ("FAILED", "DOES_NOT_FIT", None, None),
    ("QUEUED", "CancelRequested"): ("CANCELLED", "CANCELLED_BY_USER", None, None),
    ("QUEUED", "AttemptReleased"): STAYS,
    ("STARTING", "AttemptStarted"): ("RUNNING", "TRAINING", "RUNNING", "TRAINING"),
    ("STARTING", "AttemptSucceeded"): ("SUCCEEDED", "FINISHED", "SUCCEEDED", "FINISHED"),
    ("STARTING", "ProgramFailed"): ("FAILED", "PROGRAM_FAILED", "FAILED", "PROGRAM_FAILED"),
    ("STARTING", "WorkerLost"): ("QUEUED", "WORKER_LOST", "FAILED", "WORKER_LOST"),
    ("STARTING", "LaunchFailed"): ("QUEUED", "LAUNCH_FAILED", "FAILED", "LAUNCH_FAILED"),
    ("STARTING", "MemoryRanOut"): ("QUEUED", "OUT_OF_MEMORY", "FAILED", "OUT_OF_MEMORY"),
    ("STARTING", "CancelRequested"): (
        "STOPPING", "CANCELLED_BY_USER", "STOPPING", "CANCELLED_BY_USER",
    ),
    ("STARTING", "AttemptReleased"): STAYS,
    ("RUNNING", "AttemptSucceeded"): ("SUCCEEDED", "FINISHED", "SUCCEEDED", "FINISHED"),
    ("RUNNING", "ProgramFailed"): ("FAILED", "PROGRAM_FAILED", "FAILED", "PROGRAM_FAILED"),
    ("RUNNING", "WorkerLost"): ("QUEUED", "WORKER_LOST", "FAILED", "WORKER_LOST"),
    ("RUNNING", "LaunchFailed"): ("QUEUED", "LAUNCH_FAILED", "FAILED", "LAUNCH_FAILED"),
    ("RUNNING", "MemoryRanOut"): ("QUEUED", "OUT_OF_MEMORY", "FAILED", "OUT_OF_MEMORY"),
    ("RUNNING", "CancelRequested"): (
        "STOPPING", "CANCELLED_BY_USER", "STOPPING", "CANCELLED_BY_USER",
    ),
    ("RUNNING", "TimeLimitReached"): ("STOPPING", "TIME_LIMIT", "STOPPING", "TIME_LIMIT"),
    ("RUNNING", "AttemptReleased"): STAYS,
    ("STOPPING", "AttemptStarted"): STAYS,
    ("STOPPING", "AttemptSucceeded"): ("SUCCEEDED", "FINISHED", "SUCCEEDED", "FINISHED"),
    ("STOPPING", "ProgramFailed"): (
        "STOPPING", "CANCELLED_BY_USER", "CANCELLED", "CANCELLED_BY_USER",
    ),
    ("STOPPING", "WorkerLost"): ("STOPPING", "CANCELLED_BY_USER", "CANCELLED", "CANCELLED_BY_USER"),
    ("STOPPING", "LaunchFailed"): (
        "STOPPING", "CANCELLED_BY_USER", "CANCELLED", "CANCELLED_BY_USER",
    ),
    ("STOPPING", "MemoryRanOut"): (
        "STOPPING", "CANCELLED_BY_USER", "CANCELLED", "CANCELLED_BY_USER",
    ),
    ("STOPPING", "CancelRequested"): STAYS,
    ("STOPPING", "TimeLimitReached"): STAYS,
    ("STOPPING", "AttemptReleased"): (
        "CANCELLED", "CANCELLED_BY_USER", "CANCELLED", "CANCELLED_BY_USER",
    ),
    ("PAUSED", "CancelRequested"): ("CANCELLED", "CANCELLED_BY_USER", None, None),
    ("PAUSED", "AttemptReleased"): STAYS,
    ("SUCCEEDED", "AttemptReleased"): STAYS,
    ("FAILED", "AttemptReleased"): STAYS,
    ("CANCELLED", "AttemptReleased"): STAYS,
}  # fmt: skip


def facts(state: str, **changes: object) -> JobFacts:
    given = {"state": State(state), "reason": Reason(REASONS[state]), **changes}
    return replace(FACTS, **given)  # type: ignore[arg-type]


def test_every_kind_of_event_is_tried() -> None:
    assert {type(event) for event in EVENTS.values()} == set(get_args(Event))
    assert set(REASONS) == {state.value for state in State}
    assert len(State) <= 9


@pytest.mark.parametrize("event", EVENTS)
@pytest.mark.parametrize("state", REASONS)
def test_each_pair_leads_where_the_expected_table_says(state: str, event: str) -> None:
    before = facts(state)
    if (state, event) not in EXPECTED:
        with pytest.raises(InvalidTransition, match=f"k3f9qz.*{event}.*{state}"):
            transition(before, EVENTS[event])
        return
    change = transition(before, EVENTS[event])
    assert change is not None
    assert change.message
    expected = EXPECTED[state, event] or (before.state, before.reason, None, None)
    assert (change.state, change.reason, change.attempt_state, change.attempt_reason) == expected


@pytest.mark.parametrize("event", sorted(EVENTS.keys() - OF_NO_ATTEMPT))
@pytest.mark.parametrize("state", REASONS)
def test_news_of_another_attempt_are_dropped_in_every_state(state: str, event: str) -> None:
    for off in (-1, 1):
        stale = replace(EVENTS[event], attempt=EVENTS[event].attempt + off)  # type: ignore
        assert transition(facts(state), stale) is None


def test_a_lost_worker_is_replaced_until_retry_max_losses_are_used_up() -> None:
    lost = WorkerLost(attempt=3, cause="node n1 is gone")
    change = transition(facts("RUNNING", attempt=3, losses=2), lost)
    assert change is not None
    assert change.state is State.QUEUED
    assert change.message == (
        "attempt 3 lost its worker: node n1 is gone;"
        " attempt 4 of at most 4 resumes from the newest checkpoint"
    )
    final = transition(
        facts("RUNNING", attempt=4, losses=3), WorkerLost(attempt=4, cause="Ray is gone")
    )
    assert final is not None
    assert (final.state, final.reason) == (State.FAILED, Reason.RETRIES_EXHAUSTED)
    assert final.attempt_reason is Reason.WORKER_LOST
    assert final.message == (
        "attempt 4 lost its worker: Ray is gone; retry.max: 3 allows no further attempt"
    )


def test_a_failed_program_is_tried_again_only_when_the_job_asks_for_it() -> None:
    failed = ProgramFailed(attempt=2, exit_code=3, message="")
    once = transition(facts("RUNNING", attempt=2), failed)
    assert once is not None
    assert (once.state, once.message) == (State.FAILED, "the program ended with exit code 3")

    again = transition(
        facts("RUNNING", attempt=2, losses=1, failures=0, retry_on_failure=True, retry_max=2),
        failed,
    )
    assert again is not None
    assert (again.state, again.reason) == (State.QUEUED, Reason.PROGRAM_FAILED)
    assert again.message.endswith("; attempt 3 of at most 4 resumes from the newest checkpoint")

    spent = facts("RUNNING", attempt=2, failures=2, retry_on_failure=True, retry_max=2)
    last = transition(spent, failed)
    assert last is not None
    assert last.state is State.FAILED


def test_an_end_for_want_of_memory_has_tries_of_its_own() -> None:
    event = MemoryRanOut(attempt=5, cause="out of memory: a step found none")
    again = transition(facts("RUNNING", attempt=5, retry_max=0, shortages=2), event)
    assert again is not None
    assert (again.state, again.message) == (
        State.QUEUED,
        "attempt 5 ended: out of memory: a step found none; attempt 6 resumes from the newest "
        "checkpoint and has memory on other terms, try 3 of 3",
    )
    last = transition(facts("RUNNING", attempt=5, shortages=MEMORY_TRIES), event)
    assert last is not None
    assert (last.state, last.reason) == (State.FAILED, Reason.OUT_OF_MEMORY)
    assert last.message.endswith("a step found none; it had 3 more tries for that")


def test_a_refusal_is_never_tried_again() -> None:
    refused = ProgramFailed(attempt=1, exit_code=2, message="dataset: /x is empty", refused=True)
    change = transition(facts("RUNNING", retry_on_failure=True), refused)
    assert change is not None
    assert (change.state, change.reason) == (State.FAILED, Reason.REFUSED)
    assert change.message == "dataset: /x is empty"


@pytest.mark.parametrize("event", ["ProgramFailed", "WorkerLost", "AttemptReleased"])
def test_a_job_that_ran_out_of_time_fails_and_is_not_called_cancelled(event: str) -> None:
    change = transition(facts("STOPPING", reason=Reason.TIME_LIMIT), EVENTS[event])
    assert change is not None
    assert change.reason is Reason.TIME_LIMIT
    assert change.attempt_state is State.FAILED
    assert change.state is (State.FAILED if event == "AttemptReleased" else State.STOPPING)


def test_an_illegal_transition_prints_the_last_20_events_and_survives_pickling() -> None:
    story = [f"event {number}" for number in range(25)]
    error = InvalidTransition("k3f9qz", State.FAILED, AttemptStarted(attempt=1), story)
    assert str(error).splitlines()[1:] == [f"  event {number}" for number in range(5, 25)]
    twin = pickle.loads(pickle.dumps(error))
    assert (str(twin), twin.event, twin.story) == (str(error), error.event, error.story)


@st.composite
def walks(draw: st.DrawFn) -> tuple[JobFacts, list[tuple[str, int]]]:
    start = replace(
        FACTS,
        attempt=0,
        retry_max=draw(st.integers(0, 3)),
        retry_on_failure=draw(st.booleans()),
    )
    step = st.tuples(st.sampled_from(sorted(EVENTS)), st.integers(-1, 1))
    return start, draw(st.lists(step, max_size=60))


@given(walks())
def test_no_walk_leaves_a_terminal_state_or_outruns_its_retries(
    walk: tuple[JobFacts, list[tuple[str, int]]],
) -> None:
    now, steps = walk
    attempts: dict[int, tuple[State, Reason]] = {}
    for name, off in steps:
        event = EVENTS[name]
        if not isinstance(event, CancelRequested | RuledOut | TimeLimitReached):
            event = replace(event, attempt=now.attempt + isinstance(event, Placed) + off)
        try:
            change = transition(now, event)
        except InvalidTransition:
            continue
        if change is None:
            assert off != 0
            continue
        if now.state.terminal:
            assert (change.state, change.reason) == (now.state, now.reason)
        number = now.attempt + isinstance(event, Placed)
        if change.attempt_state is not None:
            assert change.attempt_reason is not None
            attempts[number] = (change.attempt_state, change.attempt_reason)
        reasons = [reason for _, reason in attempts.values()]
        now = replace(
            now,
            state=change.state,
            reason=change.reason,
            attempt=number,
            losses=sum(r in (Reason.WORKER_LOST, Reason.LAUNCH_FAILED) for r in reasons),
            failures=reasons.count(Reason.PROGRAM_FAILED),
            shortages=reasons.count(Reason.OUT_OF_MEMORY),
        )
        alive = [n for n, (state, _) in attempts.items() if not state.terminal]
        assert alive in ([], [now.attempt])  # at most one live attempt, the newest
        if alive:
            assert now.state in (State.STARTING, State.RUNNING, State.STOPPING)
        retries = now.retry_max * (2 if now.retry_on_failure else 1)
        assert now.attempt <= 1 + retries + MEMORY_TRIES
