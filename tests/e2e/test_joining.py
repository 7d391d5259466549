"""A Ray that somebody else runs is joined and left alone."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from dovetail.cluster import ray_head
from dovetail.cluster.ray_head import Head
from dovetail_workers.process_tree import processes_with
from helpers.installation import Installation

pytestmark = pytest.mark.ray


@pytest.fixture
def their_ray(tmp_path: Path) -> Iterator[Head]:
    token, record = tmp_path / "their.token", tmp_path / "their.json"
    ray_head.ensure_token(token)
    try:
        yield ray_head.ensure(record, token, tmp_path / "their.log", resources={})
    finally:
        ray_head.stop(record)


def test_a_job_runs_on_a_ray_of_somebody_else_which_then_goes_on(
    their_ray: Head, tmp_path: Path
) -> None:
    joined = Installation(tmp_path / "home", **ray_head.environment(tmp_path / "their.token"))
    try:
        up = joined.run("up", "--address", their_ray.address, "--device-memory", "1GiB")
        assert up.returncode == 0, up.stderr
        assert joined.json("status")["ray"]["address"] == their_ray.address
        job = joined.submit_script(tmp_path, "echo on their Ray")
        assert joined.wait_for_state(job["id"], "SUCCEEDED", "FAILED")["state"] == "SUCCEEDED"
        assert joined.run("logs", job["id"]).stdout == "on their Ray\n"
    finally:
        joined.close()
    left = processes_with(ray_head.SESSION_VARIABLE, their_ray.session)
    assert {"gcs_server", "raylet"} <= {process.name() for process in left}
