"""The one loop of the control plane: load → decide → apply → act.

It listens to the cluster's events and reads the attempts' journals, lets the scheduler decide on a
frozen picture, writes each decision guarded by the job's version, and then asks the cluster for
whatever the store says is still due. What is due follows from the store alone, so a daemon that
died in between, or lost a command, asks again.

It decides only while it holds the database's lease; without it, it follows no cluster. While the
database does not answer it waits: news are kept until they are written.
"""

from __future__ import annotations

import logging
import queue
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta

from dovetail.cluster.protocol import (
    Cluster,
    ClusterEvent,
    ClusterLost,
    ClusterUp,
    Deliver,
    DevicesSeen,
    LaunchFailed,
    NodesSeen,
    Released,
    Woken,
    WorkerGone,
)
from dovetail.scheduler.cycle import schedule
from dovetail.scheduler.decisions import RuleOut, Start
from dovetail.scheduler.policies import Policy
from dovetail.service import picture
from dovetail.service.changes import Changes
from dovetail.service.cluster_state import ClusterState
from dovetail.service.elapsed import Elapsed
from dovetail.service.fences import Fences
from dovetail.service.foresight import Foresight
from dovetail.service.journals import Journals
from dovetail.service.known_devices import KnownDevices
from dovetail.service.outlooks import Foreseen, Outlooks, counted_bytes, warnings
from dovetail.service.server_state import ServerState
from dovetail.service.tenure import Tenure, boot_clock_s
from dovetail.store.lease import LeaseLost
from dovetail.store.records import AttemptRecord, JobRecord
from dovetail.store.store import Store
from dovetail_jobs import lifecycle
from dovetail_jobs.errors import DatabaseLost, DovetailError
from dovetail_jobs.lifecycle import Reason, State
from dovetail_jobs.spec import JobSpec
from dovetail_workers import fence, keys
from dovetail_workers.launch import Launch, parse_attempt_id
from dovetail_workers.storage.protocol import Storage, StorageError

log = logging.getLogger(__name__)

TICK_S = 1.0  # without any news
READ_ALL_EVERY_S = 2.0  # journals are read when their writer wakes us, and all of them this often
GRACE_S = 2.0  # between a stop's request and its kill
QUIET_RELEASE = timedelta(seconds=5)
APPLY_TRIES = 5
LONGEST_PAUSE_S = 8.0  # between two looks for a database that does not answer


@dataclass(frozen=True, slots=True)
class Nudge:
    """Somebody changed the store: look at once."""


@dataclass(frozen=True, slots=True)
class Stop:
    """End the loop."""


Message = ClusterEvent | Foreseen | Nudge | Stop


