"""Fifty steps at half of the natural peak: the same bits, and no more memory than that."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

TESTS = Path(__file__).parents[1]
STEPS = 50


@pytest.mark.long
@pytest.mark.parametrize("kind", ["swin", "residual", "language", "recurrent"])
def test_fifty_steps_at_half_the_peak_give_the_same_bits_in_half_the_memory(
    kind: str, tmp_path: Path
) -> None:
    command = (sys.executable, "-m", "helpers.larger_trainings", str(tmp_path), kind, str(STEPS))
    ended = subprocess.run(command, cwd=TESTS, capture_output=True, text=True, check=True)
    said = json.loads(ended.stdout)
    stats = said["stats"]
    assert said["differences"] == []
    assert stats["steps"] == STEPS
    assert stats["deviations"] == 0, stats["notes"]
    assert stats["swapped_out_bytes"] + stats["recomputed_bytes"] > 0
    assert stats["peak_bytes"] < 1.05 * stats["budget_bytes"]
