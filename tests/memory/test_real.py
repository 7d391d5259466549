"""A transformer that takes about 3 GB by nature trains under 1.2 GB, by the system's own count."""

from __future__ import annotations

import json
import subprocess
import sys
import threading
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from tensile import resident

TESTS = Path(__file__).parents[1]
BUDGET_BYTES = 1_200_000_000
STEPS = 4


@dataclass
class Watched:
    """What a training said at its end, and the most that it held in each phase, over the bare
    process: all resident pages, so also those of the lower tier's files.
    """

    said: dict[str, Any] = field(default_factory=dict)
    peak_bytes: dict[str, int] = field(default_factory=dict)


def watched(folder: Path, budget_bytes: int, steps: int) -> Watched:
    folder.mkdir()
    result, phase, over = Watched(), "", threading.Event()
    child = subprocess.Popen(
        [
            *(sys.executable, "-m", "helpers.real_process"),
            *(str(folder), str(budget_bytes), str(steps)),
        ],
        cwd=TESTS,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    with child:
        assert child.stdin is not None
        assert child.stdout is not None
        assert child.stdout.readline() == "ready\n"
        base = held_bytes(child.pid)

        def sample() -> None:
            while not over.wait(0.004):
                held = held_bytes(child.pid) - base
                result.peak_bytes[phase] = max(result.peak_bytes.get(phase, 0), held)

        sampler = threading.Thread(target=sample)
        sampler.start()
        try:
            print("go", file=child.stdin, flush=True)
            for line in child.stdout:
                if line.startswith("{"):
                    result.said = json.loads(line)
                    break
                phase = line.strip()
        finally:
            over.set()
            sampler.join()
        child.communicate("go\n")
    return result


def held_bytes(pid: int) -> int:
    measured = resident.measure(pid)
    return 0 if measured is None else measured.total_bytes


@pytest.mark.long
@pytest.mark.timeout(600)
def test_a_transformer_of_3_gb_trains_validates_and_saves_under_1_2_gb(tmp_path: Path) -> None:
    free = watched(tmp_path / "free", 0, STEPS)
    bound = watched(tmp_path / "bound", BUDGET_BYTES, STEPS)
    assert 2.7e9 < max(free.peak_bytes.values()) < 3.5e9
    over = {phase: peak for phase, peak in bound.peak_bytes.items() if peak > 1.05 * BUDGET_BYTES}
    assert over == {}
    assert {"step 1", "validation", "checkpoint", "resume"} <= set(bound.peak_bytes)
    assert bound.said["stats"]["swapped_out_bytes"] > 1e9
    for same in ("losses", "validation", "sha256"):
        assert bound.said[same] == free.said[same]
