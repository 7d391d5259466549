"""What every `Cluster` must do, whoever runs the workers. A test class inherits it."""

from __future__ import annotations

import threading
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import TypeVar

from dovetail.cluster.protocol import (
    Cluster,
    ClusterEvent,
    ClusterUp,
    NodesSeen,
    Released,
    WorkerGone,
)
from dovetail.scheduler.view import NodeView
from dovetail_workers.launch import Launch
from helpers.attempts import script_launch

Event = TypeVar("Event")


class Listener:
    """Keeps every event and lets a test wait for one."""

    def __init__(self) -> None:
        self.events: list[ClusterEvent] = []
        self._changed = threading.Condition()

    def __call__(self, event: ClusterEvent) -> None:
        with self._changed:
            self.events.append(event)
            self._changed.notify_all()

    def wait(self, kind: type[Event], holds: Callable[[Event], bool] = lambda _: True) -> Event:
        """The newest event of this kind for which `holds`, as soon as there is one."""

        def found() -> Event | None:
            matching = (e for e in reversed(self.events) if isinstance(e, kind) and holds(e))
            return next(matching, None)

        with self._changed:
            event = self._changed.wait_for(found, timeout=60)
        assert event is not None, f"no {kind.__name__} among {self.events}"
        return event

    def forget_all(self, kind: type[ClusterEvent]) -> None:
        with self._changed:
            self.events[:] = [event for event in self.events if not isinstance(event, kind)]


class ClusterContract:
    """`cluster` is started already; `storage` is a folder that its workers can write."""

    cluster: Cluster
    listener: Listener
    storage: Path

    def kill_worker(self, launch: Launch) -> None:
        """Let the worker of a running attempt die without a word."""
        raise NotImplementedError

    def node(self) -> NodeView:
        return self.listener.wait(NodesSeen).nodes[0]

    def launch(self, job_id: str, script: str) -> Launch:
        launch = replace(script_launch(self.storage, script), job_id=job_id)
        self.cluster.launch(launch, self.node().id, 1.0)
        return launch

    def test_a_started_cluster_says_that_it_is_up_and_what_it_has(self) -> None:
        assert self.listener.wait(ClusterUp).live == ()
        devices = self.node().devices
        assert [device.name for device in devices] == ["cpu:0", "cpu:1"]
        assert all(device.bytes == 2**30 for device in devices)

    def test_a_release_ends_a_running_attempt_and_may_be_repeated(self) -> None:
        launch = self.launch("running", "sleep 1000")
        for _ in range(2):
            self.cluster.release(launch.attempt_id, 0.5)
            self.listener.wait(Released, lambda e: e.attempt_id == launch.attempt_id)
            self.listener.forget_all(Released)

    def test_what_never_ran_can_be_released(self) -> None:
        self.cluster.release("unknown.7", 0.5)
        assert self.listener.wait(Released, lambda e: e.attempt_id == "unknown.7").killed == 0

    def test_a_launch_may_be_repeated(self) -> None:
        launch = self.launch("repeated", "sleep 1000")
        self.cluster.launch(launch, self.node().id, 1.0)
        self.cluster.release(launch.attempt_id, 0.5)
        self.listener.wait(Released, lambda e: e.attempt_id == launch.attempt_id)
        gone = [e for e in self.listener.events if isinstance(e, WorkerGone)]
        assert len([e for e in gone if e.attempt_id == launch.attempt_id]) <= 1

    def test_a_worker_that_dies_is_told_in_plain_words_and_can_be_released(self) -> None:
        launch = self.launch("mortal", "sleep 1000")
        self.kill_worker(launch)
        gone = self.listener.wait(WorkerGone, lambda e: e.attempt_id == launch.attempt_id)
        assert gone.cause.startswith("its worker died: ")
        assert "Error" not in gone.cause
        self.cluster.release(launch.attempt_id, 0.5)
        self.listener.wait(Released, lambda e: e.attempt_id == launch.attempt_id)
