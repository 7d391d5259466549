"""Jobs that share a device, placed by a real server on a real Ray."""

import pytest

from helpers.attempts import wait_for
from helpers.installation import EXAMPLE, Installation

pytestmark = pytest.mark.ray

SHARED = (
    "--set", "memory.policy=tensile", "--set", "resources.share=true",
    "--set", "resources.cpus=0.5", "--set", "train.steps=100000",
    "--set", "train.checkpoint.every=90000",
)  # fmt: skip


def test_three_jobs_run_at_once_on_two_devices_and_a_fourth_that_would_not_fit_waits(
    dovetail: Installation,
) -> None:
    jobs = [dovetail.submit(EXAMPLE, *SHARED)["id"] for _ in range(3)]
    try:
        for job_id in jobs:
            dovetail.wait_for_state(job_id, "RUNNING")
        (node,) = dovetail.json("status")["nodes"]
        assert sorted(len(device["jobs"]) for device in node["devices"]) == [1, 2]
        assert {job_id for device in node["devices"] for job_id in device["jobs"]} == {*jobs}
        alone = dovetail.submit(EXAMPLE, *SHARED, "--set", "resources.share=false")["id"]
        jobs.append(alone)
        said = wait_for("its message", lambda: _said(dovetail, alone))
        assert said.startswith("waits for a device: ")
        assert all(job_id in said for job_id in jobs[:3])
        shown = dovetail.json("show", jobs[0])["memory"]
        assert (shown["provenance"], shown["forecast_bytes"] > 0) == ("traced", True)
    finally:
        for job_id in jobs:
            dovetail.run("cancel", job_id, "--wait")


def _said(dovetail: Installation, job_id: str) -> str | None:
    job = dovetail.json("show", job_id)
    message: str = job["message"]
    return message if job["reason"] == "WAITING_FOR_DEVICE" else None
