"""`dovetail down` ends all of its Ray, also what hides its environment behind a title, and removes
the sockets of its devices.
"""

from pathlib import Path

import pytest

from dovetail.cluster import ray_record
from dovetail_workers.process_tree import processes_writing
from dovetail_workers.shared_device import socket_path
from helpers.installation import Installation

pytestmark = pytest.mark.ray


def test_no_process_of_ray_outlives_down(own: Installation) -> None:
    assert own.run("up", "--cpu-devices", "1", "--device-memory", "1GiB").returncode == 0
    head = ray_record.read(own.home / "ray.json")
    assert head is not None
    folder = Path(head.temp_dir)
    (node,) = own.json("status")["nodes"]
    socket = socket_path(node["id"], "cpu:0")
    assert socket.is_socket()
    titles = {" ".join(process.cmdline()).strip() for process in processes_writing(folder)}
    assert {"ray::DashboardAgent", "ray::RuntimeEnvAgent"} <= titles
    assert own.run("down").returncode == 0
    assert list(processes_writing(folder)) == []
    assert list(socket.parent.glob(f"{socket.stem}.*")) == []
