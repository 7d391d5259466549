"""The loop keeps its promises: equal specs give equal numbers, and a resumed run never noticed."""

from __future__ import annotations

import os
import random
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st

from dovetail_jobs.errors import UserError
from dovetail_workers.keys import checkpoint_prefix, checkpoints_prefix
from dovetail_workers.reports import (
    CheckpointRemoved,
    CheckpointSaved,
    MemoryUsed,
    Metrics,
    Progress,
    Started,
)
from dovetail_workers.train import point_is_due
from helpers.training import JOB, Trained, differences, run

SWIN = "image_classification"
DIGITS = {
    "backbone": "swin_test",
    "dataset": "digits",
    "batch_size": 8,
    "validation_fraction": 0.02,
    "image_size": 32,
    "augment": True,
    "drop_path": 0.3,
    "label_smoothing": 0.1,
}


def test_two_runs_of_a_spec_give_equal_metrics_in_every_digit(tmp_path: Path) -> None:
    settings = {"steps": 12, "validate": {"every": 5}}
    runs = [run(tmp_path / name, settings) for name in ("one", "two")]
    torch.rand(100), random.random(), np.random.random()
    runs.append(run(tmp_path / "three", settings))
    first = runs[0].of(Metrics)
    assert len(first) == 12 + 3
    assert all(other.of(Metrics) == first for other in runs[1:])
    assert run(tmp_path / "four", {**settings, "seed": 1}).of(Metrics) != first


@pytest.mark.parametrize(
    ("family", "params", "settings"),
    [
        ("helpers.tiny_workload", {}, {}),
        (
            "helpers.tiny_workload",
            {"prefetch": True},
            {
                "accumulate": 4,
                "precision": "bf16",
                "clip_norm": 0.5,
                "schedule": {"name": "cosine", "warmup_steps": 3},
                "optimizer": {"name": "sgd", "lr": 0.1, "momentum": 0.9, "weight_decay": 0.01},
            },
        ),
        ("helpers.tiny_workload", {}, {"precision": "fp16", "clip_norm": 0.5}),
        pytest.param(SWIN, DIGITS, {}, marks=pytest.mark.long),
        (
            SWIN,
            DIGITS,
            {"accumulate": 2, "precision": "bf16", "schedule": {"name": "linear"}},
        ),
    ],
    ids=["tiny", "tiny-accumulate-bf16-sgd", "tiny-fp16", "swin", "swin-accumulate-bf16"],
)
def test_a_resumed_run_ends_bitwise_where_an_unbroken_one_does(
    tmp_path: Path, family: str, params: dict[str, Any], settings: dict[str, Any]
) -> None:
    given = {"steps": 8, "checkpoint": {"every": 4}, "validate": {"every": 2}, **settings}
    unbroken = run(tmp_path / "unbroken", given, family=family, params=params)
    broken = run(tmp_path / "broken", given, family=family, params=params, stop_after=5)
    assert broken.outcome == "stopped"
    torch.rand(3), random.random(), np.random.random()
    resumed = run(tmp_path / "broken", given, family=family, params=params, attempt=2, resume=True)
    assert resumed.of(Started)[0].resumed_from_step == 4
    assert list(differences(unbroken.state(), resumed.state())) == []
    later = [item for item in unbroken.of(Metrics) if item.step > 4]
    assert resumed.of(Metrics) == later
    assert min(item.step for item in broken.of(Metrics)) == 1


