"""One extra Ray node of this machine, as a process: `python -m dovetail.cluster.node_process JSON`.

`ray start` refuses to start a node that joins while Ray's nodes live at 127.0.0.1
(`ray_process.environment`), so the node is made by the class that `ray start` itself uses. Writes
`up` to descriptor 3 when the node runs, and ends with the node's raylet.
"""

from __future__ import annotations

import json
import os
import sys
from typing import Any

from ray._private import ray_constants
from ray._private.node import Node
from ray._private.parameter import RayParams

from dovetail.cluster.ray_process import OBJECT_STORE_BYTES

READY_FD = 3


def main() -> None:
    asked: dict[str, Any] = json.loads(sys.argv[1])
    node = Node(
        RayParams(
            gcs_address=asked["address"],
            node_ip_address="127.0.0.1",
            node_name=asked["name"],
            labels=asked["labels"],
            resources=asked["resources"],
            num_cpus=os.cpu_count() or 1,
            num_gpus=0,
            object_store_memory=OBJECT_STORE_BYTES,
            metrics_export_port=asked["metrics_port"],
            dashboard_agent_listen_port=asked["agent_port"],
            node_manager_port=0,
            min_worker_port=0,
            max_worker_port=0,
            include_log_monitor=False,  # the head's own serves the whole machine
        ),
        head=False,
        shutdown_at_exit=False,
        spawn_reaper=False,
    )
    (raylet,) = node.all_processes[ray_constants.PROCESS_TYPE_RAYLET]
    os.write(READY_FD, b"up\n")
    os.close(READY_FD)
    raylet.process.wait()
    node.kill_all_processes(check_alive=False, allow_graceful=False)


if __name__ == "__main__":
    main()
