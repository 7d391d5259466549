"""What a job's `memory` asks for, when the disk below gives out."""

from __future__ import annotations

import resource
from pathlib import Path

import pytest
import torch

from dovetail_jobs.spec import JobSpec
from dovetail_workers.memory_policy import MemoryPolicy
from dovetail_workers.storage.protocol import StorageError
from helpers.small_trainings import Training, perceptron


def policy_of(training: Training, policy: str) -> MemoryPolicy:
    memory = {"policy": policy, **({"budget": "1MiB"} if policy == "tensile" else {})}
    spec = JobSpec.model_validate(
        {
            "name": "small",
            "family": "image_classification",
            "train": {"steps": 1, "optimizer": {"lr": 0.1}},
            "memory": memory,
        }
    )
    models, optimizers = {"model": training.model}, {"model": training.optimizer}
    return MemoryPolicy(spec, torch.device("cpu"), 2**30, models, optimizers, None)


def test_a_lower_tier_that_gives_out_fails_the_run_with_a_sentence(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TENSILE_FOLDER", str(tmp_path))
    training = perceptron()
    memory = policy_of(training, "tensile")
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (4096, limits[1]))
    try:
        with (
            pytest.raises(StorageError, match=r"memory.policy: tensile  \d+ bytes could not be"),
        ):
            memory.attempt(lambda: training.step(training.batches[0]))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    memory.attempt(lambda: training.step(training.batches[0]))
    assert memory.used().swapped_out_bytes
    memory.close()


def test_without_a_policy_there_is_always_room() -> None:
    memory = policy_of(perceptron(), "none")
    with memory.evaluate(), memory.staging() as make_room:
        make_room(2**60)
    taken: list[bool] = []
    memory.attempt(lambda: taken.append(True))
    assert taken == [True]
    assert memory.used().swapped_out_bytes is None
    memory.close()
