"""How a job lives: states, reasons, events, and the one table that says which event leads where.

`transition` takes values and returns a value; it reads no clock and writes nothing. The store
writes its answer together with the event's row in one transaction. A retry is a new attempt of the
same job; an attempt has a state of its own, from the same words.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Any, Final

from dovetail_jobs.errors import DovetailError
from dovetail_jobs.units import format_seconds

STORY_LENGTH: Final = 20  # events that an illegal transition prints
MEMORY_TRIES: Final = 3  # after as many ends for want of memory; retry.max does not count them


class State(StrEnum):
    """Where a job is."""

    QUEUED = "QUEUED"  # waits for a device; its reason says for what exactly
    STARTING = "STARTING"  # has a device; its process does not train yet
    RUNNING = "RUNNING"  # its process trains
    STOPPING = "STOPPING"  # was told to stop; its processes are not yet checked to be gone
    PAUSED = "PAUSED"  # gave its device back and waits to be let on again
    SUCCEEDED = "SUCCEEDED"  # reached its end
    FAILED = "FAILED"  # will not reach its end; its reason says why
    CANCELLED = "CANCELLED"  # ended because a user wanted it

    @property
    def terminal(self) -> bool:
        return self in TERMINAL


TERMINAL: Final = frozenset({State.SUCCEEDED, State.FAILED, State.CANCELLED})


class Reason(StrEnum):
    """Why a job is where it is."""

    SUBMITTED = "SUBMITTED"  # the scheduler has not looked at it yet
    WAITING_FOR_CLUSTER = "WAITING_FOR_CLUSTER"  # no cluster has answered
    WAITING_FOR_DEVICE = "WAITING_FOR_DEVICE"  # every device that fits is held
    WAITING_FOR_CPUS = "WAITING_FOR_CPUS"  # a device is free, but not enough cpus beside it
    WAITING_FOR_RELEASE = "WAITING_FOR_RELEASE"  # its last attempt's processes are not yet gone
    BACKING_OFF = "BACKING_OFF"  # its next attempt has an earliest time
    DOES_NOT_FIT = "DOES_NOT_FIT"  # it asks for more than the cluster has, even when empty
    PLACED = "PLACED"
    TRAINING = "TRAINING"
    FINISHED = "FINISHED"
    PROGRAM_FAILED = "PROGRAM_FAILED"  # the program itself ended with an error
    REFUSED = "REFUSED"  # the program refused what the user wrote
    WORKER_LOST = "WORKER_LOST"  # the worker, its node or Ray is gone
    LAUNCH_FAILED = "LAUNCH_FAILED"  # the worker could not be made
    OUT_OF_MEMORY = "OUT_OF_MEMORY"  # memory failed, also on the lowest rung that could be tried
    RETRIES_EXHAUSTED = "RETRIES_EXHAUSTED"  # lost more often than retry.max allows
    CANCELLED_BY_USER = "CANCELLED_BY_USER"
    TIME_LIMIT = "TIME_LIMIT"  # max_duration is over


@dataclass(frozen=True, slots=True, kw_only=True)
class Placed:
    """The scheduler gave the job's next attempt this device."""

    attempt: int
    node: str
    device: str


@dataclass(frozen=True, slots=True, kw_only=True)
class AttemptStarted:
    """`resumed_from_step` is None for a run from the beginning."""

    attempt: int
    resumed_from_step: int | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class AttemptSucceeded:
    attempt: int


@dataclass(frozen=True, slots=True, kw_only=True)
class ProgramFailed:
    """`refused`: it ended because of what the user wrote, so another attempt would end alike."""

    attempt: int
    exit_code: int | None
    message: str
    refused: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class WorkerLost:
    attempt: int
    cause: str


@dataclass(frozen=True, slots=True, kw_only=True)
class MemoryRanOut:
    """The attempt ended for want of memory; the next one comes back on other terms."""

    attempt: int
    cause: str


@dataclass(frozen=True, slots=True, kw_only=True)
class LaunchFailed:
    attempt: int
    cause: str


