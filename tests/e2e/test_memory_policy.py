"""A job under a budget, through the whole platform: the same numbers in less memory."""

import pytest

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
    refused = dovetail.run("memory", "plan", UNDER_BUDGET, "--budget", "1MiB")
    assert refused.returncode == 2
    assert "below the floor" in refused.stderr