class Daemon:
    """`step` is one turn of the loop; `start` runs it in a thread of its own. `clock` is UTC.

    `holder` names this server among all on one database; it is the same for the next server of the
    same home. `cluster` makes one for each time that this server comes to decide.
    """

    def __init__(
        self,
        *,
        store: Store,
        storage: Storage,
        storage_uri: str,
        state: ClusterState,
        changes: Changes,
        policy: Policy,
        cluster: Callable[[Deliver], Cluster],
        holder: str,
        server: ServerState | None = None,
        foresight: Callable[[Callable[[Foreseen], None]], Foresight] | None = None,
        outlooks: Outlooks | None = None,
        clock: Callable[[], datetime] = lambda: datetime.now(UTC),
        monotonic: Callable[[], float] = boot_clock_s,
    ) -> None:
        self._store, self._storage, self._storage_uri = store, storage, storage_uri
        self._state, self._changes, self._policy = state, changes, policy
        self._server, self._outlooks = server or ServerState(), outlooks or Outlooks()
        self._clock, self._monotonic = clock, monotonic
        self._elapsed = Elapsed(monotonic)
        self._journals = Journals(storage, changes, clock)
        self._fences = Fences(storage, self._elapsed, clock)
        self._known_devices = KnownDevices(monotonic)
        self._tenure = Tenure(store, holder, monotonic=monotonic)
        self._decides = False
        self._inbox: queue.SimpleQueue[Message] = queue.SimpleQueue()
        self._news: deque[Message] = deque()
        self._pause_s = TICK_S
        self._make_cluster = cluster
        self.cluster = self._new_cluster()
        self._foresight = foresight(self._inbox.put) if foresight is not None else None
        self._thread = threading.Thread(target=self._run, name="daemon", daemon=True)
        self._asked_to_launch: set[str] = set()
        self._asked_to_release: set[str] = set()
        self._to_read: set[str] = set()
        self._read_all_at_s = 0.0

    def start(self) -> None:
        self._thread.start()

    def nudge(self) -> None:
        self._inbox.put(Nudge())

    def stop(self, *, stop_cluster: bool) -> None:
        """End the loop, then let go of the cluster, or end it with everything in it."""
        self._inbox.put(Stop())
        if self._thread.is_alive():
            self._thread.join(timeout=10)
        if stop_cluster:
            self.cluster.stop()
        else:
            self.cluster.close()
        self._tenure.lay_down()

    def _run(self) -> None:
        messages: list[Message] = []
        while not any(isinstance(message, Stop) for message in messages):
            try:
                self.step(messages)
                self._pause_s = TICK_S
            except DatabaseLost:
                messages = self._wait_for_database()
                continue
            except Exception:  # the outermost loop: whatever it is, the next turn begins afresh
                log.exception("turn failed")
            messages = list(self._collect(TICK_S))

    def _collect(self, timeout_s: float) -> Iterator[Message]:
        """All messages that are here; waits for the first."""
        try:
            yield self._inbox.get(timeout=timeout_s)
            while True:
                yield self._inbox.get_nowait()
        except queue.Empty:
            return

    def pending(self) -> list[Message]:
        """What has arrived by now, for callers that turn the loop themselves."""
        return list(self._collect(0))

    def step(self, messages: list[Message]) -> None:
        """One turn: lease, news, journals, time limits, decisions, commands.

        Raises DatabaseLost; the next turn then begins with the news that were not written.
        """
        self._news.extend(messages)
        try:
            if self._take_office():
                met = self._absorb_all()
                self._read_journals()
                active = self._store.active()
                ids = {job.id for job in active}
                self._elapsed.forget_all_but(ids)
                self._outlooks.forget_all_but(ids)
                self._limit_time(active)
                if met:
                    self._foresee(active)
                    self._schedule(active)
                    self._act()
        except LeaseLost as lost:
            self._tenure.lost(lost)
            self._leave_office()
        except DatabaseLost as lost:
            self._tenure.doubt()
            if self._server.facts.outage is None:  # one line for an outage, whatever its causes
                log.warning("%s", lost)
            if self._server.lost_database(lost.message):
                self._changes.bump()
            raise

    # Office -------------------------------------------------------------------------------------

    def _take_office(self) -> bool:
        """Whether this server decides in this turn. It follows the cluster only while it does."""
        store = self._tenure.hold()
        if self._server.facts.outage is not None:
            log.info("the database answers again")
        if store is None:
            self._leave_office()
            return False
        if store is not self._store:
            self._let_go()
            self._store, self._decides = store, True
            self.cluster.start()
        if self._server.decides():
            self._changes.bump()
        return True

    def _leave_office(self) -> None:
        """Stand by. What the decider changes does not wake our pollers, so each turn does."""
        self._let_go()
        self._news.clear()
        self._server.stands_by(self._tenure.decider)
        self._changes.bump()

    def _let_go(self) -> None:
        """Of the cluster that we followed, if any; its workers go on."""
        if self._decides:
            self._decides = False
            self._news.clear()
            self.cluster.close()
            self.cluster = self._new_cluster()
            self._state.lost("another server decides")

    def _new_cluster(self) -> Cluster:
        """One whose events are heard only while it is ours."""

        def deliver(event: ClusterEvent) -> None:
            if self.cluster is made:
                self._inbox.put(event)

        made = self._make_cluster(deliver)
        return made

    def _wait_for_database(self) -> list[Message]:
        """What came in a pause. The pauses grow; what the next turn looks at anyway is dropped."""
        ends_s = time.monotonic() + self._pause_s
        self._pause_s = min(LONGEST_PAUSE_S, 2 * self._pause_s)
        kept: list[Message] = []
        while (left_s := ends_s - time.monotonic()) > 0:
            for message in self._collect(left_s):
                if isinstance(message, Stop):
                    return [message]
                if not isinstance(message, Woken | Nudge | DevicesSeen):
                    kept.append(message)
        return kept

    # News ---------------------------------------------------------------------------------------

    def _absorb_all(self) -> bool:
        """In their order, each kept until it is written. Where the storage cannot be read, the news
        of that attempt wait for the next turn; a cluster that came up is met before anything else,
        and False says that it was not. News that fit nothing are dropped and stop no others.
        """
        waiting: deque[Message] = deque()
        unreadable: set[str] = set()
        try:
            while self._news:
                message = self._news[0]
                attempt_id = getattr(message, "attempt_id", None)
                try:
                    if attempt_id in unreadable:
                        waiting.append(message)
                    else:
                        self._absorb(message)
                except StorageError as error:
                    log.warning("news wait message=%s: %s", message, error)
                    if attempt_id is None:
                        return False
                    unreadable.add(attempt_id)
                    waiting.append(message)
                except (DatabaseLost, LeaseLost):
                    raise
                except DovetailError:
                    log.exception("news dropped message=%s", message)
                self._news.popleft()
            return True
        finally:
            self._news.extendleft(reversed(waiting))

    def _absorb(self, message: Message) -> None:
        match message:
            case ClusterUp():
                log.info("cluster up address=%s live=%s", message.address, list(message.live))
                lost = self._state.facts.message
                self._state.up(message.address, message.dashboard_url)
                self._meet(set(message.live), why=lost or "nobody watched it")
            case ClusterLost():
                log.warning("cluster lost cause=%s", message.cause)
                self._state.lost(message.cause)
            case NodesSeen():
                self._state.nodes(message.nodes)
            case DevicesSeen():
                self._state.devices.saw(message, self._clock(), self._monotonic())
                return  # each second, and no follower of a job waits for it
            case Woken():
                self._to_read.add(message.attempt_id)
            case WorkerGone():
                self._lost(message.attempt_id, message.cause)
            case LaunchFailed():
                job_id, number = parse_attempt_id(message.attempt_id)
                failed = lifecycle.LaunchFailed(attempt=number, cause=message.cause)
                if self._is_open(self._store.job(job_id), number):
                    self._happened(job_id, failed)
            case Released():
                self._released(message)
            case Foreseen():
                self._foreseen(message)
            case _:
                return
        self._changes.bump()

    def _meet(self, live: set[str], why: str) -> None:
        """A cluster is here, with these attempts in it: what is due is asked anew, who is missing
        is lost. `why` the cluster was away is part of their story.
        """
        self._asked_to_launch, self._asked_to_release = live, set()
        for job in self._store.active():
            for attempt in job.unreleased:
                missing = attempt.ended_at is None and attempt.attempt_id not in live
                if missing and not self._never_began(attempt):
                    self._lost(attempt.attempt_id, f"{why}; it was gone when Ray was back")

    def _never_began(self, attempt: AttemptRecord) -> bool:
        """Placed, but its worker has not said a word: it can be launched without being lost
        first.
        """
        if attempt.state is not State.STARTING:
            return False
        if fence.is_claimed(self._storage, attempt.job_id, attempt.number):
            return False
        return self._journals.is_empty(attempt.job_id, attempt.number)

    def _lost(self, attempt_id: str, cause: str) -> None:
        """The worker is gone. Its journal has the first word: an end in it is the end."""
        job_id, number = parse_attempt_id(attempt_id)
        job = self._journals.read(self._store, job_id, number)
        if self._is_open(job, number):
            self._happened(job_id, lifecycle.WorkerLost(attempt=number, cause=cause))

    def _is_open(self, job: JobRecord, number: int) -> bool:
        """Whether this attempt is the job's newest, and not over."""
        newest = job.newest_attempt
        return newest is not None and newest.number == number and newest.ended_at is None

    def _released(self, message: Released) -> None:
        job_id, number = parse_attempt_id(message.attempt_id)
        if message.killed:
            log.info("release attempt=%s killed=%s", message.attempt_id, message.killed)
        job = self._journals.read(self._store, job_id, number)
        newest = job.newest_attempt
        if newest is not None and newest.number == number and newest.released_at is None:
            self._happened(job_id, lifecycle.AttemptReleased(attempt=number))
        else:
            self._store.mark_released(job_id, number, self._clock())
        self._asked_to_release.discard(message.attempt_id)

    # Journals -----------------------------------------------------------------------------------

    def _read_journals(self) -> None:
        attempts = set(self._to_read)
        if self._monotonic() >= self._read_all_at_s:
            active = self._store.active()
            attempts |= {item.attempt_id for job in active for item in job.unreleased}
            self._read_all_at_s = self._monotonic() + READ_ALL_EVERY_S
        self._to_read.clear()
        self._journals.read_all(self._store, attempts)

    # Decisions ----------------------------------------------------------------------------------

    def _limit_time(self, active: list[JobRecord]) -> None:
        for job in active:
            limit_s: float | None = job.spec.get("max_duration")
            if job.state is not State.RUNNING or limit_s is None or job.started_at is None:
                continue
            ran = self._elapsed.since(job.id, job.started_at, self._clock())
            if ran >= timedelta(seconds=limit_s):
                self._happened(job.id, lifecycle.TimeLimitReached(limit_s=limit_s))

    def _foresee(self, active: list[JobRecord]) -> None:
        if self._foresight is not None:
            self._foresight.consider(active, self._outlooks)

    def _foreseen(self, found: Foreseen) -> None:
        self._outlooks.put(found)
        if found.peak_bytes is not None:
            self._store.set_forecast(found.job_id, found.peak_bytes, found.provenance)
        job = self._store.job(found.job_id)
        if job.state.terminal:
            return  # what it took is for those that come
        for said in warnings(JobSpec.model_validate(job.spec), found):
            self._store.tell(found.job_id, "Warned", said, self._clock())

    def _schedule(self, active: list[JobRecord]) -> None:
        now, nodes = self._clock(), self._state.facts.nodes
        view = picture.cluster_view(nodes, active, now, self._elapsed, self._outlooks)
        view = replace(view, absent=self._known_devices.absent(self._store, nodes, now))
        jobs = {job.id: job for job in active}
        for decision in schedule(view, self._policy, now):
            job = jobs[decision.job_id]
            if isinstance(decision, RuleOut):
                ruled_out = lifecycle.RuledOut(cause=decision.message)
                if self._store.apply(job.id, job.version, ruled_out, now) is not None:
                    log.info("ruled out job=%s: %s", job.id, decision.message)
                    self._changes.bump()
                continue
            if not isinstance(decision, Start):
                if decision.reason is Reason.WAITING_FOR_RELEASE and self._just_ended(job):
                    continue
                waits = (decision.reason, decision.message)
                if self._store.set_waiting(job.id, job.version, *waits, self._clock()):
                    self._changes.bump()
                continue
            number = len(job.attempts) + 1
            placed = lifecycle.Placed(attempt=number, node=decision.node, device=decision.device)
            changed = self._store.apply(
                job.id,
                job.version,
                placed,
                self._clock(),
                node_id=decision.node_id,
                cpus=job.spec["resources"]["cpus"],
                cap_bytes=decision.cap_bytes or self._counted_bytes(job, decision),
            )
            if changed is not None:
                if decision.readmission is not None:
                    said = f"attempt {number} comes back: {decision.readmission}"
                    self._store.tell(job.id, "Readmitted", said, now)
                log.info(
                    "start job=%s attempt=%s node=%s device=%s: %s",
                    job.id, number, decision.node, decision.device, decision.reason,
                )  # fmt: skip
                self._changes.bump()

    def _counted_bytes(self, job: JobRecord, start: Start) -> int | None:
        """What a script may hold whose command took more before than it declares."""
        size_bytes = counted_bytes(JobSpec.model_validate(job.spec), self._outlooks.of(job.id))
        device = picture.device(self._state.facts.nodes or (), start.node_id, start.device)
        return None if size_bytes is None or device is None else min(size_bytes, device.bytes)

    def _just_ended(self, job: JobRecord) -> bool:
        """A release takes a moment after every attempt; only a long one is worth a line in the
        story.
        """
        ended = [item.ended_at for item in job.unreleased if item.ended_at is not None]
        now = self._clock()
        return any(self._elapsed.since(job.id, moment, now) < QUIET_RELEASE for moment in ended)

    def _happened(self, job_id: str, event: lifecycle.Event) -> None:
        """Apply an event that is a fact, whatever version the job has by now."""
        for _ in range(APPLY_TRIES):
            job = self._store.job(job_id)
            if self._store.apply(job_id, job.version, event, self._clock()) is not None:
                self._changes.bump()
                return
        log.info("dropped as stale job=%s event=%s", job_id, event)

    # Commands -----------------------------------------------------------------------------------

    def _act(self) -> None:
        """Ask for what is due and was not asked for since the cluster came up."""
        up = self._state.facts.state == "up"
        for job in self._store.active():
            for attempt in job.unreleased:
                if self._fences.is_due(job, attempt, cluster_is_up=up):
                    self._fences.up(job.id, attempt.number)
                if not up:
                    continue
                if attempt.ended_at is not None or job.state is State.STOPPING:
                    self._release(attempt)
                elif attempt.state is State.STARTING:
                    self._launch(job, attempt)

    def _launch(self, job: JobRecord, attempt: AttemptRecord) -> None:
        if attempt.attempt_id in self._asked_to_launch:
            return
        if attempt.number > 1 and not self._fences.up(job.id, attempt.number - 1):
            return
        nodes = {node.id: node for node in self._state.facts.nodes or ()}
        node = nodes.get(attempt.node_id)
        if node is None:
            self._happened(
                job.id,
                lifecycle.LaunchFailed(
                    attempt=attempt.number, cause=f"node {attempt.node} is no longer there"
                ),
            )
            return
        if not self._tenure.sure():
            return
        self._asked_to_launch.add(attempt.attempt_id)
        (device,) = (item for item in node.devices if item.name == attempt.device)
        origin = (keys.checkpoints_prefix(job.origin_job),) if job.origin_job else ()
        launch = Launch(
            job_id=job.id,
            job_name=job.name,
            attempt=attempt.number,
            spec=job.spec,
            node=attempt.node,
            device=attempt.device,
            device_bytes=device.bytes,
            storage_uri=self._storage_uri,
            code=job.code,
            resume_from=(keys.checkpoints_prefix(job.id), *origin),
            share=JobSpec.model_validate(job.spec).shares,
            priority=job.priority,
            cap_bytes=attempt.cap_bytes,
            overrun=picture.overrun(job, self._outlooks),
            readmitted=any(each.reason is Reason.OUT_OF_MEMORY for each in job.attempts),
        )
        self.cluster.launch(launch, attempt.node_id, attempt.cpus)

    def _release(self, attempt: AttemptRecord) -> None:
        if attempt.attempt_id not in self._asked_to_release:
            self._store.mark_stop_requested(attempt.job_id, attempt.number, self._clock())
            self._asked_to_release.add(attempt.attempt_id)
            self.cluster.release(attempt.attempt_id, GRACE_S)
