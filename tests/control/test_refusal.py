"""What no device can hold is refused at the first try, and ended where it was taken before that was
known.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator
from dataclasses import replace
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest

from dovetail.cli.main import main
from dovetail.cluster.protocol import NodesSeen
from dovetail.service.forecasts import Forecasts
from dovetail.service.known_devices import SETTLED_S
from dovetail.service.outlooks import Foreseen
from dovetail.service.use_cases import FORECASTS_AT_ONCE
from dovetail_jobs.errors import UserError
from dovetail_jobs.lifecycle import Reason, State
from dovetail_jobs.load import load_data
from dovetail_jobs.spec import JobSpec
from helpers.bench import Bench
from helpers.bench_api import api_of, platform_of
from helpers.build import GIB, MIB, profile
from helpers.fake_server import TOKEN

SWIN = """\
name: swin
family: image_classification
params: {backbone: swin_test, dataset: digits, batch_size: 32}
train: {steps: 1}
memory: {policy: tensile}
"""
HUGE = profile((3 * GIB, 1.0), (2 * GIB, 1.2))
LATER = timedelta(seconds=SETTLED_S + 1)


def swin(**changes: Any) -> JobSpec:
    return load_data(
        {
            "name": "swin",
            "family": "image_classification",
            "params": {"backbone": "swin_test", "dataset": "digits", "batch_size": 32},
            "train": {"steps": 1},
            "memory": {"policy": "tensile"},
            **changes,
        }
    )


@pytest.fixture
def small(tmp_path: Path) -> Iterator[Bench]:
    """A cluster of one device of 8 MiB, half of what the job needs at least."""
    bench = Bench(tmp_path, device_bytes=8 * MIB)
    yield bench
    bench.store.close()


@pytest.fixture
def bench(tmp_path: Path) -> Iterator[Bench]:
    bench = Bench(tmp_path)
    yield bench
    bench.store.close()


def submitted(bench: Bench, spec: JobSpec) -> str:
    """As a server without a cluster takes it."""
    job, _ = bench.store.submit(spec.to_json(), user="u", key=None, now=bench.now)
    bench.turn()
    return job.id


def foresee(bench: Bench, job_id: str) -> None:
    bench.daemon.step([Foreseen(job_id=job_id, peak_bytes=HUGE.peak_bytes, profile=HUGE)])
    bench.turn()


# At submit


def test_the_first_submission_of_a_step_that_fits_no_device_ends_with_an_error(
    small: Bench, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    """Nothing is kept of this configuration: a child traces it while the command waits."""
    file = tmp_path / "swin.yaml"
    file.write_text(SWIN)
    monkeypatch.setenv("DOVETAIL_HOME", str(tmp_path / "home"))
    monkeypatch.setenv("DOVETAIL_TOKEN", TOKEN)
    with api_of(small) as client:
        monkeypatch.setenv("DOVETAIL_URL", client.url)
        assert main(["submit", str(file)]) == 2
        out, err = capfd.readouterr()
        assert out == ""
        assert "job swin: does not fit: no plan of its step keeps less than 14." in err
        assert "and the largest device is cpu:0 on n1 with 8MiB; use a smaller params" in err
        assert ".batch_size (at most 17 instead of 32), compute activations again" in err
        assert "or shard it over several devices (not here yet)" in err
        with pytest.raises(UserError, match="does not fit"):
            client.submit(swin().to_json(), "key")
    assert small.store.jobs() == []


def test_a_declared_memory_that_no_device_has_is_refused_for_scripts_too(
    bench: Bench, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "job.yaml"
    file.write_text("name: job\nscript: python train.py\nresources: {memory: 64GiB}\n")
    monkeypatch.setenv("DOVETAIL_HOME", str(tmp_path / "home"))
    monkeypatch.setenv("DOVETAIL_TOKEN", TOKEN)
    with api_of(bench) as client:
        monkeypatch.setenv("DOVETAIL_URL", client.url)
        assert main(["submit", str(file)]) == 2
    said = "job job: resources.memory: 64GiB does not fit, the largest device is cpu:0 on n1 with"
    assert said in capfd.readouterr().err
    assert bench.store.jobs() == []


def test_a_reservation_below_the_forecast_is_told_to_whoever_submits(
    bench: Bench, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    class Known(Forecasts):
        def of(self, spec: JobSpec, **_: Any) -> dict[str, Any]:
            ladder = profile((54 * MIB, 1.0), (15 * MIB, 2.0))
            return {"forecast": {"peak_bytes": 54 * MIB}, "profile": ladder.to_json()}

    file = tmp_path / "swin.yaml"
    file.write_text(SWIN + "resources: {memory: 20MiB}\n")
    monkeypatch.setenv("DOVETAIL_HOME", str(tmp_path / "home"))
    monkeypatch.setenv("DOVETAIL_TOKEN", TOKEN)
    with api_of(bench, Known(bench.folder)) as client:
        monkeypatch.setenv("DOVETAIL_URL", client.url)
        assert main(["submit", str(file)]) == 0
    out, err = capfd.readouterr()
    (job,) = bench.store.jobs()
    assert out == f"{job.id}\n"
    assert "warning: swin: resources.memory: 20MiB is below the forecast peak of 54MiB" in err


def test_a_server_that_ends_while_it_foresees_has_acknowledged_nothing(bench: Bench) -> None:
    class Ending(Forecasts):
        def of(self, spec: JobSpec, **_: Any) -> dict[str, Any]:
            raise SystemExit

    with pytest.raises(SystemExit):
        platform_of(bench, Ending(bench.folder)).submit(swin(), "key", "u")
    assert bench.store.jobs() == []

    class Late(Forecasts):
        def of(self, spec: JobSpec, **_: Any) -> dict[str, Any]:
            raise UserError("was not foreseen within 20 s")

    job, new = platform_of(bench, Late(bench.folder)).submit(swin(), "key", "u")
    assert (job.state, new) == (State.QUEUED, True)


def test_few_submissions_wait_for_a_forecast_at_once_and_the_others_are_taken(
    bench: Bench,
) -> None:
    asked, answers = threading.Semaphore(0), threading.Event()

    class Slow(Forecasts):
        def of(self, spec: JobSpec, **_: Any) -> dict[str, Any]:
            asked.release()
            assert answers.wait(30)
            raise UserError("was not foreseen")

    platform = platform_of(bench, Slow(bench.folder))
    waiting = [
        threading.Thread(target=platform.submit, args=(swin(), None, "u"))
        for _ in range(FORECASTS_AT_ONCE)
    ]
    for thread in waiting:
        thread.start()
        assert asked.acquire(timeout=30)
    job, _ = platform.submit(swin(), None, "u")
    assert [each.id for each in bench.store.jobs()] == [job.id]
    answers.set()
    for thread in waiting:
        thread.join(30)
    assert len(bench.store.jobs()) == 1 + FORECASTS_AT_ONCE


def test_nothing_waits_for_a_forecast_that_decides_nothing(bench: Bench) -> None:
    class Never(Forecasts):
        def of(self, spec: JobSpec, **_: Any) -> dict[str, Any]:
            raise AssertionError

    platform = platform_of(bench, Never(bench.folder))
    platform.submit(swin(memory={"policy": "none"}), None, "u")
    bench.cluster.lose_ray()
    bench.turn()
    platform.submit(swin(), None, "u")
    assert len(bench.store.jobs()) == 2


# After it was taken


def test_a_job_that_turns_out_to_fit_nowhere_ends_and_says_so(bench: Bench) -> None:
    held, job_id = submitted(bench, swin()), submitted(bench, swin())
    bench.now += LATER
    foresee(bench, job_id)
    job = bench.job(job_id)
    assert (job.state, job.reason, job.attempts) == (State.FAILED, Reason.DOES_NOT_FIT, ())
    assert job.message == (
        "does not fit: no plan of its step keeps less than 2GiB, and the largest device is cpu:0 "
        "on n1 with 1GiB; use a smaller params.batch_size (at most 16 instead of 32), compute "
        "activations again in the model (torch.utils.checkpoint), or shard it over several devices "
        "(not here yet)"
    )
    assert bench.store.events(job_id)[-1].kind == "RuledOut"
    assert bench.job(held).state is State.STARTING


def test_nobody_is_ruled_out_while_nodes_still_come(bench: Bench) -> None:
    _, job_id = submitted(bench, swin()), submitted(bench, swin())
    foresee(bench, job_id)
    assert bench.job(job_id).reason is Reason.DOES_NOT_FIT
    assert bench.job(job_id).state is State.QUEUED
    bench.now += LATER / 2
    device = replace(bench.nodes[0].devices[0], bytes=2 * GIB)
    late = replace(bench.nodes[0], id="node-2", name="n2", devices=(device,))
    bench.cluster.tell(NodesSeen(nodes=(*bench.nodes, late)))
    bench.turn()
    assert bench.job(job_id).state is State.STARTING


def test_a_node_that_is_away_may_come_back_for_a_week(bench: Bench) -> None:
    device = replace(bench.nodes[0].devices[0], bytes=2 * GIB)
    large = replace(bench.nodes[0], id="node-2", name="n2", devices=(device,))
    bench.cluster.tell(NodesSeen(nodes=(*bench.nodes, large)))
    bench.turn()
    bench.cluster.tell(NodesSeen(nodes=bench.nodes))
    bench.turn()
    bench.now += LATER
    _, job_id = submitted(bench, swin()), submitted(bench, swin())
    foresee(bench, job_id)
    assert bench.job(job_id).state is State.QUEUED
    script = load_data({"name": "s", "script": "true", "resources": {"memory": "2GiB"}})
    accepted, _ = platform_of(bench).submit(script, None, "u")
    bench.daemon = bench.new_daemon()  # the next server knows it too
    bench.turn()
    bench.now += LATER
    foresee(bench, job_id)
    assert bench.job(job_id).state is State.QUEUED
    bench.now += timedelta(days=8)
    bench.turn()
    assert [bench.job(each).state for each in (job_id, accepted.id)] == [State.FAILED] * 2
    with pytest.raises(UserError, match="ask for at most that"):
        platform_of(bench).submit(script, None, "u")
