"""Predicted against measured peak of plans that swap, for six models under three budgets each.

The peak is the operating system's, over the bare process, of a child that trains six steps in a
session, its first included. `room` is what the session plans for: the plan's peak, and what
`tensile/allowance.py` leaves free beside it for the process. A plan may stay below that, and freed
memory waits where the budget has room, so a peak lies between plan and budget as a rule. Goal: no
peak over the budget by 5 %.

python benchmarks/memory_plans.py [--write FILE] [names ...]
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from environment import describe
from forecast_models import REPORTED
from memory_forecast import load_libraries, step_of

if TYPE_CHECKING:
    import torch

MODELS = {
    "MLP": 512,
    "ResNet-like": 16,
    "GPT": 4,
    "BERT-like": 16,
    "U-Net": 16,
    "Swin": 8,
}
SHARES = (0.8, 0.6, 0.45)
STEPS = 6
MIB = 2**20


def measure_here(name: str, share: float) -> dict[str, float]:
    """Trains in this process, at `share` of the natural peak or at the floor if that is higher."""
    import torch

    import tensile
    from tensile.allowance import allowance_bytes

    torch.set_num_threads(1)
    torch.manual_seed(0)
    load_libraries()
    _warm()
    model, batch = REPORTED[name][0](MODELS[name])
    shapes = [(t.shape, None if t.is_floating_point() else int(t.max()) + 1) for t in batch]
    del batch
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4)
    step = step_of(model, optimizer)
    with tensile.Session(model, optimizer) as session:
        # made only now, as by a loader: what a session finds belongs to the bare process
        inputs, targets = (_made(shape, below) for shape, below in shapes)
        session.prepare(step, (inputs, targets))
        assert session.forecast is not None
        peak_bytes, floor_bytes = session.forecast.peak_bytes, session.forecast.floor_bytes
        session.set_budget(max(int(share * peak_bytes), floor_bytes))
        plan_bytes = 0
        for _ in range(STEPS):
            with session.step():
                step((inputs, targets))
            schedule = session._execution.schedule
            assert schedule is not None
            plan_bytes = max(plan_bytes, schedule.plan.peak_bytes)
        stats = session.stats()
    assert stats.budget_bytes is not None
    return {
        "natural": peak_bytes,
        "budget": stats.budget_bytes,
        "plan": plan_bytes,
        "room": plan_bytes + allowance_bytes(stats.budget_bytes),
        "measured": stats.peak_bytes,
        "moved": (stats.swapped_out_bytes + stats.recomputed_bytes) / STEPS,
        "deviations": stats.deviations,
    }


def _warm() -> None:
    """Load what tracing, planning and moving need, so that it belongs to the bare process."""
    import torch
    from torch import nn

    import tensile

    model = nn.Sequential(*(nn.Linear(256, 256) for _ in range(6)), nn.Linear(256, 10))
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4)
    step = step_of(model, optimizer)
    with tensile.Session(model, optimizer, 0.7, smallest_bytes=0) as session:
        batch = (torch.randn(512, 256), torch.randint(10, (512,)))
        session.prepare(step, batch)
        for _ in range(2):
            with session.step():
                step(batch)


def _made(shape: torch.Size, below: int | None) -> torch.Tensor:
    import torch

    return torch.randn(shape) if below is None else torch.randint(below, shape)


def measure(name: str, share: float) -> dict[str, float]:
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"}
    done = subprocess.run(
        [sys.executable, __file__, "--child", name, str(share)],
        check=True,
        stdout=subprocess.PIPE,
        text=True,
        env=environment,
    )
    figures: dict[str, float] = json.loads(done.stdout.splitlines()[-1])
    return figures


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("names", nargs="*", default=list(MODELS))
    parser.add_argument("--write", type=Path, help="write the table to this file too")
    parser.add_argument("--child", nargs=2, metavar=("NAME", "SHARE"), help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.child:
        print(json.dumps(measure_here(given.child[0], float(given.child[1]))))
        return
    lines = [
        "# Predicted against measured peak of plans that swap",
        "",
        describe(),
        "",
        "| model | batch | natural MiB | budget | budget MiB | plan MiB | room MiB | measured MiB "
        "| to room | to budget | moved MiB/step | steps off the plan |",
        "|---|---|---|---|---|---|---|---|---|---|---|---|",
    ]
    print("\n".join(lines), flush=True)
    errors, overshoots = [], []
    for name in given.names:
        for share in SHARES:
            case = measure(name, share)
            error = case["measured"] / case["room"] - 1
            overshoot = case["measured"] / case["budget"] - 1
            errors.append(error)
            overshoots.append(overshoot)
            mib = {key: f"{value / MIB:.1f}" for key, value in case.items()}
            lines.append(
                f"| {name} | {MODELS[name]} | {mib['natural']} "
                f"| {case['budget'] / case['natural']:.0%} | {mib['budget']} | {mib['plan']} "
                f"| {mib['room']} | {mib['measured']} | {error:+.1%} | {overshoot:+.1%} "
                f"| {mib['moved']} | {case['deviations']:.0f} |"
            )
            print(lines[-1], flush=True)
    sizes = sorted(abs(error) for error in errors)
    over = sum(overshoot > 0 for overshoot in overshoots)
    lines += [
        "",
        f"{len(errors)} cases: measured against room {statistics.median(sizes):.1%} in the median, "
        f"{max(sizes):.1%} at most; over the budget in {over}, by {max(0.0, *overshoots):.1%} at "
        "most (goal: 5 %).",
    ]
    print("\n".join(lines[-2:]))
    if given.write:
        given.write.write_text("\n".join(lines) + "\n")


if __name__ == "__main__":
    main()
