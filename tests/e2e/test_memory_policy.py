"""A job under a budget, through the whole platform: the same numbers in less memory."""

import re
import urllib.request

import pytest

from dovetail.cluster import ray_process, ray_record
from dovetail_workers.process_tree import processes_with
from helpers.attempts import wait_for
from helpers.installation import EXAMPLE, Installation

pytestmark = pytest.mark.ray

UNDER_BUDGET = EXAMPLE.with_name("swin-under-budget.yaml")
SHORT = (
    "--set", "train.steps=8", "--set", "train.schedule.warmup_steps=2",
    "--set", "train.validate.every=4", "--set", "train.checkpoint.every=4",
)  # fmt: skip


def test_a_job_under_sixty_percent_of_its_peak_gives_the_same_metrics(
    dovetail: Installation,
) -> None:
    free = dovetail.json("submit", EXAMPLE, *SHORT, "--wait")
    bound = dovetail.json("submit", UNDER_BUDGET, *SHORT, "--wait")
    assert bound["state"] == "SUCCEEDED", bound["message"]
    assert bound["metrics"] == free["metrics"]
    memory = bound["memory"]
    assert memory["budget_bytes"] == int(0.6 * memory["forecast_bytes"])
    assert memory["peak_bytes"] <= 1.05 * memory["budget_bytes"]
    assert memory["swapped_out_bytes"] + memory["recomputed_bytes"] > 0
    assert free["memory"]["peak_bytes"] > memory["peak_bytes"]
    foreseen = wait_for(
        "the forecast of a job that is not managed",
        lambda: dovetail.json("show", free["id"])["memory"]["forecast_bytes"],
    )
    assert foreseen == memory["forecast_bytes"]


def test_a_budget_below_the_floor_fails_the_job_with_the_floor(dovetail: Installation) -> None:
    job = dovetail.json(
        "submit", UNDER_BUDGET, *SHORT, "--set", "memory.budget=20MiB", "--wait", exit_code=1
    )
    assert (job["state"], job["reason"]) == ("FAILED", "REFUSED")
    assert "below the floor" in job["message"]


def test_a_dry_run_and_the_memory_commands_foresee_the_same_peak(dovetail: Installation) -> None:
    dry = dovetail.json("submit", UNDER_BUDGET, "--dry-run")
    forecast = dovetail.json("memory", "forecast", UNDER_BUDGET)
    assert dry["forecast"] == forecast["forecast"]
    plan = dovetail.json("memory", "plan", UNDER_BUDGET, "--budget", "60%")
    assert plan["plan"]["peak_bytes"] <= plan["plan"]["budget_bytes"]
    tried = dovetail.json("memory", "plan", UNDER_BUDGET, "--budget", "60%", "--steps", "3")
    assert tried["measured"]["peak_bytes"] <= 1.05 * tried["plan"]["budget_bytes"]
    refused = dovetail.run("memory", "plan", UNDER_BUDGET, "--budget", "1MiB")
    assert refused.returncode == 2
    assert "below the floor" in refused.stderr


@pytest.mark.long
def test_prometheus_can_read_what_the_memory_manager_did(dovetail: Installation) -> None:
    job = dovetail.json("submit", UNDER_BUDGET, "--set", "train.steps=2000")
    head = ray_record.read(dovetail.home / "ray.json")
    assert head is not None
    found = processes_with(ray_process.SESSION_VARIABLE, head.session)
    words = [word for process in found for word in process.cmdline()]
    (port,) = {
        word.split("=")[1] for word in words if re.match("--metrics[-_]export[-_]port=", word)
    }

    def gauge() -> float | None:
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics", timeout=10) as answer:
            lines = answer.read().decode().splitlines()
        mine = (line for line in lines if line.startswith("ray_dovetail_memory_forecast_bytes"))
        return next((float(line.split()[-1]) for line in mine if job["id"] in line), None)

    try:
        exported = wait_for("the gauge", gauge)
        assert exported == dovetail.json("show", job["id"])["memory"]["forecast_bytes"]
    finally:
        dovetail.run("cancel", job["id"], "--wait")
