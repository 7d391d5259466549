"""A checkpoint goes through files, storage by storage; its bits do not tell of a session."""

from __future__ import annotations

import hashlib
import resource
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch

from dovetail_jobs.workload import Member
from dovetail_workers.part_file import PartFile
from dovetail_workers.precision import Precision
from dovetail_workers.storage.protocol import StorageError
from dovetail_workers.training_state import MODELS, OPTIMIZERS, TrainingState
from helpers.small_trainings import Training, contents, differences, language
from tensile import Session


@pytest.fixture(autouse=True)
def _quiet_machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setenv("TENSILE_FOLDER", str(tmp_path))
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def state_of(training: Training) -> TrainingState:
    return TrainingState(
        models={"model": Member(module=training.model)},
        optimizers={"model": training.optimizer},
        streams={},
        precision=Precision("fp32", torch.device("cpu")),
    )


def tight(training: Training) -> Session:
    """Under a budget that nothing fits, so that everything moves."""
    return Session(training.model, training.optimizer, 1, smallest_bytes=0)


def no_limit(size_bytes: int) -> None:
    pass


def sha256(parts: Mapping[str, Path]) -> dict[str, str]:
    return {name: hashlib.sha256(path.read_bytes()).hexdigest() for name, path in parts.items()}


def saved(training: Training) -> dict[str, bytes]:
    with state_of(training).staged(no_limit) as parts:
        return {name: path.read_bytes() for name, path in parts.items()}


def train(training: Training, start: int, stop: int, session: Session | None = None) -> None:
    for number in range(start, stop):
        if session is None:
            training.step(training.batches[number])
        else:
            with session.step():
                training.step(training.batches[number])


def test_a_checkpoint_has_the_same_sha256_with_and_without_a_session() -> None:
    free, bound = language(), language()
    free.start()
    train(free, 0, 2)
    with state_of(free).staged(no_limit) as parts:
        expected = sha256(parts)
    train(free, 2, 4)
    unbroken = contents(free)
    bound.start()
    with tight(bound) as session:
        train(bound, 0, 2, session)
        with session.staging() as make_room, state_of(bound).staged(make_room) as parts:
            found = sha256(parts)
        assert session.stats().swapped_out_bytes > 0
        train(bound, 2, 4, session)
    assert found == expected
    assert differences(contents(bound), unbroken) == []


@pytest.mark.long
def test_a_run_that_resumes_under_a_budget_continues_bitwise() -> None:
    unbroken = language()
    unbroken.start()
    train(unbroken, 0, 2)
    parts = saved(unbroken)
    train(unbroken, 2, 4)
    unbroken.losses = unbroken.losses[2:]
    expected = contents(unbroken)

    def fetch(name: str, write: Callable[[bytes], object]) -> None:
        write(parts[name])

    resumed = language()
    with torch.no_grad():
        for parameter in resumed.model.parameters():
            parameter.zero_()
    with tight(resumed) as session:
        with session.staging() as make_room:
            state_of(resumed).load(fetch, make_room)
        train(resumed, 2, 4, session)
        assert session.stats().swapped_out_bytes > 0
    assert differences(contents(resumed), expected) == []


def test_what_was_loaded_no_longer_looks_at_the_file() -> None:
    training = language()
    train(training, 0, 1)
    parts = saved(training)
    asked: list[int] = []

    def fetch(name: str, write: Callable[[bytes], object]) -> None:
        write(parts[name])

    state_of(training).load(fetch, asked.append)
    maps = Path("/proc/self/maps").read_text()
    assert not [line for line in maps.splitlines() if "(deleted)" in line and "r--p" in line]
    largest = max(p.nbytes for p in training.model.parameters())
    assert max(asked) == 2 * largest
    assert saved(training)[MODELS] == parts[MODELS]
    assert saved(training)[OPTIMIZERS] == parts[OPTIMIZERS]


@contextmanager
def small_files(size_bytes: int) -> Iterator[None]:
    """Within it no file of this process grows beyond that, as on a disk that is full."""
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size_bytes, limits[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)


def test_a_disk_without_room_is_said_with_the_way_out(tmp_path: Path) -> None:
    with (
        PartFile() as part,
        small_files(2**16),
        pytest.raises(StorageError, match=f"put together in {tmp_path}.*TENSILE_FOLDER"),
    ):
        part.save({"much": torch.zeros(2**20)}, no_limit)