@dataclass(frozen=True, slots=True, kw_only=True)
class RuledOut:
    """No device of the cluster can ever hold the job."""

    cause: str


@dataclass(frozen=True, slots=True, kw_only=True)
class CancelRequested:
    by: str


@dataclass(frozen=True, slots=True, kw_only=True)
class TimeLimitReached:
    limit_s: float


@dataclass(frozen=True, slots=True, kw_only=True)
class AttemptReleased:
    """Checked: no process of the attempt is left, and what it held is free."""

    attempt: int


Event = (
    Placed | AttemptStarted | AttemptSucceeded | ProgramFailed | WorkerLost | LaunchFailed
    | MemoryRanOut | RuledOut | CancelRequested | TimeLimitReached | AttemptReleased
)  # fmt: skip


@dataclass(frozen=True, slots=True, kw_only=True)
class JobFacts:
    """What a transition looks at. `attempt` is the newest attempt's number, 0 before the first.

    `losses` counts the attempts that ended as WORKER_LOST or LAUNCH_FAILED, `failures` those that
    ended as PROGRAM_FAILED, `shortages` those that ended as OUT_OF_MEMORY.
    """

    job_id: str
    state: State
    reason: Reason
    attempt: int
    losses: int
    failures: int
    retry_max: int
    retry_on_failure: bool
    shortages: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Change:
    """What an event makes of a job and of its attempt (None: it stays as it is), in one sentence.

    Where state and reason stay, the sentence belongs to the event alone and the job keeps its own.
    """

    state: State
    reason: Reason
    message: str
    attempt_state: State | None = None
    attempt_reason: Reason | None = None


class InvalidTransition(DovetailError):
    """The table has no such pair; `story` holds lines of the job's events, oldest first."""

    code = "invalid_transition"

    def __init__(self, job_id: str, state: State, event: Event, story: Sequence[str] = ()) -> None:
        self.job_id, self.state, self.event = job_id, state, event
        self.story = tuple(story)[-STORY_LENGTH:]
        lines = "".join(f"\n  {line}" for line in self.story)
        told = f"; its last events were:{lines}" if lines else ""
        super().__init__(f"job {job_id}: {event} is not possible in state {state}{told}")

    def __reduce__(self) -> tuple[type[InvalidTransition], tuple[str, State, Event, Sequence[str]]]:
        return (InvalidTransition, (self.job_id, self.state, self.event, self.story))


def transition(facts: JobFacts, event: Event) -> Change | None:
    """What `event` makes of a job, or None if it is stale: it speaks of another attempt.

    None is for late news of an attempt that was given up: it is dropped, and harms nobody. Placed
    must name the number after the newest. Raises InvalidTransition, still without a story, for a
    pair that the table does not have.
    """
    if is_stale(facts, event):
        return None
    rule = TABLE.get((facts.state, type(event)))
    if rule is None:
        raise InvalidTransition(facts.job_id, facts.state, event)
    return rule(facts, event)


def is_stale(facts: JobFacts, event: Event) -> bool:
    """Whether the event names an attempt, and not the one that may speak now."""
    if isinstance(event, CancelRequested | RuledOut | TimeLimitReached):
        return False
    return event.attempt != facts.attempt + isinstance(event, Placed)


def _placed(facts: JobFacts, event: Placed) -> Change:
    return Change(
        state=State.STARTING,
        reason=Reason.PLACED,
        message=f"attempt {event.attempt} starts on {event.device} of {event.node}",
        attempt_state=State.STARTING,
        attempt_reason=Reason.PLACED,
    )


def _started(facts: JobFacts, event: AttemptStarted) -> Change:
    resumed = ""
    if event.resumed_from_step is not None:
        resumed = f", resumed from step {event.resumed_from_step}"
    return Change(
        state=State.RUNNING,
        reason=Reason.TRAINING,
        message=f"attempt {event.attempt} is training{resumed}",
        attempt_state=State.RUNNING,
        attempt_reason=Reason.TRAINING,
    )


