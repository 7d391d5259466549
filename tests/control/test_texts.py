"""What commands print for a person of everything that the server may say."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from dovetail.service.contract import (
    DeviceUseView,
    EventView,
    ForecastView,
    JobView,
    MemoryView,
)
from helpers.any_view import any_view
from helpers.commands import Run, golden
from helpers.fake_service import (
    KINDS_OF_JOBS,
    MIB,
    SUBMITTED,
    TRAINING,
    FakeService,
    attempt_view,
    job_of,
    job_view,
    running_changes,
    succeeded_changes,
)

SPECS = [job_view().spec, *(job_of(kind).spec for kind in KINDS_OF_JOBS)]
ANY_JOB = any_view(JobView, id=st.just("k3f9qz"), spec=st.sampled_from(SPECS))
TEXTS = (("show", "k3f9qz"), ("ps", "--all"), ("events", "k3f9qz"), ("devices",), ("top",))


@pytest.mark.parametrize("kind", ["queued", "running", "succeeded"])
def test_show_says_what_is_known(
    dovetail: Run, service: FakeService, tmp_path: Path, kind: str
) -> None:
    changes = {"queued": {}, "running": running_changes(), "succeeded": succeeded_changes()}
    service.put(job_view(labels={"team": "vision"}, **changes[kind]))
    said = dovetail("show", "k3f9qz")
    assert (said.code, said.err) == (0, "")
    golden(f"show-{kind}.txt", said.out, service, tmp_path)


@pytest.mark.parametrize("kind", KINDS_OF_JOBS)
def test_show_says_what_is_known_of_the_memory_of_every_kind_of_job(
    dovetail: Run, service: FakeService, tmp_path: Path, kind: str
) -> None:
    service.put(job_of(kind))
    said = dovetail("show", "k3f9qz")
    assert (said.code, said.err) == (0, "")
    golden(f"show-{kind}.txt", said.out, service, tmp_path)


def test_show_says_every_figure_of_the_memory_with_its_unit(
    dovetail: Run, service: FakeService
) -> None:
    known: dict[str, tuple[Any, str]] = {
        "provenance": ("traced", "(traced)"),
        "fence": ("cuda fraction", "fence cuda fraction"),
        "passive_fetches": (1, "1 passive fetch,"),
        "stall_s": (75.0, "stalled 1m15s"),
        "replans": (7, "7 replans"),
    }
    sizes = [name for name in MemoryView.model_fields if name.endswith("_bytes")]
    known |= {name: (number * 2**20, f" {number}MiB") for number, name in enumerate(sizes, 2)}
    assert set(known) == set(MemoryView.model_fields)
    service.put(job_view(memory=MemoryView(**{name: value for name, (value, _) in known.items()})))
    said = dovetail("show", "k3f9qz").out
    assert [text for _, text in known.values() if text not in said] == []


def test_show_says_why_an_attempt_ended_and_not_where_one_never_was(
    dovetail: Run, service: FakeService
) -> None:
    lost = attempt_view(state="FAILED", reason="WORKER_LOST", ended_at=SUBMITTED)
    nowhere = attempt_view(number=2, state="CREATED", node=None, device=None, pid=None)
    service.put(job_view(attempts=(lost, nowhere)))
    lines = dovetail("show", "k3f9qz").out.splitlines()
    assert "attempt 1  FAILED (worker lost) on n1/cpu:0, pid 4242" in lines
    assert "attempt 2  CREATED" in lines


def test_a_budget_above_what_is_reserved_is_said_at_submission_and_in_show(
    dovetail: Run, service: FakeService, tmp_path: Path
) -> None:
    file = tmp_path / "swin.yaml"
    given = {
        **TRAINING,
        "memory": {"policy": "tensile", "budget": "2GiB"},
        "resources": {"memory": "1GiB"},
    }
    file.write_text(json.dumps(given))  # which is YAML too
    word = (
        "memory.budget: 2GiB is above resources.memory of 1GiB, which a job never exceeds, so that "
        "is its budget; reserve more, or ask for less"
    )
    said = dovetail("submit", str(file))
    assert (said.code, said.out) == (0, "job0\n")
    assert said.err.startswith(f"warning: swin: {word}\n")
    assert f"warning   {word}" in dovetail("show", "job0").out.splitlines()
    file.write_text(json.dumps({**given, "resources": {"memory": "2GiB"}}))
    assert "warning" not in dovetail("submit", str(file)).err
    assert "warning" not in dovetail("show", "job1").out


@given(
    job=ANY_JOB,
    story=st.lists(any_view(EventView), max_size=2),
    uses=st.lists(any_view(DeviceUseView), max_size=2),
)
@settings(
    max_examples=25,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
def test_whatever_the_contract_allows_has_a_text(
    dovetail: Run,
    service: FakeService,
    job: JobView,
    story: list[EventView],
    uses: list[DeviceUseView],
) -> None:
    service.put(job)
    service.stories["k3f9qz"] = story
    service.device_uses = uses
    for command in TEXTS:
        said = dovetail(*command)
        assert (said.code, said.err) == (0, ""), command


def test_a_dry_run_says_what_the_step_would_take(
    dovetail: Run, service: FakeService, tmp_path: Path
) -> None:
    service.forecast = ForecastView(
        peak_bytes=572 * MIB,
        floor_bytes=57 * MIB,
        margin_bytes=28 * MIB,
        by_class={"optimizer_state": 72 * MIB, "activation": 500 * MIB},
    )
    file = tmp_path / "swin.yaml"
    file.write_text("name: swin\nscript: python train.py\n")
    said = dovetail("submit", str(file), "--dry-run")
    assert said.code == 0
    assert [line for line in said.out.splitlines() if line.startswith("# ")][2:] == [
        "# forecast: peak 572MiB (± 28MiB)",
        "# at the peak: activation 500MiB, optimizer state 72MiB",
        "# floor: 57MiB is the least that a plan can keep",
    ]


@pytest.mark.parametrize(
    ("place", "said"), [("nowhere/x.png", "there is no folder"), ("x.pdf", "must end in .png")]
)
def test_a_picture_that_cannot_be_written_is_refused_before_a_plan_is_made(
    dovetail: Run, tmp_path: Path, place: str, said: str
) -> None:
    file, picture = tmp_path / "no.yaml", tmp_path / place
    file.write_text("this is not looked at")
    asked = ("memory", "plan", str(file), "--budget", "60%", "--picture", str(picture))
    refused = dovetail(*asked)
    assert refused.code == 2
    assert refused.err.startswith(f"error: --picture {picture}  ")
    assert said in refused.err


def test_show_json_is_the_contract(dovetail: Run, service: FakeService) -> None:
    job = service.put(job_view(**succeeded_changes()))
    said = dovetail("show", "hello", "--json")
    assert JobView.model_validate_json(said.out) == job
