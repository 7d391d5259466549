"""The use cases behind the API: submit, plan, look, cancel, retry. Each is a short session with the
store; deciding is the daemon's.
"""

from __future__ import annotations

import logging
import os
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path

from dovetail.scheduler.cycle import schedule
from dovetail.scheduler.decisions import Start, Wait
from dovetail.scheduler.placement import never_fits
from dovetail.scheduler.policies import POLICIES
from dovetail.scheduler.view import DeviceView, Holding, NodeView
from dovetail.service import picture
from dovetail.service.changes import Changes
from dovetail.service.cluster_state import ClusterState
from dovetail.service.code import CodeShelf
from dovetail.service.contract import (
    ClusterStatus,
    CodeView,
    DatabaseStatus,
    DeviceHistoryView,
    DeviceStatus,
    DeviceUseView,
    EventView,
    ForecastView,
    JobView,
    LogChunk,
    MetricPointView,
    NodesChanged,
    NodeStatus,
    PlacementView,
    PlanView,
    RayStatus,
    ServerOptions,
    ServerStatus,
)
from dovetail.service.devices import Devices
from dovetail.service.elapsed import Elapsed
from dovetail.service.forecasts import Forecasts
from dovetail.service.known_devices import absent
from dovetail.service.nodes import Nodes
from dovetail.service.outlooks import Foreseen, Outlooks, foreseen, warnings
from dovetail.service.server_state import ServerFacts, ServerState
from dovetail.service.views import event_view, job_view, metric_view
from dovetail.settings import Settings
from dovetail.store.records import JobRecord
from dovetail.store.store import Store
from dovetail_jobs.errors import Conflict, DatabaseLost, UserError
from dovetail_jobs.lifecycle import CancelRequested, State
from dovetail_jobs.spec import JobSpec
from dovetail_workers.log import read_log
from dovetail_workers.storage.protocol import Storage

log = logging.getLogger(__name__)

FORESEEN_WITHIN_S = 20.0
FORECASTS_AT_ONCE = 2  # that submissions wait for; each is a process that computes
_THIS = "(this job)"


