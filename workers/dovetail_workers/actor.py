"""The Ray actors of a node: one `AttemptWorker` per attempt, and one small `NodeAgent` that knows
the node's devices and hosts their brokers.

Both are detached and named, so that a bridge that comes later finds them. `max_restarts=0`: Ray
never starts anything again by itself.
"""

from __future__ import annotations

import contextlib
import os
import threading
from collections.abc import Callable
from typing import Any

import ray

from dovetail_workers import cgroup, process_tree, shared_device
from dovetail_workers.devices import Device, discover
from dovetail_workers.fence import Fenced
from dovetail_workers.gauges import AttemptGauges, DeviceGauges, MemoryCounters
from dovetail_workers.launch import Launch
from dovetail_workers.shared_device import DeviceShares
from dovetail_workers.storage.protocol import StorageError
from dovetail_workers.supervisor import Supervisor, remove_scratch


def agent_name(node_id: str) -> str:
    return f"agent-{node_id[:12]}"


@ray.remote(max_restarts=0, concurrency_groups={"control": 4})
class AttemptWorker:
    """One attempt: `run` holds the main group for its whole life, `stop` and `watch` answer beside
    it.
    """

    def __init__(self, launch: dict[str, Any]) -> None:
        self._launch = Launch.from_json(launch)
        self._news = 0
        self._over = False
        self._cause = "the attempt is over"
        self._changed = threading.Condition()
        self._node_id = ray.get_runtime_context().get_node_id()
        self._gauges = AttemptGauges(self._launch)
        self._supervisor = Supervisor(
            self._launch,
            self._wake,
            self._gauges.take,
            shared_device.environment(self._launch, self._node_id),
        )
        print(
            f"job {self._launch.job_id} {self._launch.job_name}, attempt {self._launch.attempt}",
            flush=True,
        )

    def __repr__(self) -> str:
        return f"{self._launch.job_id} {self._launch.job_name}"

    def run(self) -> str:
        """Run the attempt to its end and say how it ended. Once only: a bridge that is not sure
        asks again.
        """
        if self._over:
            return "over"
        self._gauges.start()
        if self._launch.readmitted:
            self._to_agent(lambda agent: agent.count_return.remote(self._launch.device))
        try:
            ended = self._supervisor.run()
            if ended.outcome == "out_of_memory":
                ended_by = self._supervisor.ended_by
                self._to_agent(lambda agent: agent.count_end.remote(self._launch.device, ended_by))
            return ended.outcome
        except Fenced as fenced:
            print(f"{self._launch.attempt_id} ends itself: {fenced}", flush=True)
            ray.actor.exit_actor()
            raise
        except StorageError as error:
            self._cause = str(error)
            return "lost"
        finally:
            self._gauges.close()
            with self._changed:
                self._over = True
                self._changed.notify_all()

    @ray.method(concurrency_group="control")
    def pid(self) -> int:
        return os.getpid()

    @ray.method(concurrency_group="control")
    def cause(self) -> str:
        """Why the journal may have no end, once the attempt is over."""
        return self._cause

    @ray.method(concurrency_group="control")
    def watch(self, news: int, timeout_s: float) -> tuple[int, bool]:
        """Wait for news beyond number `news` or the end; the number now, and whether the attempt is
        over.
        """
        with self._changed:
            self._changed.wait_for(lambda: self._over or self._news > news, timeout=timeout_s)
            return self._news, self._over

    @ray.method(concurrency_group="control")
    def stop(self, grace_s: float) -> None:
        self._supervisor.stop(grace_s)

    def _to_agent(self, tell: Callable[[Any], object]) -> None:
        """The node's agent counts, since what this process counts ends with it."""
        with contextlib.suppress(ValueError, ray.exceptions.RayError):
            tell(ray.get_actor(agent_name(self._node_id)))

    def _wake(self) -> None:
        with self._changed:
            self._news += 1
            self._changed.notify_all()


@ray.remote(max_restarts=0, num_cpus=0, max_concurrency=8)
class NodeAgent:
    """What a node offers, who shares it, and the check that nothing of an attempt is left on it."""

    def __init__(self, cpu_devices: int | None, device_bytes: int | None) -> None:
        from dovetail_workers.device_brokers import (
            DeviceBrokers,
        )  # no attempt waits for its imports

        self._devices = discover(cpu_devices, device_bytes)
        self._brokers = DeviceBrokers(ray.get_runtime_context().get_node_id(), self._devices)
        self._brokers.look()
        self._gauges, self._counters = DeviceGauges(), MemoryCounters()

    def count_end(self, device: str, by: str) -> None:
        """Memory ended an attempt on that device."""
        self._counters.ended(device, by)

    def count_return(self, device: str) -> None:
        """One that memory ended before has begun there."""
        self._counters.readmitted(device)

    def devices(self) -> list[Device]:
        return self._devices

    def shares(self, sizes: dict[str, int]) -> tuple[DeviceShares, ...]:
        """How those who share the devices stand now; `sizes` are the bytes to divide, by device."""
        shares = self._brokers.look(sizes)
        self._gauges.take(shares)
        return shares

    def sweep(self, attempt_id: str, worker_pid: int | None) -> int:
        """End whatever still runs for an attempt, its worker included, and return when none of it
        is left; how many were killed.
        """
        killed = process_tree.kill_attempt(attempt_id)
        if worker_pid is not None:
            process_tree.wait_gone([worker_pid], timeout_s=5)
        remove_scratch(attempt_id)
        cgroup.remove(attempt_id)
        return killed
