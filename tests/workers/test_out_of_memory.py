"""A run whose steps find no memory: it goes on with the same bits, or ends with a sentence."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from dovetail_workers import rank
from dovetail_workers.memory_policy import RUNGS
from dovetail_workers.out_of_memory import OutOfMemory
from dovetail_workers.reports import MemoryUsed
from helpers.training import differences, launch, run

HUNGRY = "helpers.hungry_workload"
LARGE = {"batch_size": 2048, "samples": 4096}  # so that there is something that can leave


@pytest.mark.parametrize("precision", ["fp32", pytest.param("fp16", marks=pytest.mark.long)])
def test_a_run_whose_steps_find_no_memory_at_times_ends_with_the_same_bits(
    precision: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setenv("TENSILE_FOLDER", str(tmp_path / "below"))
    given = {"steps": 5, "validate": {"every": 3}, "precision": precision, "clip_norm": 0.5}
    plain = run(tmp_path / "plain", given, family=HUNGRY, params=LARGE)
    assert "memory: a step found none" not in capsys.readouterr().out
    tried = run(
        tmp_path / "tried", given, family=HUNGRY, params={**LARGE, "fails": 3}, policy="tensile"
    )
    assert list(differences(plain.state(), tried.state())) == []
    said = capsys.readouterr().out
    assert said.count("memory: a step found none, so it is taken again under") == 1
    assert tried.of(MemoryUsed)[-1].replans


@pytest.mark.long
def test_a_run_that_never_finds_memory_ends_with_a_sentence(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("TENSILE_FOLDER", str(tmp_path / "below"))
    params = {**LARGE, "fails": 1000}
    given = {"steps": 4, "validate": {"every": 2}}
    with pytest.raises(OutOfMemory, match=r"also after everything left .* reserve more with reso"):
        run(tmp_path, given, family=HUNGRY, params=params, policy="tensile")
    assert capsys.readouterr().out.count("memory: a step found none") <= RUNGS


@pytest.mark.long
def test_a_run_whose_optimizer_had_stepped_ends_and_the_next_attempt_goes_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TENSILE_FOLDER", str(tmp_path / "below"))
    given = {"steps": 5, "validate": {"every": 4}, "checkpoint": {"every": 4}}
    plain = run(tmp_path / "plain", given, family=HUNGRY)
    params = {"fails": 1, "late": True}
    with pytest.raises(OutOfMemory, match="had begun to write parameters"):
        run(tmp_path / "tried", given, family=HUNGRY, params=params, policy="tensile")
    params["fails"] = 0
    resumed = run(
        *(tmp_path / "tried", given),
        **{"family": HUNGRY, "params": params, "policy": "tensile"},
        attempt=2,
        resume=True,
    )
    assert list(differences(plain.state(), resumed.state())) == []


@pytest.mark.long
@pytest.mark.parametrize(
    ("params", "policy", "said"),
    [
        ({"fails": 1, "late": True}, "tensile", "the step found no memory"),
        ({"fails": 1}, "none", "memory: {policy: tensile} runs a job under less"),
        ({"early": True}, "none", "can't allocate memory"),
    ],
)
def test_the_attempt_of_such_a_run_ended_for_want_of_memory_wherever_it_found_none(
    params: dict[str, object], policy: str, said: str, tmp_path: Path
) -> None:
    reports = tmp_path / "reports"
    reports.touch()
    given = {"steps": 4, "validate": {"every": 2}}
    job = launch(tmp_path / "storage", given, family=HUNGRY, params=params, policy=policy)
    (tmp_path / "launch.json").write_text(json.dumps(job.to_json()))
    environment = {
        **os.environ,
        "DOVETAIL_REPORTS": str(reports),
        "TENSILE_FOLDER": str(tmp_path / "below"),
        "PYTHONPATH": os.pathsep.join(sys.path),
    }
    command = (sys.executable, "-m", rank.__name__, str(os.getpid()), str(tmp_path / "launch.json"))
    ended = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=120)
    assert ended.returncode == 1
    assert "error: out of memory: " in ended.stderr
    assert said in ended.stderr
    last = json.loads(reports.read_text().splitlines()[-1])
    assert last["type"] == "failed"
    assert (last["again"], last["memory"]) == (True, True)
    assert last["message"].startswith("out of memory: ")
