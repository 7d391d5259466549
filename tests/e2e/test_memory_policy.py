"""A job under a budget, through the whole platform: the same numbers in less memory."""

import pytest

from helpers.attempts import wait_for
from helpers.exporter import exported
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

    def gauge() -> float | None:
        name = "ray_dovetail_memory_forecast_bytes"
        return next(iter(exported(dovetail.home, name, f'job="{job["id"]}"')), None)

    try:
        found = wait_for("the gauge", gauge)
        assert found == dovetail.json("show", job["id"])["memory"]["forecast_bytes"]
    finally:
        dovetail.run("cancel", job["id"], "--wait")
