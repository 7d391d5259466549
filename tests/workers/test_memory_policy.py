"""What a job's `memory` asks for, when the disk below gives out."""

from __future__ import annotations

import os
import resource
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch

from dovetail_jobs.spec import JobSpec
from dovetail_workers.memory_policy import MemoryPolicy
from dovetail_workers.out_of_memory import OutOfMemory
from dovetail_workers.storage.protocol import StorageError
from helpers.small_trainings import Training, perceptron
from tensile.coordinator import Member, declared
from tensile.coordinator.broker import Broker
from tensile.coordinator.lease import Lease


def policy_of(
    training: Training,
    policy: str,
    budget: str = "1MiB",
    say: Callable[[str], None] = print,
    cap_bytes: int | None = None,
    reserved: str = "auto",
) -> MemoryPolicy:
    memory = {"policy": policy, **({"budget": budget} if policy == "tensile" else {})}
    spec = JobSpec.model_validate(
        {
            "name": "small",
            "family": "image_classification",
            "train": {"steps": 1, "optimizer": {"lr": 0.1}},
            "memory": memory,
            "resources": {"memory": reserved},
        }
    )
    models, optimizers = {"model": training.model}, {"model": training.optimizer}
    return MemoryPolicy(
        *(spec, torch.device("cpu"), 2**30, models, optimizers, None, say), cap_bytes=cap_bytes
    )


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


@pytest.mark.parametrize(("budget", "limit"), [("auto", 2**20), ("2MiB", 2**20), ("512KiB", 2**19)])
def test_a_job_that_comes_back_is_kept_to_what_it_comes_back_with(
    budget: str, limit: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TENSILE_FOLDER", str(tmp_path))
    memory = policy_of(perceptron(), "tensile", budget, cap_bytes=2**20)
    assert memory.used().budget_bytes == limit
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


DEVICE_BYTES = 40 * 2**20


@pytest.fixture
def broker(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Broker]:
    """Of the device that the environment says this process shares."""
    monkeypatch.setenv("TENSILE_FOLDER", str(tmp_path))
    with tempfile.TemporaryDirectory(prefix="dt-") as folder:  # a socket's path has 107 bytes
        place = Path(folder, "broker.sock")
        monkeypatch.setenv("TENSILE_BROKER", str(place))
        monkeypatch.setenv("TENSILE_JOB", "job.1")
        with Broker(place, DEVICE_BYTES) as broker:
            yield broker


def test_on_a_device_that_is_shared_the_budget_is_what_its_broker_leaves(broker: Broker) -> None:
    training = perceptron()
    memory = policy_of(training, "tensile", "auto")
    memory.prepare(training.step, training.batches[0])
    memory.attempt(lambda: training.step(training.batches[0]))
    (share,) = broker.shares()
    assert share.job == "job.1"
    used = memory.used()
    assert used.forecast_bytes is not None
    assert used.forecast_bytes < share.lease_bytes < DEVICE_BYTES
    assert used.budget_bytes == share.lease_bytes
    memory.close()
    assert broker.shares() == ()


def test_a_job_that_waits_for_its_neighbours_says_so_in_its_log(
    broker: Broker, monkeypatch: pytest.MonkeyPatch
) -> None:
    place = Path(os.environ["TENSILE_BROKER"])
    neighbour = Lease(place, Member(job="old.1", profile=declared(DEVICE_BYTES)))
    assert neighbour.join(10)
    said: list[str] = []

    def leave(sentence: str) -> None:
        said.append(sentence)
        neighbour.close()

    training = perceptron()
    memory = policy_of(training, "tensile", "60%", leave)
    memory.prepare(training.step, training.batches[0])
    used = memory.used()
    assert used.budget_bytes is not None
    assert used.forecast_bytes is not None
    assert used.budget_bytes <= 0.6 * used.forecast_bytes
    memory.close()
    assert said[0].startswith("memory: the job waits for ")
    assert said[1].startswith("memory: the job was let in after ")


def test_a_device_that_is_too_small_is_no_place_for_the_job(
    broker: Broker, monkeypatch: pytest.MonkeyPatch
) -> None:
    place = Path(os.environ["TENSILE_BROKER"]).with_name("small.sock")
    monkeypatch.setenv("TENSILE_BROKER", str(place))
    training = perceptron()
    with Broker(place, 2**16):
        memory = policy_of(training, "tensile", "auto")
        with pytest.raises(OutOfMemory, match=r"the device has 64\.0 KiB"):
            memory.prepare(training.step, training.batches[0])
        memory.close()


@pytest.mark.parametrize(
    "error",
    [
        MemoryError(),
        torch.OutOfMemoryError("CUDA out of memory"),
        RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 4 bytes"),
    ],
)
def test_a_step_that_nobody_manages_and_that_finds_no_memory_says_what_would_help(
    error: Exception,
) -> None:
    memory = policy_of(perceptron(), "none")

    def fail() -> None:
        raise error

    with pytest.raises(OutOfMemory, match=r"memory: {policy: tensile} runs a job under less"):
        memory.attempt(fail)
    with pytest.raises(OutOfMemory), memory.evaluate():
        fail()


def test_any_other_error_of_such_a_step_stays_what_it_is() -> None:
    memory = policy_of(perceptron(), "none")

    def fail() -> None:
        raise RuntimeError("shapes differ")

    with pytest.raises(RuntimeError, match="shapes differ"):
        memory.attempt(fail)
