"""The Ray cluster as the server sees it: a bridge process at the other end of a pipe, started again
whenever it ends.
"""

from __future__ import annotations

import contextlib
import json
import logging
import subprocess
import sys
import threading
from dataclasses import asdict
from pathlib import Path
from typing import IO, Any

from dovetail.cluster import ray_head, wire
from dovetail.cluster.protocol import ClusterLost, ClusterUp, Deliver
from dovetail.cluster.wire import BridgeSettings
from dovetail_workers.launch import Launch

log = logging.getLogger(__name__)

FIRST_PAUSE_S, LAST_PAUSE_S = 0.5, 10.0


class RayCluster:
    """Implements `Cluster`. Commands given while no bridge stands are dropped: the daemon repeats
    what is still due at ClusterUp.
    """

    def __init__(self, settings: BridgeSettings, deliver: Deliver, bridge_log: Path) -> None:
        self._settings, self._deliver, self._bridge_log = settings, deliver, bridge_log
        self._lock = threading.Lock()
        self._bridge: subprocess.Popen[bytes] | None = None
        self._closing = threading.Event()
        self._thread = threading.Thread(target=self._keep, name="bridge", daemon=True)

    def start(self) -> None:
        self._thread.start()

    def launch(self, launch: Launch, node_id: str, cpus: float) -> None:
        self._send({"do": "launch", "launch": launch.to_json(), "node_id": node_id, "cpus": cpus})

    def release(self, attempt_id: str, grace_s: float) -> None:
        self._send({"do": "release", "attempt_id": attempt_id, "grace_s": grace_s})

    def close(self) -> None:
        """End the bridge by closing its pipe. The workers go on."""
        self._closing.set()
        with self._lock:
            bridge = self._bridge
        if bridge is not None and bridge.stdin is not None:
            with contextlib.suppress(OSError):
                bridge.stdin.close()
            try:
                bridge.wait(timeout=5)
            except subprocess.TimeoutExpired:
                bridge.kill()
        if self._thread.is_alive():
            self._thread.join(timeout=5)

    def stop(self) -> None:
        self.close()
        if self._settings.address is None:
            ray_head.stop(Path(self._settings.ray_record))

    def _send(self, command: dict[str, Any]) -> None:
        with self._lock:
            pipe = self._bridge.stdin if self._bridge is not None else None
            if pipe is not None:
                with contextlib.suppress(OSError):
                    pipe.write(json.dumps(command).encode() + b"\n")
                    pipe.flush()

    def _keep(self) -> None:
        pause_s = FIRST_PAUSE_S
        while not self._closing.is_set():
            with self._bridge_log.open("ab") as errors:
                bridge = subprocess.Popen(
                    [
                        sys.executable,
                        "-m",
                        "dovetail.cluster.bridge",
                        json.dumps(asdict(self._settings)),
                    ],
                    stdin=subprocess.PIPE,
                    stdout=subprocess.PIPE,
                    stderr=errors,
                    start_new_session=True,
                )
            with self._lock:
                self._bridge = bridge
            assert bridge.stdout is not None
            if self._read(bridge.stdout):
                pause_s = FIRST_PAUSE_S
            code = bridge.wait()
            with self._lock:
                self._bridge = None
            bridge.stdout.close()
            if bridge.stdin is not None:
                with contextlib.suppress(OSError):
                    bridge.stdin.close()
            if self._closing.is_set():
                return
            log.info("bridge ended code=%s restart_in_s=%.1f", code, pause_s)
            self._closing.wait(pause_s)
            pause_s = min(LAST_PAUSE_S, pause_s * 2)

    def _read(self, pipe: IO[bytes]) -> bool:
        """Deliver events until the bridge ends; whether it was ever connected."""
        connected = False
        cause = "the bridge to Ray ended"
        for line in pipe:
            event = wire.read_event(line)
            if isinstance(event, ClusterLost):
                cause = event.cause
                continue
            connected = connected or isinstance(event, ClusterUp)
            self._deliver(event)
        if not self._closing.is_set():
            self._deliver(ClusterLost(cause=cause))
        return connected
