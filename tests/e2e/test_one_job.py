"""From a YAML file to a checkpoint: the real CLI, the real server, a real Ray, real digits."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from helpers.installation import EXAMPLE, Installation

pytestmark = pytest.mark.ray

SHORT = (
    "--set",
    "train.steps=6",
    "--set",
    "train.checkpoint.every=3",
    "--set",
    "train.validate.every=3",
)
SMALL = (*SHORT, "--set", "params.batch_size=32", "--set", "train.schedule.warmup_steps=2")


def finished(dovetail: Installation, *arguments: str) -> Any:
    job = dovetail.json("submit", EXAMPLE, *SMALL, "--wait", *arguments)
    assert job["state"] == "SUCCEEDED"
    return job


def test_a_job_ends_with_metrics_checkpoints_log_and_curves(dovetail: Installation) -> None:
    job = finished(dovetail)
    assert set(job["metrics"]) == {"loss", "accuracy"}
    assert job["progress"]["step"] == job["progress"]["steps"] == 6
    (attempt,) = job["attempts"]
    assert (attempt["state"], attempt["exit_code"]) == ("SUCCEEDED", 0)
    assert attempt["ranks"][0]["pid"] == attempt["pid"]
    assert [checkpoint["step"] for checkpoint in job["checkpoints"]] == [3, 6]
    for checkpoint in job["checkpoints"]:
        manifest = json.loads((Path(checkpoint["uri"]) / "manifest.json").read_text())
        assert manifest["step"] == checkpoint["step"]
    assert job["memory"]["base_bytes"] > 0
    assert job["memory"]["peak_bytes"] > 0
    assert list(Path(job["files"]["curves"]).glob("events.out.tfevents.*"))
    log = dovetail.run("logs", job["id"])
    assert log.returncode == 0
    assert "accuracy" in log.stdout
    kinds = [event["kind"] for event in dovetail.json("events", job["id"])]
    assert kinds[0] == "Submitted"
    assert kinds[-1] == "AttemptReleased"
    assert [kind for kind in kinds if kind.startswith("Attempt")] == [
        "AttemptStarted", "AttemptSucceeded", "AttemptReleased",
    ]  # fmt: skip


def test_the_same_job_gives_equal_metrics_alone_and_beside_another(dovetail: Installation) -> None:
    alone = finished(dovetail)
    first = dovetail.submit(EXAMPLE, *SMALL)
    second = dovetail.submit(EXAMPLE, *SMALL)
    beside = [dovetail.wait_for_state(job["id"], "SUCCEEDED", "FAILED") for job in (first, second)]
    assert {job["attempts"][0]["device"] for job in beside} == {"cpu:0", "cpu:1"}
    assert [job["metrics"] for job in beside] == [alone["metrics"]] * 2


def test_a_dry_run_says_the_resolved_spec_and_where(dovetail: Installation) -> None:
    before = len(dovetail.json("ps", "--all"))
    plan = dovetail.json("submit", EXAMPLE, "--dry-run", "--set", "train.seed=7")
    assert plan["spec"]["train"]["seed"] == 7
    assert plan["spec"]["params"]["backbone"] == "swin_test"
    assert plan["placement"]["device"] in ("cpu:0", "cpu:1")
    assert len(dovetail.json("ps", "--all")) == before


def test_a_script_that_exits_3_fails_and_the_cli_says_so(
    dovetail: Installation, tmp_path: Path
) -> None:
    path = tmp_path / "job.yaml"
    path.write_text("name: three\nscript: echo nothing works; exit 3\n")
    done = dovetail.run("submit", path, "--follow")
    assert done.returncode == 1
    assert "nothing works" in done.stdout
    (job, *_) = dovetail.json("ps", "--all")
    assert (job["state"], job["reason"]) == ("FAILED", "PROGRAM_FAILED")
    assert job["message"] == "the script exited with code 3; its last line: nothing works"
    assert job["attempts"][0]["exit_code"] == 3
    assert dovetail.run("show", job["id"]).returncode == 0


def test_a_retried_job_continues_from_the_checkpoint_of_the_first(
    dovetail: Installation, tmp_path: Path
) -> None:
    script = (
        "import json, os, pathlib, sys\n"
        "resume = os.environ.get('DOVETAIL_RESUME')\n"
        "if resume:\n"
        "    print('resumed with', pathlib.Path(resume, 'state').read_text())\n"
        "    sys.exit(0)\n"
        "folder = pathlib.Path(os.environ['DOVETAIL_CHECKPOINTS'], 'a')\n"
        "folder.mkdir()\n"
        "(folder / 'state').write_text('forty-two')\n"
        "with open(os.environ['DOVETAIL_REPORTS'], 'a') as reports:\n"
        "    reports.write(json.dumps({'step': 4, 'checkpoint': str(folder)}) + '\\n')\n"
        "sys.exit(5)\n"
    )
    (tmp_path / "program.py").write_text(script)
    first = dovetail.submit_script(tmp_path, "python program.py")
    assert dovetail.wait_for_state(first["id"], "FAILED")["checkpoints"][0]["step"] == 4
    second = dovetail.json("retry", first["id"])
    done = dovetail.wait_for_state(second["id"], "SUCCEEDED", "FAILED")
    assert done["attempts"][0]["resumed_from_step"] == 4
    assert dovetail.run("logs", second["id"]).stdout == "resumed with forty-two\n"
    assert dovetail.run("retry", second["id"]).returncode == 6


def test_a_family_of_the_users_own_trains(dovetail: Installation, tmp_path: Path) -> None:
    shutil.copy(Path(__file__).with_name("own_family.py"), tmp_path / "own_family.py")
    path = tmp_path / "job.yaml"
    path.write_text(
        "name: own\nfamily: own_family\nparams: {batch_size: 8}\n"
        "train: {steps: 60, optimizer: {name: sgd, lr: 0.5}}\n"
    )
    job = dovetail.json("submit", path, "--wait")
    assert job["state"] == "SUCCEEDED", job["message"]
    assert job["metrics"]["error"] < 0.2


def test_a_family_that_raises_on_import_is_refused_before_it_is_submitted(
    dovetail: Installation, tmp_path: Path
) -> None:
    (tmp_path / "broken.py").write_text("\n\nraise RuntimeError('not today')\n")
    path = tmp_path / "job.yaml"
    path.write_text("name: own\nfamily: broken\nparams: {batch_size: 8}\ntrain: {steps: 5}\n")
    done = dovetail.run("submit", path)
    assert done.returncode == 2
    assert "job.yaml:2  family: broken" in done.stderr
    assert "not today" in done.stderr
    assert "Traceback" not in done.stderr
