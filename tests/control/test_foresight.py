"""What a job will take is found out beside the loop, once, and never stands in its way."""

from __future__ import annotations

import json
import os
import queue
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from dovetail.service.code import CodeShelf
from dovetail.service.forecasts import Forecasts
from dovetail.service.foresight import Foreseen, Foresight
from dovetail_jobs.errors import UserError
from dovetail_jobs.spec import JobSpec
from helpers.bench import NOON, Bench


class Scripted(Forecasts):
    """Answers from a list; an exception in it is raised."""

    def __init__(self, folder: Path, answers: list[int | Exception]) -> None:
        super().__init__(folder)
        self.answers = answers

    def of(self, spec: JobSpec, **_: Any) -> dict[str, Any]:
        answer = self.answers.pop(0)
        if isinstance(answer, Exception):
            raise answer
        return {"forecast": {"peak_bytes": answer}}


@pytest.fixture
def bench(tmp_path: Path) -> Iterator[Bench]:
    bench = Bench(tmp_path)
    yield bench
    bench.store.close()


def family_job(bench: Bench, name: str) -> str:
    spec = JobSpec.model_validate({"name": name, "family": "swin", "train": {"steps": 1}}).to_json()
    job, _ = bench.store.submit(spec, user="u", key=None, now=NOON)
    return job.id


def test_what_cannot_be_foreseen_is_asked_once_and_the_next_job_is_served(bench: Bench) -> None:
    heard: queue.SimpleQueue[Foreseen] = queue.SimpleQueue()
    forecasts = Scripted(bench.folder, [UserError("no"), ValueError("broken"), 300])
    foresight = Foresight(forecasts, CodeShelf(bench.storage, 1), heard.put)
    jobs = [bench.job(family_job(bench, name)) for name in ("a", "b", "c")]
    for job in [*jobs, *jobs, bench.job(bench.submit("script"))]:
        foresight.ask(job)
    assert heard.get(timeout=10) == Foreseen(job_id=jobs[2].id, peak_bytes=300)
    assert (forecasts.answers, heard.empty()) == ([], True)


def test_the_daemon_keeps_what_was_foreseen_and_what_the_worker_said_stays(bench: Bench) -> None:
    first, second = family_job(bench, "a"), family_job(bench, "b")
    assert bench.store.set_forecast(second, 7)
    bench.daemon.step([Foreseen(job_id=first, peak_bytes=5), Foreseen(job_id=second, peak_bytes=6)])
    assert bench.job(first).memory.forecast_bytes == 5
    assert bench.job(second).memory.forecast_bytes == 7


def test_a_rehearsal_ends_with_who_asked_for_it() -> None:
    request = json.dumps({"parent": os.getpid() + 1, "spec": {}})  # somebody else, who is gone
    done = subprocess.run(
        [sys.executable, "-m", "dovetail_workers.rehearsal"],
        input=request, text=True, capture_output=True, timeout=60, check=False,
    )  # fmt: skip
    assert (done.returncode, done.stdout) == (1, "")
