"""A family's training process that is killed, hangs or finds its disk full: what follows is as if
it had never happened.
"""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import pytest
import torch

from dovetail_jobs.spec import JobSpec
from dovetail_workers import checkpoint
from dovetail_workers.keys import checkpoint_prefix, checkpoints_prefix
from dovetail_workers.launch import Launch
from dovetail_workers.reports import CheckpointSkipped, Ended, Metrics, Started
from dovetail_workers.storage.local import LocalStorage
from helpers.attempts import entries, log_text, run
from helpers.training import differences

pytestmark = pytest.mark.long

TESTS = Path(__file__).parents[1]
STEPS, EVERY = 10, 4


def launch(
    storage: Path, attempt: int = 1, spec: dict[str, Any] | None = None, **params: Any
) -> Launch:
    job = JobSpec.model_validate(
        {
            "name": "mortal",
            "family": "helpers.mortal_workload",
            "workdir": str(TESTS),
            "params": params,
            "train": {
                "steps": STEPS,
                "optimizer": {"lr": 0.01},
                "checkpoint": {"every": EVERY},
                "validate": {"every": 3},
            },
            **(spec or {}),
        }
    )
    return Launch(
        job_id="j",
        job_name="mortal",
        attempt=attempt,
        spec=job.to_json(),
        node="n",
        device="cpu:0",
        device_bytes=2**30,
        storage_uri=str(storage),
        resume_from=(checkpoints_prefix("j"),),
    )


def told(of: Launch) -> list[Metrics]:
    return [entry.report for entry in entries(of) if isinstance(entry.report, Metrics)]


def resumed_from(of: Launch) -> int | None:
    (started,) = (entry.report for entry in entries(of) if isinstance(entry.report, Started))
    return started.resumed_from_step


def final_state(storage: Path) -> dict[str, Any]:
    objects = LocalStorage(storage)
    newest = checkpoint.newest(objects, [checkpoints_prefix("j")])
    assert newest is not None
    assert newest.step == STEPS
    return {
        name: torch.load(io.BytesIO(checkpoint.read(objects, newest, name)), weights_only=True)
        for name in newest.manifest.parts
    }


@pytest.fixture(scope="module")
def unbroken(tmp_path_factory: pytest.TempPathFactory) -> Path:
    storage = tmp_path_factory.mktemp("unbroken")
    assert run(launch(storage), storage / "launch").outcome == "succeeded"
    return storage


def check_resumed(storage: Path, unbroken: Path, from_step: int | None, **given: Any) -> None:
    """Attempt 2 ends bitwise where the unbroken run does, with the same numbers on its way."""
    second = launch(storage, attempt=2, **given)
    assert run(second, storage / "launch").outcome == "succeeded"
    assert resumed_from(second) == from_step
    expected = told(launch(unbroken))
    assert told(second) == [item for item in expected if item.step > (from_step or 0)]
    first = told(launch(storage))
    assert first == expected[: len(first)]
    assert list(differences(final_state(unbroken), final_state(storage))) == []


@pytest.mark.parametrize(
    ("fatal_step", "from_step"), [(1, None), (4, None), (5, 4), (7, 4), (9, 8), (10, 8)]
)
def test_a_killed_run_ends_bitwise_where_an_unbroken_one_does(
    tmp_path: Path, unbroken: Path, fatal_step: int, from_step: int | None
) -> None:
    first = launch(tmp_path, fatal_step=fatal_step)
    ended = run(first, tmp_path / "launch")
    assert (ended.outcome, ended.exit_code) == ("lost", -9)
    assert {item.step for item in told(first)} == set(range(1, fatal_step))
    check_resumed(tmp_path, unbroken, from_step, fatal_step=fatal_step)


def test_a_run_that_hangs_is_lost_and_resumes(tmp_path: Path, unbroken: Path) -> None:
    ends: dict[str, Any] = {"fatal_step": 6, "end": "stopped"}
    first = launch(tmp_path, spec={"progress_timeout": "30s"}, **ends)
    assert run(first, tmp_path / "launch") == Ended(
        outcome="lost", exit_code=-9, message="no progress for 30s (progress_timeout)"
    )
    check_resumed(tmp_path, unbroken, 4, **ends)


def test_a_disk_that_fills_fails_the_run_with_that_reason_and_leaves_the_whole_checkpoint(
    tmp_path: Path, unbroken: Path
) -> None:
    first = launch(tmp_path, fatal_step=6, end="full")
    ended = run(first, tmp_path / "launch")
    assert (ended.outcome, ended.exit_code) == ("failed", 1)
    assert ended.message.startswith("storage: a checkpoint could not be put together in ")
    assert "File too large; make room on that disk" in ended.message
    assert "Traceback" not in log_text(first)
    left = {
        item.key.rpartition("parts/")[0]
        for item in LocalStorage(tmp_path).list(checkpoints_prefix("j"))
        if "parts/" in item.key
    }
    assert left == {checkpoint_prefix("j", 4, 1)}
    check_resumed(tmp_path, unbroken, 4, fatal_step=6, end="full")


def test_a_damaged_checkpoint_is_named_in_the_journal(tmp_path: Path, unbroken: Path) -> None:
    assert run(launch(tmp_path, fatal_step=9), tmp_path / "launch").outcome == "lost"
    storage, key = LocalStorage(tmp_path), checkpoint_prefix("j", 8, 1)
    damaged = bytearray(storage.get(key + "parts/models.pt"))
    damaged[100] ^= 1
    storage.put(key + "parts/models.pt", bytes(damaged))
    check_resumed(tmp_path, unbroken, 4, fatal_step=9)
    skipped = entries(launch(tmp_path, attempt=2))[0].report
    assert isinstance(skipped, CheckpointSkipped)
    assert skipped.key == key
    assert str(skipped) == (
        "checkpoint of step 8 (attempt 1) is damaged: models.pt does not have the sha256 that its "
        "manifest says; the one of step 4 serves"
    )