def test_a_run_that_is_resumed_under_tensile_ends_where_an_unbroken_one_without_it_does(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TENSILE_FOLDER", str(tmp_path / "below"))
    given = {"steps": 8, "checkpoint": {"every": 4}}
    unbroken = run(tmp_path / "unbroken", given)
    run(tmp_path / "broken", given, stop_after=5, policy="tensile")
    resumed = run(tmp_path / "broken", given, attempt=2, resume=True, policy="tensile")
    assert resumed.of(Started)[0].resumed_from_step == 4
    assert resumed.of(MemoryUsed)[-1].budget_bytes is not None
    assert list(differences(unbroken.state(), resumed.state())) == []


def test_a_damaged_checkpoint_is_named_and_the_run_continues_from_the_one_before(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    given = {"steps": 9, "checkpoint": {"every": 3, "keep": 3}}
    unbroken = run(tmp_path / "unbroken", given)
    broken = run(tmp_path / "broken", given, stop_after=7)
    damaged = checkpoint_prefix(JOB, 6, 1)
    broken.storage.put(damaged + "parts/models.pt", b"not what the manifest says")
    resumed = run(tmp_path / "broken", given, attempt=2, resume=True)
    assert resumed.of(Started)[0].resumed_from_step == 3
    assert f"checkpoint {damaged} is damaged and is skipped" in capsys.readouterr().out
    assert list(differences(unbroken.state(), resumed.state())) == []


def test_a_run_lost_after_its_last_checkpoint_ends_without_training_again(tmp_path: Path) -> None:
    first = run(tmp_path, {"steps": 4})
    again = run(tmp_path, {"steps": 4}, attempt=2, resume=True)
    assert again.outcome == "succeeded"
    assert again.metric("loss") == {}
    assert again.metric("accuracy") == first.metric("accuracy")
    assert [saved.step for saved in again.of(CheckpointSaved)] == [4]


def test_how_often_a_run_validates_and_saves_does_not_change_what_it_learns(
    tmp_path: Path,
) -> None:
    rare = run(tmp_path / "rare", {"steps": 8})
    often = run(
        tmp_path / "often", {"steps": 8, "validate": {"every": 1}, "checkpoint": {"every": 1}}
    )
    assert list(differences(rare.state(), often.state())) == []
    assert rare.metric("loss") == often.metric("loss")
    assert list(rare.metric("accuracy")) == [8]
    assert list(often.metric("accuracy")) == list(range(1, 9))


def test_prefetching_does_not_change_what_is_learned(tmp_path: Path) -> None:
    runs = [
        run(tmp_path / str(ahead), {"steps": 12}, params={"prefetch": ahead})
        for ahead in (False, True)
    ]
    assert list(differences(runs[0].state(), runs[1].state())) == []


def test_micro_batches_add_up_to_the_whole_batch(tmp_path: Path) -> None:
    params = {"dropout": 0.0}
    whole, parts = (
        run(tmp_path / str(count), {"steps": 1, "accumulate": count}, params=params)
        for count in (1, 4)
    )
    assert parts.metric("loss")[1] == pytest.approx(whole.metric("loss")[1], abs=1e-3)
    one, other = (item.state()["optimizers.pt"] for item in (whole, parts))
    gradients = [
        torch.cat([state["exp_avg"].flatten() for state in side["body"]["state"].values()])
        for side in (one, other)
    ]
    torch.testing.assert_close(gradients[0], gradients[1], rtol=1e-3, atol=1e-4)


def test_the_rate_follows_the_schedule_and_the_groups_factor(tmp_path: Path) -> None:
    settings = {"steps": 4, "schedule": {"name": "linear", "warmup_steps": 2}}
    trained = run(tmp_path, settings)
    groups = {
        name: state["param_groups"][0] for name, state in trained.state()["optimizers.pt"].items()
    }
    # The last of four steps, two of them warm-up: half of the full rate.
    assert groups["body"]["lr"] == pytest.approx(0.005)
    assert groups["head"]["lr"] == pytest.approx(0.0025)
    assert groups["head"]["initial_lr"] == 0.005


def test_the_teacher_is_the_moving_average_of_the_student(tmp_path: Path) -> None:
    settings = {"steps": 3, "checkpoint": {"every": 1, "keep": 3}}
    trained = run(tmp_path, settings)
    first, second = (
        torch.load(Path(saved.uri, "parts", "models.pt"), weights_only=True)
        for saved in trained.of(CheckpointSaved)[:2]
    )
    momentum = 0.5 + 0.5 * 2 / 4  # as the workload says it, for step 2 of 3
    for name in ("body.0.weight", "head.bias"):
        expected = momentum * first["teacher"][name] + (1 - momentum) * second["student"][name]
        torch.testing.assert_close(second["teacher"][name], expected)
        assert not torch.equal(second["teacher"][name], second["student"][name])
    assert not second["teacher"]["queue"].any()
    assert second["student"]["queue"].any()


def test_checkpoints_come_every_so_often_and_at_the_end_and_the_newest_stay(
    tmp_path: Path,
) -> None:
    trained = run(tmp_path, {"steps": 7, "checkpoint": {"every": 2, "keep": 2}})
    saved = trained.of(CheckpointSaved)
    assert [item.step for item in saved] == [2, 4, 6, 7]
    removed = [item.key for item in trained.of(CheckpointRemoved)]
    assert removed == [checkpoint_prefix(JOB, step, 1) for step in (2, 4)]
    left = {found.key.split("/")[3] for found in trained.storage.list(checkpoints_prefix(JOB))}
    assert left == {"0000000006-1", "0000000007-1"}
    last = saved[-1]
    parts = Path(last.uri, "parts")
    assert last.bytes == sum(file.stat().st_size for file in parts.iterdir())


def test_a_stop_ends_at_the_next_boundary_without_a_checkpoint(tmp_path: Path) -> None:
    trained = run(tmp_path, {"steps": 100, "checkpoint": {"every": 50}}, stop_after=3)
    assert trained.outcome == "stopped"
    assert list(trained.metric("loss")) == [1, 2, 3]
    assert trained.of(CheckpointSaved) == []
    assert trained.of(Progress)[-1].step == 3
    assert list(trained.storage.list(checkpoints_prefix(JOB))) == []


def test_epochs_count_passes_over_the_first_stream_without_the_partial_batch(
    tmp_path: Path,
) -> None:
    trained = run(tmp_path, {"epochs": 3}, params={"samples": 43, "batch_size": 8})
    assert trained.of(Progress)[-1].step == 3 * (43 // 8)


def test_progress_is_told_first_and_last_with_speeds_that_fit_each_other(tmp_path: Path) -> None:
    told = run(tmp_path, {"steps": 30}).of(Progress)
    assert [told[0].step, told[1].step, told[-1].step] == [0, 1, 30]
    assert told[0].steps_per_s is None
    assert all(item.steps == 30 and item.phase == "train" for item in told)
    last = told[-1]
    assert last.steps_per_s is not None
    assert last.samples_per_s == pytest.approx(8 * last.steps_per_s)
    assert len(told) < 20


def test_a_run_says_who_it_is_and_what_memory_it_took(tmp_path: Path) -> None:
    trained = run(tmp_path, {"steps": 2})
    assert trained.reports[1] == Started(pid=os.getpid(), node="here", device="cpu:0")
    early, *_, late = trained.of(MemoryUsed)
    assert trained.reports[0] == early
    assert trained.reports[-1] == late
    assert late.base_bytes == early.base_bytes
    assert late.base_bytes is not None
    assert late.peak_bytes is not None
    assert late.base_bytes > 50 * 2**20
    assert 0 <= late.peak_bytes < 2**30


def test_the_log_is_a_header_the_events_and_a_closing_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run(tmp_path, {"steps": 4, "validate": {"every": 2}, "checkpoint": {"every": 3}})
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == (
        "tiny (k3f9qz, attempt 1) on cpu:0: helpers.tiny_workload, 4 steps of 8 samples, fp32, "
        "threads 1"
    )
    assert [line.split("  ")[0] for line in lines[1:5]] == [
        "step 2/4",
        "step 3/4",
        "step 4/4",
        "step 4/4",
    ]
    assert "accuracy 0." in lines[1]
    assert "checkpoint " in lines[2]
    assert lines[-1].startswith("finished: 4 steps in ")
    assert len(lines) == 6


@hypothesis_settings(max_examples=15)
@given(st.integers(1, 300_000))
def test_a_run_reports_every_loss_up_to_ten_thousand_and_always_the_last(steps: int) -> None:
    due = [step for step in range(1, steps + 1) if point_is_due(step, steps)]
    assert due[-1] == steps
    if steps <= 10_000:
        assert len(due) == steps
    else:
        assert 5_000 <= len(due) <= 10_001


def test_a_loss_that_is_not_finite_ends_the_run_and_names_the_step(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"step 3: the loss is nan.*train\.optimizer\.lr"):
        run(tmp_path, {"steps": 9, "checkpoint": {"every": 1}}, params={"nan_from_step": 3})
    left = {path.name for path in (tmp_path / "jobs" / JOB / "checkpoints").iterdir()}
    assert left == {"0000000001-1", "0000000002-1"}


@pytest.mark.parametrize(
    ("params", "settings", "sentence"),
    [
        ({"samples": 7}, {"steps": 1}, "7 samples are fewer than one batch of 8"),
        ({}, {"steps": 1, "accumulate": 3}, r"params.batch_size: 8 .* train.accumulate: 3"),
    ],
)
def test_a_batch_that_cannot_be_is_refused_with_its_numbers(
    tmp_path: Path, params: dict[str, Any], settings: dict[str, Any], sentence: str
) -> None:
    with pytest.raises(UserError, match=sentence):
        run(tmp_path, settings, params=params)


def test_a_checkpoint_of_another_model_is_refused_with_a_way_out(tmp_path: Path) -> None:
    run(tmp_path, {"steps": 2})
    with pytest.raises(UserError, match=r"the checkpoint holds the models .*start from scratch"):
        run(tmp_path, {"steps": 4}, family=SWIN, params=DIGITS | {"image_size": 32}, resume=True)


def test_the_loop_leaves_torchs_settings_as_they_were(tmp_path: Path) -> None:
    def settings() -> tuple[Any, ...]:
        return (
            torch.get_num_threads(),
            torch.are_deterministic_algorithms_enabled(),
            torch.utils.deterministic.fill_uninitialized_memory,  # type: ignore[attr-defined]
        )

    before = settings()
    trained: Trained = run(tmp_path, {"steps": 1}, cpus=2)
    assert trained.outcome == "succeeded"
    assert settings() == before
