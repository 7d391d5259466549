"""What was submitted is what runs, however the folder changes afterwards."""

from __future__ import annotations

import json
import os
import shutil
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from dovetail_workers import keys
from helpers.attempts import wait_for
from helpers.installation import Installation

pytestmark = pytest.mark.ray


@pytest.fixture
def busy(dovetail: Installation, tmp_path: Path) -> Iterator[list[str]]:
    """Jobs that hold both devices, so that what is submitted next waits behind them."""
    (tmp_path / "sleeper").mkdir()
    sleepers = [dovetail.submit_script(tmp_path / "sleeper", "sleep 1000") for _ in range(2)]
    names = [str(job["id"]) for job in sleepers]
    for name in names:
        dovetail.wait_for_state(name, "RUNNING")
    yield names
    for name in names:
        dovetail.run("cancel", name)


def kill_training(dovetail: Installation, job_id: str) -> None:
    job = dovetail.json("show", job_id)
    os.kill(job["attempts"][-1]["pid"], signal.SIGKILL)


PROGRAM = """\
import os, pathlib, time
from dovetail_workers import reporter
import words
attempt = os.environ["DOVETAIL_ATTEMPT"]
print(words.TEXT, "in attempt", attempt, flush=True)
if attempt == "1":
    reporter.report(step=1)
    while True:
        time.sleep(1)
"""


def test_a_script_that_is_edited_in_the_queue_and_killed_in_mid_run_stays_as_submitted(
    dovetail: Installation, tmp_path: Path, busy: list[str]
) -> None:
    folder = tmp_path / "mine"
    folder.mkdir()
    (folder / "program.py").write_text(PROGRAM)
    (folder / "words.py").write_text("TEXT = 'as submitted'\n")
    job = dovetail.submit_script(folder, "python program.py")
    waiting = dovetail.wait_for_state(job["id"], "QUEUED")
    assert waiting["attempts"] == []
    (folder / "words.py").write_text("TEXT = 'edited'\n")
    dovetail.run("cancel", busy[0])
    dovetail.wait_for_state(job["id"], "RUNNING")
    wait_for("its first step", lambda: dovetail.json("show", job["id"])["progress"]["step"] == 1)
    shutil.rmtree(folder)
    kill_training(dovetail, job["id"])
    done = dovetail.wait_for_state(job["id"], "SUCCEEDED", "FAILED")
    assert (done["state"], len(done["attempts"])) == ("SUCCEEDED", 2), done["message"]
    logs = [dovetail.run("logs", job["id"], "--attempt", number).stdout for number in ("1", "2")]
    assert logs == ["as submitted in attempt 1\n", "as submitted in attempt 2\n"]


def submit_family(dovetail: Installation, folder: Path, **train: Any) -> Any:
    folder.mkdir()
    shutil.copy(Path(__file__).with_name("own_family.py"), folder / "own_family.py")
    spec = {
        "name": "own",
        "family": "own_family",
        "params": {"batch_size": 8},
        "train": {"optimizer": {"name": "sgd", "lr": 0.01}, **train},
    }
    (folder / "job.yaml").write_text(json.dumps(spec))
    return dovetail.submit(folder / "job.yaml")


def has_resumed(dovetail: Installation, job_id: str, attempt: int) -> bool:
    """Whether this attempt began from a checkpoint and has trained on."""
    job = dovetail.json("show", job_id)
    assert job["state"] not in ("FAILED", "SUCCEEDED"), job["message"]
    found = {item["number"]: item["resumed_from_step"] for item in job["attempts"]}
    begin = found.get(attempt)
    step = job["progress"]["step"]  # none between its start and its first progress
    return begin is not None and step is not None and step > begin


def test_a_family_of_the_users_own_goes_on_as_submitted_after_a_kill_and_in_a_retry(
    dovetail: Installation, tmp_path: Path
) -> None:
    folder = tmp_path / "mine"
    job = submit_family(dovetail, folder, steps=100_000, checkpoint={"every": 50})
    (folder / "own_family.py").write_text("raise RuntimeError('edited')\n")
    wait_for("a checkpoint", lambda: dovetail.json("show", job["id"])["checkpoints"])
    kill_training(dovetail, job["id"])
    wait_for("steps of the second attempt", lambda: has_resumed(dovetail, job["id"], attempt=2))
    assert dovetail.run("cancel", job["id"], "--wait").returncode == 0
    again = dovetail.json("retry", job["id"])
    assert again["code"] == job["code"] is not None
    wait_for("steps of the retry", lambda: has_resumed(dovetail, again["id"], attempt=1))
    assert dovetail.run("cancel", again["id"], "--wait").returncode == 0


def test_code_that_is_lost_or_damaged_in_storage_fails_the_job_with_the_way_out(
    dovetail: Installation, tmp_path: Path, busy: list[str]
) -> None:
    found = []
    for name in ("gone", "damaged"):
        folder = tmp_path / name
        folder.mkdir()
        (folder / "words.txt").write_text(f"{folder}\n")
        found.append(dovetail.submit_script(folder, "cat words.txt"))
    places = [dovetail.home / "storage" / keys.code_archive(job["code"]) for job in found]
    places[0].unlink()
    places[1].write_bytes(places[1].read_bytes()[:-1])
    for name in busy:
        dovetail.run("cancel", name)
    gone, damaged = (dovetail.wait_for_state(job["id"], "FAILED", "SUCCEEDED") for job in found)
    assert gone["message"].endswith("; submit the job again")
    assert "is no longer at" in gone["message"]
    assert "is damaged" in damaged["message"]
    assert [len(job["attempts"]) for job in (gone, damaged)] == [1, 1]
    again = dovetail.submit(tmp_path / "damaged" / "script.yaml")
    assert again["code"] == damaged["code"]
    mended = dovetail.wait_for_state(again["id"], "FAILED", "SUCCEEDED")
    assert mended["state"] == "SUCCEEDED", mended["message"]
