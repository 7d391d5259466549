"""The Ray driver: a child process of the server that may die at any time. `python -m
dovetail.cluster.bridge SETTINGS`.

A process connected to Ray is ended by Ray about a minute after its head is lost, so the server is
never one. The bridge reads commands from standard input, writes events to standard output, ends
with the pipe, and keeps no state that its successor could not learn again.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import sys
from collections.abc import Coroutine
from pathlib import Path
from typing import Any

from dovetail.cluster import ray_head, wire
from dovetail.cluster.protocol import (
    ClusterEvent,
    ClusterLost,
    ClusterUp,
    LaunchFailed,
    NodesSeen,
    Released,
    Woken,
    WorkerGone,
)
from dovetail.cluster.wire import BridgeSettings
from dovetail.scheduler.view import DeviceView, NodeView
from dovetail_jobs.errors import DovetailError
from dovetail_workers.devices import discover
from dovetail_workers.launch import Launch

NODES_EVERY_S = 1.0
WATCH_S = 20.0
AGENT_TIMEOUT_S = 30.0
LAUNCH_TIMEOUT_S = 60.0


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
        self._agents: dict[str, Any] = {}
        self._nodes: tuple[NodeView, ...] = ()
        self._owns_nodes = settings.address is None
        self._workers: dict[str, Any] = {}
        self._pids: dict[str, int] = {}
        self._tasks: set[asyncio.Task[None]] = set()

    def connect(self) -> ClusterUp:
        """Start or find Ray and become its driver. Raises DovetailError when there is none."""
        settings = self._settings
        dashboard: str | None = None
        address = settings.address
        if address is None:
            token = Path(settings.ray_token)
            ray_head.ensure_token(token)
            os.environ.update(ray_head.environment(token))
            devices = discover(settings.cpu_devices, settings.device_bytes)
            head = ray_head.ensure(
                Path(settings.ray_record),
                token,
                Path(settings.ray_log),
                {f"device:{device.name}": 1.0 for device in devices},
            )
            address, dashboard = head.address, head.dashboard_url
        import ray  # after the environment stands: Ray reads it at import

        try:
            ray.init(
                address=address,
                namespace=settings.namespace,
                log_to_driver=False,
                logging_level="ERROR",
            )
        except ConnectionError as error:
            raise DovetailError(f"no Ray cluster answers at {address}: {error}") from None
        if dashboard is None:
            url = ray._private.worker.get_dashboard_url()
            dashboard = f"http://{url}" if url else None
        live = [attempt for name in self._named() if (attempt := attempt_of(name)) is not None]
        return ClusterUp(address=address, dashboard_url=dashboard, live=tuple(live))

    async def serve(self) -> None:
        """Carry out commands until standard input ends."""
        loop = asyncio.get_running_loop()
        try:
            up = await asyncio.to_thread(self.connect)
        except DovetailError as error:
            self._tell(ClusterLost(cause=str(error)))
            return
        await self._look_at_nodes()
        self._tell(up)
        for name in self._named():
            if (attempt := attempt_of(name)) is not None:
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
            os.write(self._out, wire.event_line(event))
        except BrokenPipeError:
            os._exit(0)  # the server is gone; workers go on

    def _named(self) -> list[str]:
        import ray

        found = ray.util.list_named_actors(all_namespaces=True)
        return [item["name"] for item in found if item["namespace"] == self._settings.namespace]

    async def _launch(self, command: dict[str, Any]) -> None:
        """Make the worker actor, pinned to its node and device, and set it going."""
        import ray
        from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

        from dovetail_workers import actor

        kind: Any = actor.AttemptWorker
        launch = Launch.from_json(command["launch"])
        if launch.attempt_id in self._workers:
            return
        try:
            worker = kind.options(
                name=actor_name(launch),
                lifetime="detached",
                get_if_exists=True,  # an earlier bridge may have made it just before it died
                num_cpus=command["cpus"],
                num_gpus=0,
                resources={f"device:{launch.device}": 1.0} if self._owns_nodes else None,
                scheduling_strategy=NodeAffinitySchedulingStrategy(command["node_id"], soft=False),
            ).remote(launch.to_json())
            self._workers[launch.attempt_id] = worker
            self._pids[launch.attempt_id] = await asyncio.wait_for(
                _value(worker.pid.remote()), LAUNCH_TIMEOUT_S
            )
            worker.run.remote()
        except (ray.exceptions.RayError, TimeoutError, ValueError) as error:
            failed = self._workers.pop(launch.attempt_id, None)
            if failed is not None:
                ray.kill(failed)
            self._tell(LaunchFailed(attempt_id=launch.attempt_id, cause=_first_line(error)))
            return
        await self._watch(launch.attempt_id)

    async def _adopt(self, attempt_id: str, name: str) -> None:
        """Watch a worker that an earlier bridge started."""
        import ray

        try:
            worker = ray.get_actor(name, namespace=self._settings.namespace)
            self._workers[attempt_id] = worker
            self._pids[attempt_id] = await _value(worker.pid.remote())
        except (ray.exceptions.RayError, ValueError) as error:
            self._workers.pop(attempt_id, None)
            self._tell(WorkerGone(attempt_id=attempt_id, cause=_first_line(error)))
            return
        await self._watch(attempt_id)

    async def _watch(self, attempt_id: str) -> None:
        """Pass on every sign of life until the attempt is over or its worker is gone."""
        import ray

        worker, news = self._workers[attempt_id], 0
        try:
            over = False
            while not over:
                news, over = await _value(worker.watch.remote(news, WATCH_S))
                self._tell(Woken(attempt_id=attempt_id))
            cause = await _value(worker.cause.remote())
            self._tell(WorkerGone(attempt_id=attempt_id, cause=cause))
        except ray.exceptions.RayError as error:
            self._tell(WorkerGone(attempt_id=attempt_id, cause=_first_line(error)))

    async def _release(self, attempt_id: str, grace_s: float) -> None:
        """Flag, grace, kill; then every node is asked until nothing of the attempt is left."""
        import ray

        worker = self._workers.get(attempt_id)
        if worker is None:
            worker = next(
                (
                    ray.get_actor(name, namespace=self._settings.namespace)
                    for name in self._named()
                    if attempt_of(name) == attempt_id
                ),
                None,
            )
        if worker is not None:
            with contextlib.suppress(ray.exceptions.RayError, TimeoutError):
                await asyncio.wait_for(_value(worker.stop.remote(grace_s)), grace_s + 10)
            ray.kill(worker)
        killed = 0
        for agent in list(self._agents.values()):
            with contextlib.suppress(ray.exceptions.RayActorError):
                swept = agent.sweep.remote(attempt_id, self._pids.get(attempt_id))
                killed += await asyncio.wait_for(_value(swept), AGENT_TIMEOUT_S)
        self._workers.pop(attempt_id, None)
        self._pids.pop(attempt_id, None)
        self._tell(Released(attempt_id=attempt_id, killed=killed))

    async def _keep_looking(self) -> None:
        while True:
            await asyncio.sleep(NODES_EVERY_S)
            await self._look_at_nodes()

    async def _look_at_nodes(self) -> None:
        """Tell what nodes there are when that has changed; each gets its agent."""
        import ray

        alive = {node["NodeID"]: node for node in ray.nodes() if node["Alive"]}
        for node_id in alive.keys() - self._agents.keys():
            self._agents[node_id] = self._agent(node_id)
        for node_id in self._agents.keys() - alive.keys():
            del self._agents[node_id]
        seen = []
        for node_id, node in sorted(alive.items()):
            known = next((view for view in self._nodes if view.id == node_id), None)
            seen.append(known or await self._node_view(node_id, node))
        nodes = tuple(view for view in seen if view is not None)
        if nodes != self._nodes:
            self._nodes = nodes
            self._tell(NodesSeen(nodes=nodes))

    async def _node_view(self, node_id: str, node: dict[str, Any]) -> NodeView | None:
        import ray

        try:
            devices = await asyncio.wait_for(
                _value(self._agents[node_id].devices.remote()), AGENT_TIMEOUT_S
            )
        except (ray.exceptions.RayError, TimeoutError) as error:
            print(f"bridge: node {node_id}: {_first_line(error)}", file=sys.stderr, flush=True)
            self._agents.pop(node_id, None)
            return None
        return NodeView(
            id=node_id,
            name=node["NodeManagerHostname"],
            cpus=float(node["Resources"].get("CPU", 0.0)),
            devices=tuple(DeviceView(name=d.name, bytes=d.bytes) for d in devices),
        )

    def _agent(self, node_id: str) -> Any:
        from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

        from dovetail_workers import actor

        kind: Any = actor.NodeAgent
        return kind.options(
            name=f"agent-{node_id[:12]}",
            lifetime="detached",
            get_if_exists=True,
            scheduling_strategy=NodeAffinitySchedulingStrategy(node_id, soft=False),
        ).remote(self._settings.cpu_devices, self._settings.device_bytes)


async def _value(ref: Any) -> Any:
    return await ref


def _first_line(error: BaseException) -> str:
    text = str(error).strip()
    return f"{type(error).__name__}: {text.splitlines()[0] if text else 'no message'}"[:400]


def main() -> None:
    settings = BridgeSettings(**json.loads(sys.argv[1]))
    out = os.dup(1)
    os.dup2(2, 1)  # whatever Ray prints is talk, not an event
    with contextlib.suppress(KeyboardInterrupt):
        asyncio.run(Bridge(settings, out).serve())
    os._exit(0)  # detached workers stay; no farewell that could wait for a Ray that is gone


if __name__ == "__main__":
    main()
