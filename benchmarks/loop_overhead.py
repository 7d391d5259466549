"""Steps per second through the platform against a plain PyTorch loop over the same model and data,
in turn. Goal: ratio >= 0.98.

python benchmarks/loop_overhead.py [pairs] [steps]
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

from environment import describe, spread
from running_platform import journal, platform, submit_and_wait

from dovetail_workers.reports import Metrics

WARM_UP_STEPS = 5


def plain_steps_per_s(steps: int) -> float:
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"}
    script = Path(__file__).with_name("plain_loop.py")
    done = subprocess.run(
        [sys.executable, str(script), str(steps), str(WARM_UP_STEPS)],
        check=True,
        capture_output=True,
        text=True,
        env=environment,
    )
    return float(done.stdout)


def platform_steps_per_s(home: Path, steps: int) -> float:
    """From the journal's clock: the losses of step `WARM_UP_STEPS` and of the last step."""
    job = submit_and_wait(
        f"train.steps={steps}", "train.validate.every=1000000", "train.checkpoint.every=1000000"
    )
    at = {
        entry.report.step: entry.at
        for entry in journal(home, job["id"])
        if isinstance(entry.report, Metrics) and "loss" in entry.report.values
    }
    return (steps - WARM_UP_STEPS) / (at[steps] - at[WARM_UP_STEPS]).total_seconds()


def main() -> None:
    pairs = int(sys.argv[1]) if len(sys.argv) > 1 else 7
    steps = int(sys.argv[2]) if len(sys.argv) > 2 else 40
    with platform() as home:
        rates = []
        for turn in range(pairs):
            if turn % 2:  # whoever goes second meets a warmer machine: take turns
                plain, through = plain_steps_per_s(steps), platform_steps_per_s(home, steps)
            else:
                through, plain = platform_steps_per_s(home, steps), plain_steps_per_s(steps)
            rates.append((through, plain))
    print(describe())
    print(f"through the platform   {spread([pair[0] for pair in rates], 'steps/s')}")
    print(f"plain PyTorch loop     {spread([pair[1] for pair in rates], 'steps/s')}")
    print(f"ratio, pair by pair    {spread([a / b for a, b in rates], 'x')}")


if __name__ == "__main__":
    main()