class Platform:
    """Implements the `Service` protocol of contract.py. `nudge` asks the daemon to look at once."""

    def __init__(
        self,
        *,
        store: Store,
        storage: Storage,
        state: ClusterState,
        server: ServerState,
        changes: Changes,
        nudge: Callable[[], None],
        code: CodeShelf,
        forecasts: Forecasts,
        outlooks: Outlooks,
        settings: Settings,
        url: str,
    ) -> None:
        self._store, self._storage = store, storage
        self._state, self._changes, self._nudge = state, changes, nudge
        self._server = server
        self._settings, self._url = settings, url
        self._nodes = Nodes(settings, state, store)
        self._code, self._forecasts, self._outlooks = code, forecasts, outlooks
        self._forecasting = threading.Semaphore(FORECASTS_AT_ONCE)
        self._born_s = time.monotonic()
        self._devices = Devices(state, store)
        self.on_shutdown: Callable[[], None] = lambda: None
        self.stop_ray = False

    def submit(
        self, spec: JobSpec, key: str | None, user: str, code: str | None = None
    ) -> tuple[JobView, bool]:
        """What no device can hold is refused, as far as that is known (`_foresee_soon`)."""
        spec, _ = self._code.resolve(spec, code)
        said: tuple[str, ...] = ()
        if key is None or not self._store.has(key):
            found = self._foresee_soon(spec, code)
            self._refuse_too_large(spec, found)
            said = () if found is None else warnings(spec, found)
        job, created = self._store.submit(spec.to_json(), user=user, key=key, now=_now(), code=code)
        self._changed()
        return self._view(job, said), created

    def _foresee_soon(self, spec: JobSpec, code: str | None) -> Foreseen | None:
        """What is kept of a family's job, or else what a child finds out within `FORESEEN_WITHIN_S`
        where that decides something: whether it is refused, or what it is told of its reservation.
        Nothing is acknowledged before. While others wait so, and while there is no cluster, nobody
        does: the daemon foresees the job, and ends it if it fits nowhere.
        """
        if spec.family is None:
            return None
        if (answer := self._forecasts.kept(spec, code)) is not None:
            return foreseen(_THIS, answer)
        planned = spec.memory.policy != "none" or isinstance(spec.resources.memory, int)
        if not planned or not self._state.facts.nodes:
            return None
        if not self._forecasting.acquire(blocking=False):
            return None
        try:
            with self._code.opened(code) as folder:
                answer = self._forecasts.of(
                    spec, workdir=folder, code=code, limit_s=FORESEEN_WITHIN_S
                )
        except UserError as error:
            log.info("no forecast yet name=%s: %s", spec.name, error)
            return None
        finally:
            self._forecasting.release()
        return foreseen(_THIS, answer)

    def _refuse_too_large(self, spec: JobSpec, found: Foreseen | None) -> None:
        """By the devices that are here now, and those that may come back."""
        nodes = self._state.facts.nodes or ()
        job = picture.queued_job(_THIS, spec, seq=0, found=found)
        if (cause := never_fits(job, (*nodes, *(self._absent(nodes) or ())))) is not None:
            raise UserError(f"job {spec.name}: {cause}")

    def _absent(self, nodes: tuple[NodeView, ...] | None) -> tuple[NodeView, ...] | None:
        return absent(self._store.devices(), nodes) if nodes else None

    def plan(self, spec: JobSpec, code: str | None = None) -> PlanView:
        """The scheduler's answer for one more job in the queue as it stands, and its memory."""
        spec, would_run = self._code.resolve(spec, code)
        forecast, found = self._foresee(spec, code)
        active = self._store.active()
        asked = picture.queued_job(_THIS, spec, seq=1 << 62, found=found)
        nodes, elapsed = self._state.facts.nodes, Elapsed(time.monotonic)
        view = picture.cluster_view(nodes, active, _now(), elapsed, self._outlooks)
        view = replace(picture.with_queued(view, asked), absent=self._absent(nodes))
        decisions = schedule(view, POLICIES["priority"], _now())
        (decision,) = (item for item in decisions if item.job_id == asked.id)
        place, reason, message = None, "PLACED", ""
        if isinstance(decision, Start):
            place = PlacementView(node=decision.node, device=decision.device)
            message = decision.reason
        elif isinstance(decision, Wait):
            reason, message = decision.reason, decision.message
        else:
            reason, message = "REFUSED", decision.message
        return PlanView(
            spec=spec.to_json(),
            placement=place,
            reason=reason,
            message=message,
            code=would_run,
            forecast=forecast,
            warnings=warnings(spec, found),
        )

    def _foresee(self, spec: JobSpec, code: str | None) -> tuple[ForecastView | None, Foreseen]:
        """No forecast for a script, of which only what one took may be known, and for a family
        whose step cannot be foreseen.
        """
        if spec.family is None:
            took = self._forecasts.kept(spec, code)
            nothing = Foreseen(job_id=_THIS, cause="it is a script")
            return None, nothing if took is None else foreseen(_THIS, took)
        try:
            with self._code.opened(code) as folder:
                answer = self._forecasts.of(spec, workdir=folder, code=code)
        except UserError as error:
            log.info("no forecast name=%s: %s", spec.name, error)
            return None, Foreseen(job_id=_THIS, cause=str(error))
        return ForecastView.model_validate(answer["forecast"]), foreseen(_THIS, answer)

    def code(self, sha256: str) -> CodeView:
        return self._code.find(sha256)

    def keep_code(self, sha256: str, archive: Path) -> CodeView:
        return self._code.keep(sha256, archive)

    def job(self, ref: str) -> JobView:
        return self._view(self._store.job(ref))

    def jobs(
        self, states: Sequence[State] | None, project: str | None, limit: int | None
    ) -> list[JobView]:
        found = self._store.jobs(states=states, project=project, limit=limit)
        return [self._view(job) for job in found]

    def cancel(self, ref: str) -> JobView:
        """Tried again while other writers move the job; a job that is over stays as it is."""
        while True:
            job = self._store.job(ref)
            if job.state.terminal:
                return self._view(job)
            changed = self._store.apply(job.id, job.version, CancelRequested(by=job.user), _now())
            if changed is not None:
                self._changed()
                return self._view(changed)

    def retry(self, ref: str, from_scratch: bool) -> JobView:
        old = self._store.job(ref)
        if not old.state.terminal:
            raise Conflict(
                f"job {old.id} is {old.state}; it is over first, then it can be retried "
                f"(dovetail cancel {old.id})"
            )
        if old.state is State.SUCCEEDED:
            raise Conflict(f"job {old.id} succeeded; there is nothing to retry, submit it again")
        origin = None if from_scratch else old.id
        job, _ = self._store.submit(
            old.spec, user=old.user, key=None, now=_now(), origin=origin, code=old.code
        )
        self._changed()
        return self._view(job)

    def events(self, ref: str, after: int) -> list[EventView]:
        return [event_view(event) for event in self._store.events(self._store.job(ref).id, after)]

    def metrics(self, ref: str, metric: str | None) -> list[MetricPointView]:
        points = self._store.metric_points(self._store.job(ref).id, metric)
        return [metric_view(point) for point in points]

    def logs(self, ref: str, attempt: int | None, offset: int, limit_bytes: int) -> LogChunk:
        job = self._store.job(ref)
        numbers = [item.number for item in job.attempts]
        if not numbers:
            return LogChunk(
                attempt=None, offset=0, next_offset=0, data="", complete=job.state.terminal
            )
        number = numbers[-1] if attempt is None else attempt
        if number not in numbers:
            raise Conflict(f"job {job.id} has attempts 1 to {numbers[-1]}, not {number}")
        over = job.attempts[number - 1].ended_at is not None  # asked before the log is read
        piece = read_log(self._storage, job.id, number, offset, limit_bytes)
        text = _whole_characters(piece.data) if not over else piece.data
        return LogChunk(
            attempt=number,
            offset=piece.offset,
            next_offset=piece.offset + len(text),
            data=text.decode(errors="replace"),
            complete=over and len(piece.data) < limit_bytes,
        )

    def status(self) -> ClusterStatus:
        """Answers also while the database does not: then without jobs."""
        facts = self._state.facts
        active: list[JobRecord] = []
        counts: dict[str, int] = {}
        outage = self._server.facts.outage
        try:
            active, counts = self._store.active(), self._store.counts()
        except DatabaseLost as lost:
            outage = lost.message
        held = picture.holdings(active)
        nodes = tuple(
            NodeStatus(
                id=node.id,
                name=node.name,
                cpus=node.cpus,
                devices=tuple(
                    _device_status(
                        device,
                        [
                            item
                            for item in held
                            if (item.node_id, item.device) == (node.id, device.name)
                        ],
                    )
                    for device in node.devices
                ),
            )
            for node in facts.nodes or ()
        )
        return ClusterStatus(
            server=ServerStatus(
                pid=os.getpid(),
                url=self._url,
                version=metadata.version("dovetail"),
                uptime_s=round(time.monotonic() - self._born_s, 1),
                home=str(self._settings.home),
                options=ServerOptions.model_validate(self._settings.server_options()),
                role=self._server.facts.role,
                message=_standing_by(self._server.facts),
            ),
            database=DatabaseStatus(
                state="up" if outage is None else "lost", place=self._store.place, message=outage
            ),
            ray=RayStatus(
                state=facts.state,
                address=facts.address,
                dashboard_url=facts.dashboard_url,
                message=facts.message,
            ),
            nodes=nodes,
            counts=counts,
        )

    def devices(self) -> list[DeviceUseView]:
        return self._devices.now()

    def device_histories(self) -> list[DeviceHistoryView]:
        return self._devices.history()

    def add_nodes(self, count: int) -> NodesChanged:
        return self._nodes.add(count)

    def remove_node(self, name: str, force: bool) -> NodesChanged:
        return self._nodes.remove(name, force)

    def change_number(self) -> int:
        return self._changes.number

    def wait_change(self, after: int, timeout_s: float) -> int:
        return self._changes.wait(after, timeout_s)

    def shutdown(self, stop_ray: bool) -> None:
        self.stop_ray = stop_ray
        self.on_shutdown()

    def _view(self, job: JobRecord, said: tuple[str, ...] = ()) -> JobView:
        return job_view(job, self._storage, self._devices.waits(job), said)

    def _changed(self) -> None:
        self._changes.bump()
        self._nudge()


def _device_status(device: DeviceView, held: Sequence[Holding]) -> DeviceStatus:
    jobs = tuple(holding.job_id for holding in held)
    return DeviceStatus(
        name=device.name, bytes=device.bytes, job=jobs[0] if jobs else None, jobs=jobs
    )


def _standing_by(server: ServerFacts) -> str | None:
    if server.role != "standby":
        return None
    return f"standby: the server at {server.decider or 'another place'} decides"


def _now() -> datetime:
    return datetime.now(UTC)


def _whole_characters(data: bytes) -> bytes:
    """Without the first bytes of a character whose rest is not here yet."""
    for cut in range(1, min(4, len(data) + 1)):
        byte = data[-cut]
        if byte & 0xC0 == 0xC0:
            needed = 2 if byte < 0xE0 else 3 if byte < 0xF0 else 4
            return data[:-cut] if cut < needed else data
        if byte & 0x80 == 0:
            return data
    return data
