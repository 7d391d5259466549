"""The Ray driver: a child process of the server that may die at any time. `python -m
dovetail.cluster.bridge SETTINGS`.

A process connected to Ray is ended by Ray about a minute after its head is lost, so the server is
never one. The bridge reads commands from standard input, writes events to standard output, ends
with the pipe or with Ray's head, and keeps no state that its successor could not learn again.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import sys
import threading
from collections.abc import Coroutine
from pathlib import Path
from typing import Any, NoReturn

from dovetail.cluster import ray_head, ray_process, wire
from dovetail.cluster.head_probe import watch_head
from dovetail.cluster.node_watch import NodeGone, NodeWatch, value_of
from dovetail.cluster.protocol import (
    ClusterEvent,
    ClusterLost,
    ClusterUp,
    LaunchFailed,
    Released,
    Woken,
    WorkerGone,
)
from dovetail.cluster.wire import BridgeSettings
from dovetail.cluster.words import why_gone
from dovetail_jobs.errors import DovetailError
from dovetail_workers.devices import discover
from dovetail_workers.launch import Launch

NODES_EVERY_S = 1.0
WATCH_S = 20.0
CAUSE_TIMEOUT_S = 5.0
LAUNCH_TIMEOUT_S = 60.0
JOIN_TIMEOUT_S = 60.0
SHARED_PART = 0.001  # of a device's resource: of those who share it the scheduler keeps the books
HICCUP_S = 0.5  # before a worker that was unreachable is asked again


def actor_name(launch: Launch) -> str:
    """`<job id>:<job name>:<attempt>`, as the Ray dashboard lists it."""
    return f"{launch.job_id}:{launch.job_name}:{launch.attempt}"


def attempt_of(name: str) -> str | None:
    """The attempt id in an actor's name, None for an actor that is no attempt."""
    parts = name.split(":")
    return f"{parts[0]}.{parts[2]}" if len(parts) == 3 else None