def _succeeded(facts: JobFacts, event: AttemptSucceeded) -> Change:
    before_stop = ", before its stop took effect" if facts.state is State.STOPPING else ""
    return Change(
        state=State.SUCCEEDED,
        reason=Reason.FINISHED,
        message=f"attempt {event.attempt} finished{before_stop}",
        attempt_state=State.SUCCEEDED,
        attempt_reason=Reason.FINISHED,
    )


def _failed(facts: JobFacts, event: ProgramFailed) -> Change:
    sentence = event.message or f"the program ended with exit code {event.exit_code}"
    reason = Reason.REFUSED if event.refused else Reason.PROGRAM_FAILED
    again = facts.retry_on_failure and not event.refused and facts.failures < facts.retry_max
    if again:
        sentence += _next_attempt(facts, facts.failures)
    return Change(
        state=State.QUEUED if again else State.FAILED,
        reason=reason,
        message=sentence,
        attempt_state=State.FAILED,
        attempt_reason=reason,
    )


def _lost(facts: JobFacts, event: WorkerLost | LaunchFailed) -> Change:
    launched = isinstance(event, WorkerLost)
    reason = Reason.WORKER_LOST if launched else Reason.LAUNCH_FAILED
    what = "lost its worker" if launched else "could not be launched"
    sentence = f"attempt {event.attempt} {what}: {event.cause}"
    again = facts.losses < facts.retry_max
    return Change(
        state=State.QUEUED if again else State.FAILED,
        reason=reason if again else Reason.RETRIES_EXHAUSTED,
        message=sentence + (_next_attempt(facts, facts.losses) if again else _no_more(facts)),
        attempt_state=State.FAILED,
        attempt_reason=reason,
    )


def _out_of_memory(facts: JobFacts, event: MemoryRanOut) -> Change:
    again = facts.shortages < MEMORY_TRIES
    rest = f"it had {MEMORY_TRIES} more tries for that"
    if again:
        rest = (
            f"attempt {facts.attempt + 1} resumes from the newest checkpoint and has memory on "
            f"other terms, try {facts.shortages + 1} of {MEMORY_TRIES}"
        )
    return Change(
        state=State.QUEUED if again else State.FAILED,
        reason=Reason.OUT_OF_MEMORY,
        message=f"attempt {event.attempt} ended: {event.cause}; {rest}",
        attempt_state=State.FAILED,
        attempt_reason=Reason.OUT_OF_MEMORY,
    )


def _ruled_out(facts: JobFacts, event: RuledOut) -> Change:
    return Change(state=State.FAILED, reason=Reason.DOES_NOT_FIT, message=event.cause)


def _cancelled(facts: JobFacts, event: CancelRequested) -> Change:
    return Change(
        state=State.CANCELLED,
        reason=Reason.CANCELLED_BY_USER,
        message=f"cancelled by {event.by} while it held no device",
    )


def _stop(facts: JobFacts, event: CancelRequested) -> Change:
    return Change(
        state=State.STOPPING,
        reason=Reason.CANCELLED_BY_USER,
        message=f"cancelled by {event.by}; attempt {facts.attempt} is being stopped",
        attempt_state=State.STOPPING,
        attempt_reason=Reason.CANCELLED_BY_USER,
    )


def _out_of_time(facts: JobFacts, event: TimeLimitReached) -> Change:
    limit = format_seconds(event.limit_s)
    return Change(
        state=State.STOPPING,
        reason=Reason.TIME_LIMIT,
        message=f"max_duration of {limit} is over; attempt {facts.attempt} is being stopped",
        attempt_state=State.STOPPING,
        attempt_reason=Reason.TIME_LIMIT,
    )


