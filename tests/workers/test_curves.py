"""TensorBoard reads the curves that were written without an append."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from dovetail_workers.curves import Curves
from dovetail_workers.keys import curves_prefix
from dovetail_workers.storage.local import LocalStorage

PREFIX = curves_prefix("job", 1)


def read(storage: LocalStorage) -> dict[str, list[tuple[int, float]]]:
    events = EventAccumulator(storage.uri(PREFIX))
    events.Reload()
    return {
        tag: [(event.step, event.value) for event in events.Scalars(tag)]
        for tag in events.Tags()["scalars"]
    }


def test_tensorboard_reads_all_flushes_as_one_run(tmp_path: Path) -> None:
    storage = LocalStorage(tmp_path)
    curves = Curves(storage, PREFIX)
    expected: dict[str, list[tuple[int, Any]]] = {"loss": [], "accuracy": []}
    for step in range(1, 26):
        curves.add(step, {"loss": 1 / step})
        expected["loss"].append((step, pytest.approx(1 / step)))
        if step % 2 == 0:
            curves.add(step, {"accuracy": step / 100})
            expected["accuracy"].append((step, pytest.approx(step / 100)))
            curves.flush()
    curves.flush()
    files = [found.key.removeprefix(PREFIX) for found in storage.list(PREFIX)]
    assert len(files) == 13
    assert files[-1] == "events.out.tfevents.0000000013"
    assert read(storage) == expected


def test_a_flush_with_nothing_new_writes_nothing(tmp_path: Path) -> None:
    storage = LocalStorage(tmp_path)
    curves = Curves(storage, PREFIX)
    curves.flush()
    curves.add(1, {"loss": 0.5})
    curves.flush()
    curves.flush()
    assert len(list(storage.list(""))) == 1


def test_a_run_writes_the_curves_that_it_reports(tmp_path: Path) -> None:
    from helpers.training import JOB, run

    trained = run(tmp_path, {"steps": 6, "validate": {"every": 4}})
    events = EventAccumulator(trained.storage.uri(curves_prefix(JOB, 1)))
    events.Reload()
    for name in ("loss", "accuracy"):
        read_back = {event.step: event.value for event in events.Scalars(name)}
        assert read_back == pytest.approx(trained.metric(name))