class Bridge:
    def __init__(self, settings: BridgeSettings, out: int) -> None:
        self._settings = settings
        self._out = out
        self._telling = threading.Lock()
        self._owned = settings.address is None
        self._nodes = NodeWatch(settings, self._tell, self._spawn)
        self._found: dict[str, str] = {}  # attempt id → its actor's name, when we joined
        self._workers: dict[str, Any] = {}
        self._places: dict[str, str] = {}  # attempt id → node id
        self._pids: dict[str, int] = {}
        self._tasks: set[asyncio.Task[None]] = set()

    def start_ray(self) -> tuple[str, str | None]:
        """The address of Ray and, of one of our own, its dashboard; started if it does not run.

        Raises DovetailError when there is none.
        """
        settings = self._settings
        if settings.address is not None:
            host, _, port = settings.address.rpartition(":")
            if host and port.isdecimal() and not ray_process.answers(settings.address, tries=2):
                raise DovetailError(f"no Ray cluster answers at {settings.address}")
            return settings.address, None
        token = Path(settings.ray_token)
        ray_head.ensure_token(token)
        os.environ.update(ray_head.environment(token))
        devices = discover(settings.cpu_devices, settings.device_bytes)
        head = ray_head.ensure(
            Path(settings.ray_record),
            token,
            Path(settings.ray_log),
            {f"device:{device.name}": 1.0 for device in devices},
            settings.cpu_devices or 1,
        )
        return head.address, head.dashboard_url

    def join(self, address: str, dashboard: str | None) -> ClusterUp:
        """Become the driver of this Ray. Raises DovetailError when it refuses."""
        import ray  # after the environment stands: Ray reads it at import

        try:
            ray.init(
                address=address,
                namespace=self._settings.namespace,
                log_to_driver=False,
                logging_level="ERROR",
            )
        except (ConnectionError, RuntimeError, ValueError) as error:
            raise DovetailError(f"no Ray cluster answers at {address}: {error}") from None
        if dashboard is None:
            url = ray._private.worker.get_dashboard_url()
            dashboard = f"http://{url}" if url else None
        for name in self._named():
            if (attempt := attempt_of(name)) is not None:
                self._found[attempt] = name
        return ClusterUp(address=address, dashboard_url=dashboard, live=tuple(self._found))

    async def serve(self) -> None:
        """Carry out commands until standard input ends. Ends the process when Ray's head is
        lost.
        """
        loop = asyncio.get_running_loop()
        up = await self._connect()
        self._look()
        await self._nodes.introduced()
        self._tell(up)
        for attempt, name in self._found.items():  # exactly those that were said to live
            self._spawn(self._adopt(attempt, name))
        self._spawn(self._keep_looking())
        reader = asyncio.StreamReader(limit=1 << 24)
        await loop.connect_read_pipe(lambda: asyncio.StreamReaderProtocol(reader), sys.stdin)
        while line := await reader.readline():
            command = json.loads(line)
            if command["do"] == "launch":
                self._spawn(self._launch(command))
            else:
                self._spawn(self._release(command["attempt_id"], command["grace_s"]))

    async def _connect(self) -> ClusterUp:
        """Start or find Ray and join it, within a limit."""
        try:
            address, dashboard = await asyncio.to_thread(self.start_ray)
            if self._owned:
                watch_head(address, self._leave)
            joining = asyncio.to_thread(self.join, address, dashboard)
            up = await asyncio.wait_for(asyncio.shield(joining), JOIN_TIMEOUT_S)
        except DovetailError as error:
            self._leave(str(error))
        except TimeoutError:
            if self._owned:  # it stands, but nobody can join it: a frozen node, for example
                ray_head.discard(Path(self._settings.ray_record))
            self._leave(f"Ray at {address} let nobody join within {JOIN_TIMEOUT_S:g} s")
        if not self._owned:
            import ray

            watch_head(ray.get_runtime_context().gcs_address, self._leave)
        return up

    def _leave(self, cause: str) -> NoReturn:
        """Say that the cluster is lost and end: calls into Ray may wait for a head that is gone."""
        self._tell(ClusterLost(cause=cause))
        os._exit(1)

    def _spawn(self, work: Coroutine[Any, Any, None]) -> None:
        task = asyncio.get_running_loop().create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._done)

    def _done(self, task: asyncio.Task[None]) -> None:
        self._tasks.discard(task)
        if not task.cancelled() and (error := task.exception()) is not None:
            print(f"bridge: {type(error).__name__}: {error}", file=sys.stderr, flush=True)

    def _tell(self, event: ClusterEvent) -> None:
        try:
            with self._telling:
                os.write(self._out, wire.event_line(event))
        except BrokenPipeError:
            os._exit(0)  # the server is gone; workers go on

    def _named(self) -> list[str]:
        import ray

        found = ray.util.list_named_actors(all_namespaces=True)
        return [item["name"] for item in found if item["namespace"] == self._settings.namespace]

    def _find(self, attempt_id: str) -> Any | None:
        """The worker of an attempt by its actor's name, None if there is none."""
        import ray

        for name in self._named():
            if attempt_of(name) == attempt_id:
                with contextlib.suppress(ValueError):  # it ended between the two questions
                    return ray.get_actor(name, namespace=self._settings.namespace)
        return None

    async def _launch(self, command: dict[str, Any]) -> None:
        """Make the worker actor, pinned to its node and device, and set it going."""
        import ray
        from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

        from dovetail_workers import actor

        kind: Any = actor.AttemptWorker
        launch, node_id = Launch.from_json(command["launch"]), command["node_id"]
        if launch.attempt_id in self._workers:
            return
        self._places[launch.attempt_id] = node_id
        part = SHARED_PART if launch.share else 1.0
        try:
            worker = kind.options(
                name=actor_name(launch),
                lifetime="detached",
                get_if_exists=True,  # an earlier bridge may have made it just before it died
                num_cpus=command["cpus"],
                num_gpus=0,
                resources={f"device:{launch.device}": part} if self._owned else None,
                scheduling_strategy=NodeAffinitySchedulingStrategy(node_id, soft=False),
            ).remote(launch.to_json())
            self._workers[launch.attempt_id] = worker
            pid = self._nodes.unless_gone(node_id, worker.pid.remote())
            self._pids[launch.attempt_id] = await asyncio.wait_for(pid, LAUNCH_TIMEOUT_S)
            worker.run.remote()
        except (ray.exceptions.RayError, NodeGone, TimeoutError, ValueError) as error:
            failed = self._workers.pop(launch.attempt_id, None)
            if failed is not None:
                ray.kill(failed)
            cause = self._why(launch.attempt_id, error)
            self._tell(LaunchFailed(attempt_id=launch.attempt_id, cause=cause))
            return
        await self._watch(launch.attempt_id)

    async def _adopt(self, attempt_id: str, name: str) -> None:
        """Watch a worker that an earlier bridge made. That one may have died before it set the
        worker going, or before the worker stood, so it is asked for its pid and told to run: one
        that runs already only queues this, and answers when it is over.
        """
        import ray

        try:
            worker = ray.get_actor(name, namespace=self._settings.namespace)
            self._workers[attempt_id] = worker
            pid = asyncio.wait_for(value_of(worker.pid.remote()), LAUNCH_TIMEOUT_S)
            self._pids[attempt_id] = await pid
            self._places[attempt_id] = _node_of(worker)
            worker.run.remote()
        except (ray.exceptions.RayError, TimeoutError, KeyError, ValueError) as error:
            if (worker := self._workers.pop(attempt_id, None)) is not None:
                ray.kill(worker)
            self._tell(WorkerGone(attempt_id=attempt_id, cause=self._why(attempt_id, error)))
            return
        await self._watch(attempt_id)

    async def _watch(self, attempt_id: str) -> None:
        """Pass on every sign of life until the attempt is over or its worker is gone. A worker that
        cannot be reached for a moment is asked again: Ray says so when it is dead.
        """
        import ray

        worker, node_id, news = self._workers[attempt_id], self._places[attempt_id], 0
        over = False
        while not over:
            try:
                heard = self._nodes.unless_gone(node_id, worker.watch.remote(news, WATCH_S))
                news, over = await heard
                self._tell(Woken(attempt_id=attempt_id))
            except ray.exceptions.ActorUnavailableError:
                await asyncio.sleep(HICCUP_S)
            except (ray.exceptions.RayError, NodeGone) as error:
                self._look()  # a node that took the worker with it is dropped now
                self._tell(WorkerGone(attempt_id=attempt_id, cause=self._why(attempt_id, error)))
                return
        cause = "the attempt is over"
        with contextlib.suppress(ray.exceptions.RayError, TimeoutError):
            cause = await asyncio.wait_for(value_of(worker.cause.remote()), CAUSE_TIMEOUT_S)
        self._tell(WorkerGone(attempt_id=attempt_id, cause=cause))

    def _why(self, attempt_id: str, error: BaseException) -> str:
        node_id = self._places.get(attempt_id, "")
        return why_gone(error, self._nodes.name(node_id), self._nodes.lives(node_id))

    async def _release(self, attempt_id: str, grace_s: float) -> None:
        """Flag, grace, kill; then every node is asked until nothing of the attempt is left."""
        import ray

        worker = self._workers.get(attempt_id) or self._find(attempt_id)
        if worker is not None:
            node_id = self._places.get(attempt_id) or _node_of(worker)
            with contextlib.suppress(ray.exceptions.RayError, NodeGone, TimeoutError):
                stopped = self._nodes.unless_gone(node_id, worker.stop.remote(grace_s))
                await asyncio.wait_for(stopped, grace_s + 10)
            ray.kill(worker)
        killed = await self._nodes.sweep(attempt_id, self._pids.get(attempt_id))
        for known in (self._workers, self._places, self._pids):
            known.pop(attempt_id, None)
        self._tell(Released(attempt_id=attempt_id, killed=killed))

    async def _keep_looking(self) -> None:
        while True:
            await asyncio.sleep(NODES_EVERY_S)
            self._look()

    def _look(self) -> None:
        if not self._nodes.look():
            # The GCS answers but its own node is dead or frozen: no such Ray can be joined again.
            ray_head.discard(Path(self._settings.ray_record))
            self._leave("the node of Ray's head is gone")


def _node_of(worker: Any) -> str:
    """The id of the node on which an actor lives, or lived."""
    import ray

    place: str = ray._private.state.actors(worker._actor_id.hex())["Address"]["NodeID"]
    return place


def main() -> None:
    settings = BridgeSettings(**json.loads(sys.argv[1]))
    out = os.dup(1)
    os.dup2(2, 1)  # whatever Ray prints is talk, not an event
    with contextlib.suppress(KeyboardInterrupt):
        asyncio.run(Bridge(settings, out).serve())
    os._exit(0)  # detached workers stay; no farewell that could wait for a Ray that is gone


if __name__ == "__main__":
    main()