def _stopped(facts: JobFacts, event: AttemptReleased) -> Change:
    timed_out = facts.reason is Reason.TIME_LIMIT
    state = State.FAILED if timed_out else State.CANCELLED
    cause = "max_duration is over" if timed_out else "cancelled"
    return Change(
        state=state,
        reason=facts.reason,
        message=f"{cause}; no process of attempt {event.attempt} is left, its device is free",
        attempt_state=state,
        attempt_reason=facts.reason,
    )


def _stops_anyway(
    facts: JobFacts, event: ProgramFailed | WorkerLost | LaunchFailed | MemoryRanOut
) -> Change:
    """However it ended: the stop is the cause, and only the release ends the job."""
    state = State.FAILED if facts.reason is Reason.TIME_LIMIT else State.CANCELLED
    return Change(
        state=facts.state,
        reason=facts.reason,
        message=f"attempt {event.attempt} ended while it was being stopped",
        attempt_state=state,
        attempt_reason=facts.reason,
    )


def _stays(message: str) -> Rule:
    def rule(facts: JobFacts, event: Any) -> Change:
        return Change(
            state=facts.state, reason=facts.reason, message=message.format(facts=facts, event=event)
        )

    return rule


def _next_attempt(facts: JobFacts, used: int) -> str:
    following, at_most = facts.attempt + 1, facts.attempt + facts.retry_max - used
    return f"; attempt {following} of at most {at_most} resumes from the newest checkpoint"


def _no_more(facts: JobFacts) -> str:
    return f"; retry.max: {facts.retry_max} allows no further attempt"


Rule = Callable[[JobFacts, Any], Change]

_RELEASED = _stays("attempt {event.attempt} gave its device back")

TABLE: Final[dict[tuple[State, type[Event]], Rule]] = {
    (State.QUEUED, Placed): _placed,
    (State.QUEUED, RuledOut): _ruled_out,
    (State.QUEUED, CancelRequested): _cancelled,
    (State.QUEUED, AttemptReleased): _RELEASED,
    (State.STARTING, AttemptStarted): _started,
    (State.STARTING, AttemptSucceeded): _succeeded,
    (State.STARTING, ProgramFailed): _failed,
    (State.STARTING, WorkerLost): _lost,
    (State.STARTING, LaunchFailed): _lost,
    (State.STARTING, MemoryRanOut): _out_of_memory,
    (State.STARTING, CancelRequested): _stop,
    (State.STARTING, AttemptReleased): _RELEASED,
    (State.RUNNING, AttemptSucceeded): _succeeded,
    (State.RUNNING, ProgramFailed): _failed,
    (State.RUNNING, WorkerLost): _lost,
    (State.RUNNING, LaunchFailed): _lost,
    (State.RUNNING, MemoryRanOut): _out_of_memory,
    (State.RUNNING, CancelRequested): _stop,
    (State.RUNNING, TimeLimitReached): _out_of_time,
    (State.RUNNING, AttemptReleased): _RELEASED,
    # An attempt that was told to stop while it was starting may still say that it started.
    (State.STOPPING, AttemptStarted): _stays(
        "attempt {event.attempt} started and is being stopped"
    ),
    (State.STOPPING, AttemptSucceeded): _succeeded,
    (State.STOPPING, ProgramFailed): _stops_anyway,
    (State.STOPPING, WorkerLost): _stops_anyway,
    (State.STOPPING, LaunchFailed): _stops_anyway,
    (State.STOPPING, MemoryRanOut): _stops_anyway,
    (State.STOPPING, CancelRequested): _stays("{event.by} asked again to cancel; it is stopping"),
    # The limit may be noticed while a user's cancel is under way; the first stop is the cause.
    (State.STOPPING, TimeLimitReached): _stays("max_duration is over too; it is stopping"),
    (State.STOPPING, AttemptReleased): _stopped,
    (State.PAUSED, CancelRequested): _cancelled,
    (State.PAUSED, AttemptReleased): _RELEASED,
    (State.SUCCEEDED, AttemptReleased): _RELEASED,
    (State.FAILED, AttemptReleased): _RELEASED,
    (State.CANCELLED, AttemptReleased): _RELEASED,
}
