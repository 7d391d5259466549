"""The examples that ship: each loads, and the script does what its comments say."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from dovetail_jobs.load import load_file

EXAMPLES = Path(__file__).parent.parent.parent / "jobs" / "examples"


@pytest.mark.parametrize("path", sorted(EXAMPLES.glob("*.yaml")), ids=lambda path: path.name)
def test_every_example_is_a_valid_job(path: Path) -> None:
    assert load_file(path).version == 1


def run_script(folder: Path, steps: int, resume: Path | None = None) -> list[dict[str, object]]:
    folder.mkdir()
    environment = {**os.environ, "DOVETAIL_REPORTS": str(folder / "reports")}
    environment["DOVETAIL_CHECKPOINTS"] = str(folder / "checkpoints")
    if resume is not None:
        environment["DOVETAIL_RESUME"] = str(resume)
    script = [sys.executable, EXAMPLES / "estimate_pi.py", "--steps", str(steps)]
    subprocess.run([*script, "--checkpoint-every", "2"], check=True, env=environment)
    return [json.loads(line) for line in (folder / "reports").read_text().splitlines()]


def test_the_script_resumes_as_if_it_had_never_stopped(tmp_path: Path) -> None:
    whole = run_script(tmp_path / "whole", 4)
    half = run_script(tmp_path / "half", 2)
    shutil.move(tmp_path / "half" / "checkpoints" / "step-000002", tmp_path / "kept")
    rest = run_script(tmp_path / "rest", 4, resume=tmp_path / "kept")

    def metrics(lines: list[dict[str, object]]) -> list[object]:
        return [line["metrics"] for line in lines if "metrics" in line]

    assert metrics(whole) == metrics(half) + metrics(rest)
    assert [Path(str(line["checkpoint"])).name for line in whole if "checkpoint" in line] == [
        "step-000002",
        "step-000004",
    ]


def test_the_script_runs_by_hand_too(tmp_path: Path) -> None:
    script = [sys.executable, EXAMPLES / "estimate_pi.py", "--steps", "1"]
    clean = {key: value for key, value in os.environ.items() if not key.startswith("DOVETAIL")}
    done = subprocess.run(script, check=True, env=clean, stdout=subprocess.PIPE, text=True)
    assert done.stdout.startswith("step 1: pi is about 3.1")
