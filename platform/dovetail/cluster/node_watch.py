"""The nodes of a Ray cluster as the bridge sees them: who is there, what each offers, and the agent
on each that says how its devices are shared, and finds and ends what is left of an attempt.

For the bridge only: it must be connected to Ray.
"""

from __future__ import annotations

import asyncio
import contextlib
import sys
from collections.abc import Awaitable, Callable, Coroutine
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

from dovetail.cluster import local_nodes
from dovetail.cluster.protocol import ClusterEvent, DevicesSeen, NodesSeen
from dovetail.cluster.wire import BridgeSettings
from dovetail.cluster.words import first_line
from dovetail.scheduler.view import DeviceView, NodeView
from dovetail_workers.devices import Device

Value = TypeVar("Value")

AGENT_TIMEOUT_S = 30.0
AGAIN_S = 1.0  # between two tries of an agent that failed
SHARES_EVERY_S = 1.0
_HEAD = "node:__internal_head__"


class NodeGone(Exception):
    """The node whose answer was awaited is no longer part of the cluster; its name."""


@dataclass(slots=True)
class _Node:
    id: str
    name: str
    cpus: float
    mark: str | None  # of an extra local node of ours
    agent: Any
    devices: list[Device] | None = None
    introduced: asyncio.Event = field(default_factory=asyncio.Event)
    gone: asyncio.Event = field(default_factory=asyncio.Event)


