"""What a job will take is found out beside the loop, once, and never stands in its way."""

from __future__ import annotations

import json
import os
import queue
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from dovetail.service.code import CodeShelf
from dovetail.service.forecasts import Forecasts
from dovetail.service.foresight import Foresight, Measured
from dovetail.service.outlooks import Foreseen
from dovetail_jobs.errors import UserError
from dovetail_jobs.load import load_file
from dovetail_jobs.spec import JobSpec
from helpers.bench import NOON, Bench
from helpers.build import profile
from helpers.installation import EXAMPLE
from tensile.coordinator import Profile


class Scripted(Forecasts):
    """Answers from a list; an exception in it is raised."""

    def __init__(self, folder: Path, answers: list[int | Exception]) -> None:
        super().__init__(folder)
        self.answers = answers

    def of(self, spec: JobSpec, **_: Any) -> dict[str, Any]:
        answer = self.answers.pop(0)
        if isinstance(answer, Exception):
            raise answer
        return {"forecast": {"peak_bytes": answer}, "profile": profile((answer, 1.0)).to_json()}


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
    assert [heard.get(timeout=10) for _ in jobs] == [
        Foreseen(job_id=jobs[0].id, cause="no"),
        Foreseen(job_id=jobs[1].id, cause="ValueError: broken"),
        Foreseen(job_id=jobs[2].id, peak_bytes=300, profile=profile((300, 1.0))),
    ]
    assert (forecasts.answers, heard.empty()) == ([], True)


class Kept(Forecasts):
    """The disk as it is; who would start a child process fails."""

    def keep(self, spec: JobSpec, answer: dict[str, Any]) -> None:
        self._keep(spec, None, answer)


def test_what_was_kept_is_answered_again_and_corrected_by_what_was_measured(bench: Bench) -> None:
    heard: queue.SimpleQueue[Foreseen] = queue.SimpleQueue()
    forecasts = Kept(bench.folder / "forecasts")
    job = bench.job(family_job(bench, "a"))
    traced = {"forecast": {"peak_bytes": 300}, "profile": profile((300, 1.0), (200, 2.0)).to_json()}
    forecasts.keep(JobSpec.model_validate(job.spec), traced)
    foresight = Foresight(forecasts, CodeShelf(bench.storage, 1), heard.put)
    foresight.ask(job)
    assert heard.get(timeout=10).provenance == "traced"
    foresight.learn(job, Measured(peak_bytes=360, busy=0.3))
    corrected = Foreseen(
        busy=0.3,
        job_id=job.id,
        peak_bytes=360,
        profile=profile((360, 1.0), (240, 2.0)),
        provenance="measured",
        traced_bytes=300,
        raised=1.2,
    )
    assert heard.get(timeout=10) == corrected
    foresight.learn(bench.job(family_job(bench, "lower")), Measured(peak_bytes=350, busy=0.2))
    assert heard.get(timeout=10).busy == 0.3  # the highest counts
    following = bench.job(family_job(bench, "b"))
    Foresight(forecasts, CodeShelf(bench.storage, 1), heard.put).ask(following)
    assert heard.get(timeout=10) == replace(corrected, job_id=following.id)
    # ended under a limit for what it held, which was less than the peak
    foresight.learn(bench.job(family_job(bench, "fenced")), Measured(overrun=1.5))
    raised = heard.get(timeout=10)
    assert (raised.peak_bytes, raised.profile) == (450, profile((450, 1.0), (300, 2.0)))


@pytest.mark.parametrize(
    ("change", "another"),
    [
        ({"resources": {"devices": 2}}, True),
        ({"resources": {"cpus": 2}}, True),
        ({"params": {"batch_size": 8}}, True),
        ({"train": {"steps": 1, "precision": "bf16"}}, True),
        ({"train": {"steps": 1, "optimizer": {"name": "sgd"}}}, True),
        ({"train": {"steps": 1, "optimizer": {"weight_decay": 0.1}}}, True),
        ({"memory": {"policy": "tensile"}}, True),  # a heap keeps more than a session does
        ({"train": {"steps": 9, "seed": 3, "optimizer": {"lr": 0.1}}}, False),
        ({"resources": {"memory": "1GiB"}, "name": "b", "priority": 1}, False),
    ],
)
def test_forecasts_are_kept_by_family_configuration_and_world_size(
    bench: Bench, change: dict[str, Any], another: bool
) -> None:
    """What shapes a step, and nothing else: a search over learning rates is traced once."""
    first = {"name": "a", "family": "swin", "train": {"steps": 1}}
    forecasts = Kept(bench.folder / "forecasts")
    forecasts.keep(JobSpec.model_validate(first), {"forecast": {"peak_bytes": 300}})
    other = JobSpec.model_validate({**first, **change})
    assert (forecasts.kept(other, None) is None) is another
    assert forecasts.kept(other, "another code") is None


@pytest.mark.long
def test_an_answer_of_an_older_dovetail_is_found_out_again_with_a_profile(tmp_path: Path) -> None:
    forecasts = Kept(tmp_path / "forecasts")
    spec = load_file(EXAMPLE, ["memory.policy=tensile"])
    older = {"forecast": {"peak_bytes": 1}, "measured_bytes": 2**40}
    forecasts.keep(spec, older)
    answer = forecasts.of(spec)
    assert answer["measured_bytes"] == 2**40
    assert forecasts.kept(spec, None) == answer
    ladder = Profile.from_json(answer["profile"])
    forecast = answer["forecast"]
    assert ladder.minimum_bytes < forecast["peak_bytes"] <= ladder.peak_bytes
    assert 0.1 < ladder.speed(len(ladder.rungs) - 1) < 1


def test_the_daemon_keeps_what_was_foreseen_and_what_the_worker_said_stays(bench: Bench) -> None:
    first, second = family_job(bench, "a"), family_job(bench, "b")
    assert bench.store.set_forecast(second, 7)
    bench.daemon.step([Foreseen(job_id=first, peak_bytes=5), Foreseen(job_id=second, peak_bytes=6)])
    assert bench.job(first).memory.forecast_bytes == 5
    assert bench.job(second).memory.forecast_bytes == 7


@pytest.mark.long
def test_a_rehearsal_ends_with_who_asked_for_it() -> None:
    request = json.dumps({"parent": os.getpid() + 1, "spec": {}})  # somebody else, who is gone
    done = subprocess.run(
        [sys.executable, "-m", "dovetail_workers.rehearsal"],
        input=request, text=True, capture_output=True, timeout=60, check=False,
    )  # fmt: skip
    assert (done.returncode, done.stdout) == (1, "")
