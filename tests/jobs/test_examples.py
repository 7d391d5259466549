"""The examples that ship: each loads, and the script does what its comments say."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from dovetail_jobs.load import load_file

EXAMPLES = Path(__file__).parent.parent.parent / "jobs" / "examples"


@pytest.mark.parametrize("path", sorted(EXAMPLES.rglob("*.yaml")), ids=lambda path: path.name)
def test_every_example_is_a_valid_job(path: Path) -> None:
    assert load_file(path).version == 1


def run_script(
    folder: Path, steps: int, program: str, resume: Path | None = None
) -> list[dict[str, object]]:
    folder.mkdir()
    environment = {**os.environ, "DOVETAIL_REPORTS": str(folder / "reports")}
    environment["DOVETAIL_CHECKPOINTS"] = str(folder / "checkpoints")
    environment["OMP_NUM_THREADS"] = "1"
    if resume is not None:
        environment["DOVETAIL_RESUME"] = str(resume)
    name, *options = program.split()
    script = [sys.executable, EXAMPLES / name, *options, "--steps", str(steps)]
    subprocess.run([*script, "--checkpoint-every", "2"], check=True, env=environment)
    return [json.loads(line) for line in (folder / "reports").read_text().splitlines()]


@pytest.mark.parametrize(
    "program",
    [
        "estimate_pi.py",
        pytest.param("shared/gpt_digits.py --batch-size 8", marks=pytest.mark.long),
    ],
)
def test_a_script_resumes_as_if_it_had_never_stopped(tmp_path: Path, program: str) -> None:
    whole = run_script(tmp_path / "whole", 4, program)
    half = run_script(tmp_path / "half", 2, program)
    shutil.move(tmp_path / "half" / "checkpoints" / "step-000002", tmp_path / "kept")
    rest = run_script(tmp_path / "rest", 4, program, resume=tmp_path / "kept")

    def losses(lines: list[dict[str, object]]) -> list[object]:
        found: list[Any] = [line["metrics"] for line in lines if "metrics" in line]
        return [{k: v for k, v in each.items() if k != "held_out"} for each in found]

    assert losses(whole) == losses(half) + losses(rest)
    assert [Path(str(line["checkpoint"])).name for line in whole if "checkpoint" in line] == [
        "step-000002",
        "step-000004",
    ]


@pytest.mark.long
def test_a_script_with_a_session_says_what_its_bare_process_holds_before_its_first_step(
    tmp_path: Path,
) -> None:
    """Until then the fence takes what tracing and planning left in the process for the job's."""
    first, *_ = run_script(tmp_path / "run", 1, "shared/gpt_digits.py --batch-size 8")
    assert first["type"] == "memory"
    assert first["base_bytes"]


def test_the_script_runs_by_hand_too(tmp_path: Path) -> None:
    script = [sys.executable, EXAMPLES / "estimate_pi.py", "--steps", "1"]
    clean = {key: value for key, value in os.environ.items() if not key.startswith("DOVETAIL")}
    done = subprocess.run(script, check=True, env=clean, stdout=subprocess.PIPE, text=True)
    assert done.stdout.startswith("step 1: pi is about 3.1")