class NodeWatch:
    """`spawn` runs a coroutine beside the caller, `tell` passes an event on."""

    def __init__(
        self,
        settings: BridgeSettings,
        tell: Callable[[ClusterEvent], None],
        spawn: Callable[[Coroutine[Any, Any, None]], None],
    ) -> None:
        self._settings, self._tell, self._spawn = settings, tell, spawn
        self._owned = settings.address is None
        self._nodes: dict[str, _Node] = {}
        self._names: dict[str, str] = {}  # of nodes that are gone too
        self._told: tuple[NodeView, ...] | None = None

    def look(self) -> bool:
        """Ask Ray who is there and tell what has changed. False if the head's own node is not
        (where the head is ours).
        """
        import ray

        rows = {row["NodeID"]: row for row in ray.nodes() if row["Alive"]}
        for node_id in self._nodes.keys() - rows.keys():
            self._lose(self._nodes.pop(node_id))
        for node_id in rows.keys() - self._nodes.keys():
            self._nodes[node_id] = node = self._met(rows[node_id])
            self._names[node_id] = node.name
            self._spawn(self._ask_devices(node))
        self._announce()
        return not self._owned or any(_HEAD in row["Resources"] for row in rows.values())

    async def introduced(self) -> None:
        """Until every node that is there has said what it offers, or had its time for it."""
        waits = [asyncio.ensure_future(node.introduced.wait()) for node in self._nodes.values()]
        if waits:
            await asyncio.wait(waits, timeout=AGENT_TIMEOUT_S)

    def name(self, node_id: str) -> str | None:
        """What a person calls a node that is or was there."""
        return self._names.get(node_id)

    def lives(self, node_id: str) -> bool:
        """Whether the node was there at the last look."""
        return node_id in self._nodes

    async def unless_gone(self, node_id: str, answer: Awaitable[Value]) -> Value:
        """An answer from a node; raises NodeGone when the node is lost first, and what the answer
        raises.
        """
        node = self._nodes.get(node_id)
        if node is None:
            raise NodeGone(self._names.get(node_id, node_id))
        asked = asyncio.ensure_future(value_of(answer))
        gone = asyncio.ensure_future(node.gone.wait())
        try:
            await asyncio.wait({asked, gone}, return_when=asyncio.FIRST_COMPLETED)
            if asked.done():
                return asked.result()
            raise NodeGone(node.name)
        finally:
            asked.cancel()
            gone.cancel()

    async def sweep(self, attempt_id: str, worker_pid: int | None) -> int:
        """Until no node that is there has a process of the attempt; how many were killed. On one
        machine any living node finds what a dead one left.
        """
        nodes = list(self._nodes.values())
        return sum(
            await asyncio.gather(*(self._sweep(node, attempt_id, worker_pid) for node in nodes))
        )

    async def _sweep(self, node: _Node, attempt_id: str, worker_pid: int | None) -> int:
        import ray

        while True:
            try:
                swept = node.agent.sweep.remote(attempt_id, worker_pid)
                answer = self.unless_gone(node.id, swept)
                killed: int = await asyncio.wait_for(answer, AGENT_TIMEOUT_S)
                return killed
            except NodeGone:
                return 0
            except (ray.exceptions.RayError, TimeoutError) as error:
                await self._mend(node, error)

    async def _ask_devices(self, node: _Node) -> None:
        import ray

        while node.devices is None and not node.gone.is_set():
            try:
                answer = self.unless_gone(node.id, node.agent.devices.remote())
                node.devices = await asyncio.wait_for(answer, AGENT_TIMEOUT_S)
            except NodeGone:
                return
            except (ray.exceptions.RayError, TimeoutError) as error:
                await self._mend(node, error)
        node.introduced.set()
        self._announce()
        await self._follow_shares(node)

    async def _follow_shares(self, node: _Node) -> None:
        """Tell how the node's devices are shared whenever that has changed, until it is gone."""
        import ray

        told = None
        while not node.gone.is_set():
            try:
                sizes = {device.name: device.bytes for device in self._view(node).devices}
                answer = self.unless_gone(node.id, node.agent.shares.remote(sizes))
                devices = await asyncio.wait_for(answer, AGENT_TIMEOUT_S)
            except NodeGone:
                return
            except (ray.exceptions.RayError, TimeoutError) as error:
                await self._mend(node, error)
                continue
            if devices != told:
                told = devices
                self._tell(DevicesSeen(node_id=node.id, devices=devices))
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(node.gone.wait(), SHARES_EVERY_S)

    async def _mend(self, node: _Node, error: BaseException) -> None:
        """After a failure of a node's agent: a moment, and a new one if it died."""
        import ray

        print(f"bridge: node {node.name}: {first_line(error)}", file=sys.stderr, flush=True)
        await asyncio.wait({asyncio.ensure_future(node.gone.wait())}, timeout=AGAIN_S)
        if isinstance(error, ray.exceptions.ActorDiedError) and not node.gone.is_set():
            node.agent = self._agent(node.id, node.mark)

    def _met(self, row: dict[str, Any]) -> _Node:
        mark = row["Labels"].get(local_nodes.LABEL) if self._owned else None
        name, host = row["NodeName"], row["NodeManagerHostname"]
        named = name and name != row["NodeManagerAddress"]  # an address is Ray's own default
        return _Node(
            id=row["NodeID"],
            name=name if named else host,
            cpus=float(row["Resources"].get("CPU", 0.0)),
            mark=mark,
            agent=self._agent(row["NodeID"], mark),
        )

    def _agent(self, node_id: str, mark: str | None) -> Any:
        from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

        from dovetail_workers import actor

        kind: Any = actor.NodeAgent
        cpu_devices = self._settings.cpu_devices
        return kind.options(
            name=actor.agent_name(node_id),
            lifetime="detached",
            get_if_exists=True,
            scheduling_strategy=NodeAffinitySchedulingStrategy(node_id, soft=False),
        ).remote(
            cpu_devices if mark is None else cpu_devices or 1,  # the GPUs are the head's
            self._settings.device_bytes,
        )

    def _lose(self, node: _Node) -> None:
        print(f"bridge: node {node.name} is gone", file=sys.stderr, flush=True)
        node.gone.set()
        node.introduced.set()
        if node.mark is not None:
            self._spawn(self._forget(node.mark))

    async def _forget(self, mark: str) -> None:
        record = Path(self._settings.ray_record)
        await asyncio.to_thread(local_nodes.forget, record, mark)

    def _announce(self) -> None:
        known = [node for node in self._nodes.values() if node.devices is not None]
        views = tuple(self._view(node) for node in sorted(known, key=lambda n: (n.name, n.id)))
        if views != self._told and views:
            self._told = views
            self._tell(NodesSeen(nodes=views))

    def _view(self, node: _Node) -> NodeView:
        devices = tuple(
            DeviceView(name=device.name, bytes=self._share(device)) for device in node.devices or ()
        )
        return NodeView(id=node.id, name=node.name, cpus=node.cpus, devices=devices)

    def _share(self, device: Device) -> int:
        """Bytes of a device. CPU devices of a size that nobody chose share the machine's memory
        with those of its other nodes.
        """
        if not self._owned or self._settings.device_bytes or not device.name.startswith("cpu:"):
            return device.bytes
        sharing = [
            node
            for node in self._nodes.values()
            if any(other.name.startswith("cpu:") for other in node.devices or ())
        ]
        return device.bytes // max(1, len(sharing))


async def value_of(answer: Awaitable[Value]) -> Value:
    return await answer
