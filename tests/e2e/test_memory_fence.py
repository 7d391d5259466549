"""A program that takes more device memory than it declares, on a real Ray: its neighbour is not
disturbed, and it comes back where it disturbs nobody.
"""

import json
import math
from pathlib import Path

import pytest

from helpers.attempts import wait_for
from helpers.exporter import exported
from helpers.installation import Installation

pytestmark = pytest.mark.ray

HUNGRY = "import time; held = bytearray(b'x') * (600 << 20); time.sleep(4)"
MODEST = "import time; held = bytearray(b'x') * (40 << 20); time.sleep(1000)"


def declaring(folder: Path, name: str, code: str, memory: str) -> Path:
    (folder / f"{name}.py").write_text(code)
    path = folder / f"{name}.yaml"
    spec = {
        "version": 1,
        "name": name,
        "script": f"python {folder / name}.py",
        "resources": {"memory": memory, "share": True, "cpus": 0.5},
    }
    path.write_text(json.dumps(spec))
    return path


def test_it_is_ended_and_comes_back_with_a_device_of_its_own(
    own: Installation, tmp_path: Path
) -> None:
    assert own.run("up", "--cpu-devices", "1", "--device-memory", "1GiB").returncode == 0
    neighbour = own.submit(declaring(tmp_path, "modest", MODEST, "200MiB"))["id"]
    own.wait_for_state(neighbour, "RUNNING")
    hungry = own.submit(declaring(tmp_path, "hungry", HUNGRY, "100MiB"))["id"]
    waiting = wait_for(
        "its first end",
        lambda: (
            (job := own.json("show", hungry))["attempts"]
            and job["attempts"][0]["reason"] == "OUT_OF_MEMORY"
            and job["reason"] == "WAITING_FOR_DEVICE"
            and job
        ),
    )
    assert "since it ran out of memory before" in waiting["message"]
    held_bytes = waiting["memory"]["peak_bytes"]  # as far as it came before the watch saw it
    assert held_bytes > 100 * 2**20
    fences = {neighbour: waiting["memory"]["fence"]}
    wait_for(
        "figures of the neighbour alone",  # they are taken once a second
        lambda: {j["job"]: j["fence"] for j in own.json("devices")[0]["jobs"]} == fences,
    )
    mine = ('device="cpu:0"', f'job="{neighbour}"')
    wait_for(
        "its share, at full speed",
        lambda: exported(own.home, "ray_dovetail_share_speed", *mine) == [1.0],
    )
    still = own.json("show", neighbour)
    assert (still["state"], len(still["attempts"])) == ("RUNNING", 1)
    own.run("cancel", neighbour, "--wait")
    ended = own.wait_for_state(hungry, "SUCCEEDED", "FAILED")
    assert (ended["state"], len(ended["attempts"])) == ("SUCCEEDED", 2)

    def is_gone() -> bool:
        speeds = exported(own.home, "ray_dovetail_share_speed", *mine)
        assert 0.0 not in speeds
        return not speeds

    wait_for("the share of who left to be dropped", is_gone)
    ends, returns = "ray_dovetail_out_of_memory_total", "ray_dovetail_readmissions_total"
    wait_for("the end, counted", lambda: exported(own.home, ends, 'by="fence"') == [1.0])
    wait_for("the return, counted", lambda: exported(own.home, returns) == [1.0])
    story = {event["kind"]: event["message"] for event in own.json("events", hungry)}
    assert (
        "and might hold 100MiB of the device (resources.memory); "
        f"write resources.memory: {math.ceil(held_bytes / 2**20)}MiB or more"
    ) in story["MemoryRanOut"]
    assert story["Readmitted"].startswith(
        "attempt 2 comes back: attempt 1 ran out of memory on cpu:0 beside 1 other job, where it "
        "might hold 100MiB and held "
    )
