"""The routes of /api/v1: each reads a request, asks one use case, and answers with a contract type.

Long polls: a GET with `after=N` waits until the change number is above N or `timeout` seconds are
over. The header `Dovetail-Change` of an answer is the number to ask `after` next; it was read
before the data, so no change is missed.
"""

from __future__ import annotations

import time
from typing import Annotated

import anyio.to_thread
from anyio import CapacityLimiter
from fastapi import APIRouter, Body, Header, Query, Response
from pydantic import BaseModel, Field, JsonValue
from starlette.concurrency import run_in_threadpool

from dovetail.api.code import SHA256
from dovetail.service.contract import (
    ClusterStatus,
    DeviceHistoryView,
    DeviceUseView,
    EventView,
    JobView,
    LogChunk,
    MetricPointView,
    NodesChanged,
    PlanView,
    Service,
)
from dovetail_jobs.lifecycle import State
from dovetail_jobs.load import load_data

CHANGE = "Dovetail-Change"
LONGEST_WAIT_S = 30.0
LARGEST_CHUNK_BYTES = 2**20
MOST_NODES = 16  # added at once: each is some six processes of this machine
# A waiting request holds a thread. They have their own, so that followers never delay a cancel.
WAITERS = 256

Spec = Annotated[
    dict[str, JsonValue], Body(description="A job; `dovetail schema` prints its JSON Schema")
]
After = Annotated[int | None, Query(ge=0, description="wait for a change number above this")]
Code = Annotated[
    str | None,
    Query(pattern=SHA256, description="the sha256 of the code that it runs, sent before"),
]
Timeout = Annotated[float, Query(ge=0, le=LONGEST_WAIT_S, description="seconds to wait at most")]


class Health(BaseModel):
    """The server answers."""

    ok: bool = True


class NodesRequest(BaseModel):
    """Extra nodes of this machine."""

    count: int = Field(default=1, ge=1, le=MOST_NODES)
    """How many to add."""


class ShutdownRequest(BaseModel):
    """What to end beside the server."""

    stop_ray: bool = True
    """End the Ray that the server started, with everything that runs in it."""


def router(service: Service) -> APIRouter:
    """All routes, answering for `service`. Plain functions run in the thread pool."""
    routes = APIRouter()
    waiters = CapacityLimiter(WAITERS)

    async def changed(response: Response, after: int | None, timeout_s: float) -> int:
        if after is None:
            number = await run_in_threadpool(service.change_number)
        else:
            number = await anyio.to_thread.run_sync(
                service.wait_change, after, timeout_s, limiter=waiters, abandon_on_cancel=True
            )
        response.headers[CHANGE] = str(number)
        return number

    @routes.get("/health")
    async def health() -> Health:
        """Whether the server answers; needs no token and says nothing else."""
        return Health()

    @routes.post("/jobs", status_code=201, responses={200: {"model": JobView}})
    def submit(
        spec: Spec,
        response: Response,
        code: Code = None,
        idempotency_key: Annotated[str | None, Header(max_length=200)] = None,
        dovetail_user: Annotated[str, Header(min_length=1, max_length=64)] = "unknown",
    ) -> JobView:
        """Submit a job: 201 for a new one, 200 when this Idempotency-Key has submitted it."""
        job, created = service.submit(load_data(spec), idempotency_key, dovetail_user, code)
        if not created:
            response.status_code = 200
        return job

    @routes.post("/jobs/plan")
    def plan(spec: Spec, code: Code = None) -> PlanView:
        """What a submission would do now, without doing it."""
        return service.plan(load_data(spec), code)

    @routes.get("/jobs")
    def jobs(
        state: Annotated[list[State] | None, Query()] = None,
        project: str | None = None,
        limit: Annotated[int | None, Query(ge=1)] = None,
    ) -> list[JobView]:
        """Jobs, newest first."""
        return service.jobs(state, project, limit)

    @routes.get("/jobs/{ref}")
    async def job(
        ref: str, response: Response, after: After = None, timeout: Timeout = 20.0
    ) -> JobView:
        """One job by id, unique beginning of an id, or name; a long poll with `after`."""
        await changed(response, after, timeout)
        return await run_in_threadpool(service.job, ref)

    @routes.post("/jobs/{ref}/cancel")
    def cancel(ref: str) -> JobView:
        """Stop a job; one that is over stays as it is."""
        return service.cancel(ref)

    @routes.post("/jobs/{ref}/retry", status_code=201)
    def retry(ref: str, from_scratch: bool = False) -> JobView:
        """A new job like a failed or cancelled one, from its newest checkpoint by default."""
        return service.retry(ref, from_scratch)

    @routes.get("/jobs/{ref}/events")
    def events(ref: str, after: Annotated[int, Query(ge=0)] = 0) -> list[EventView]:
        """The job's story after event number `after`."""
        return service.events(ref, after)

    @routes.get("/jobs/{ref}/metrics")
    def metrics(ref: str, metric: str | None = None) -> list[MetricPointView]:
        """The job's curves."""
        return service.metrics(ref, metric)

    @routes.get("/jobs/{ref}/logs")
    async def logs(
        ref: str,
        response: Response,
        attempt: Annotated[int | None, Query(ge=1)] = None,
        offset: Annotated[int, Query(ge=0)] = 0,
        limit_bytes: Annotated[int, Query(ge=1, le=LARGEST_CHUNK_BYTES)] = 2**18,
        after: After = None,
        timeout: Timeout = 20.0,
    ) -> LogChunk:
        """A stretch of an attempt's log; with `after`, waits while there is nothing to read yet."""
        deadline_s = time.monotonic() + timeout
        number = await changed(response, None, 0)
        while True:
            chunk = await run_in_threadpool(service.logs, ref, attempt, offset, limit_bytes)
            left_s = deadline_s - time.monotonic()
            if after is None or chunk.data or chunk.complete or left_s <= 0:
                return chunk
            seen, number = number, await changed(response, number, left_s)
            if number <= seen:  # The time is over, or the server lets go of who waits.
                return chunk

    @routes.get("/status")
    async def status(
        response: Response, after: After = None, timeout: Timeout = 20.0
    ) -> ClusterStatus:
        """Server, cluster, devices and counts; a long poll with `after`."""
        await changed(response, after, timeout)
        return await run_in_threadpool(service.status)

    @routes.get("/devices")
    def devices() -> list[DeviceUseView]:
        """Every device of the cluster, with those who hold or share it."""
        return service.devices()

    @routes.get("/devices/history")
    def device_histories() -> list[DeviceHistoryView]:
        """How the devices that jobs shared were shared over the last two hours."""
        return service.device_histories()

    @routes.post("/nodes", status_code=201)
    def add_nodes(request: NodesRequest) -> NodesChanged:
        """Start extra Ray nodes with CPU devices on the server's machine."""
        return service.add_nodes(request.count)

    @routes.delete("/nodes/{name}")
    def remove_node(name: str, force: bool = False) -> NodesChanged:
        """End an extra node; refused while it runs jobs, unless `force`: they move then."""
        return service.remove_node(name, force)

    @routes.post("/shutdown", status_code=202)
    def shutdown(request: ShutdownRequest) -> Health:
        """Begin to end the server."""
        service.shutdown(request.stop_ray)
        return Health()

    return routes
