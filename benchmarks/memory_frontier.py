"""What memory costs: budgets from the natural peak down to the floor, against eager training.

Each case is a child process; all budgets of a model are measured in turn, several times over, so
that a busy machine slows all of them alike. Memory is the operating system's peak over the bare
process, time is CPU seconds and wall seconds of a step. Goal: at least 45 % saved at most 5 %
dearer; the smallest budget at most 20 % of the peak at most twice as long; passive fetches at most
1 % after the third step.

python benchmarks/memory_frontier.py [--repeats N] [--steps N] [--write NAME] [models ...]
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from environment import describe
from frontier_models import MODELS
from memory_forecast import load_libraries, step_of

SHARES: tuple[float | str | None, ...] = (None, 1.0, 0.8, 0.6, 0.45, 0.35, 0.25, "floor")
MIB = 2**20
Case = dict[str, Any]


def measure_here(name: str, share: float | str | None, steps: int) -> Case:
    """Trains `steps` steps, the first three of them before the clock starts."""
    import torch

    import tensile
    from tensile import resident

    torch.set_num_threads(1)
    torch.manual_seed(0)
    load_libraries()
    make, batch_size = MODELS[name]
    model, batch = make(batch_size)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4)
    step = step_of(model, optimizer)
    found = tensile.forecast(tensile.trace(step, model, optimizer, batch))
    made_bytes = sum(parameter.nbytes for parameter in model.parameters())
    base, _ = resident.measure(), resident.reset_peak()
    if base is None:
        sys.exit("this system does not say how much memory a process has")
    losses, session, budget = [], None, None
    if share is not None:
        budget = found.floor_bytes if share == "floor" else int(float(share) * found.peak_bytes)
        session = tensile.Session(model, optimizer, budget)
        session.prepare(step, batch)
    passive = 0
    for number in range(steps):
        if number == 3:
            passive = session.stats().passive_fetches if session else 0
            cpu_s, wall_s = time.process_time(), time.perf_counter()
        if session is None:
            losses.append(step(batch))
            continue
        with session.step():
            losses.append(step(batch))
    cpu_s, wall_s = time.process_time() - cpu_s, time.perf_counter() - wall_s
    now = resident.measure()
    assert now is not None
    case: Case = {
        "budget_bytes": budget,
        "forecast_bytes": found.peak_bytes,
        "peak_bytes": now.peak_bytes - base.total_bytes + made_bytes,
        "cpu_s": cpu_s / (steps - 3),
        "wall_s": wall_s / (steps - 3),
        "loss": losses[-1],
    }
    if session is not None:
        stats = session.stats()
        case |= {
            "peak_bytes": stats.peak_bytes,
            "passive": stats.passive_fetches - passive,
            "moved_bytes": stats.swapped_out_bytes / steps,
            "recomputed_bytes": stats.recomputed_bytes / steps,
            "stall_s": stats.stall_s / steps,
            "notes": list(stats.notes),
        }
        session.close()
    return case


def measure(name: str, share: float | str | None, steps: int) -> Case:
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"}
    asked = json.dumps([name, share, steps])
    done = subprocess.run(
        [sys.executable, __file__, "--child", asked],
        check=True,
        capture_output=True,
        text=True,
        env=environment,
    )
    case: Case = json.loads(done.stdout.splitlines()[-1])
    return case


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("models", nargs="*", default=list(MODELS))
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--steps", type=int, default=9)
    parser.add_argument("--write", type=Path, help="NAME.md and NAME.png")
    parser.add_argument("--child", help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.child:
        print(json.dumps(measure_here(*json.loads(given.child))))
        return
    lines = ["# What memory costs", "", describe(), ""]
    print("\n".join(lines), flush=True)
    curves: dict[str, list[tuple[float, float]]] = {}
    for name in given.models:
        cases: dict[float | str | None, list[Case]] = {share: [] for share in SHARES}
        for _ in range(given.repeats):
            for share in SHARES:
                cases[share].append(measure(name, share, given.steps))
        table, curves[name] = _table(name, cases)
        print("\n".join(table), flush=True)
        lines += table
    if given.write:
        given.write.with_suffix(".md").write_text("\n".join(lines) + "\n")
        _draw(curves, given.write.with_suffix(".png"))


def _table(
    name: str, cases: dict[float | str | None, list[Case]]
) -> tuple[list[str], list[tuple[float, float]]]:
    eager = cases[None]
    natural = statistics.median(case["peak_bytes"] for case in eager)
    forecast = eager[0]["forecast_bytes"]
    lines = [
        f"## {name}, batch {MODELS[name][1]}: eager peak {natural / MIB:.0f} MiB, forecast "
        f"{forecast / MIB:.0f} MiB",
        "",
        "| budget | budget MiB | peak MiB | of eager | CPU × | wall × | moved MiB/step "
        "| recomputed MiB/step | passive | same loss |",
        "|---|---|---|---|---|---|---|---|---|---|",
    ]
    curve = []
    for share, runs in cases.items():
        if share is None:
            continue
        peak = statistics.median(case["peak_bytes"] for case in runs)
        cpu = _ratios(runs, eager, "cpu_s")
        wall = _ratios(runs, eager, "wall_s")
        curve.append((peak / natural, statistics.median(cpu)))
        same = all(case["loss"] == eager[0]["loss"] for case in runs)
        label = share if isinstance(share, str) else f"{share:.0%}"
        lines.append(
            f"| {label} | {runs[0]['budget_bytes'] / MIB:.0f} "
            f"| {peak / MIB:.0f} | {peak / natural:.0%} | {_shown(cpu)} | {_shown(wall)} "
            f"| {runs[-1]['moved_bytes'] / MIB:.0f} | {runs[-1]['recomputed_bytes'] / MIB:.0f} "
            f"| {max(case['passive'] for case in runs)} | {'yes' if same else 'NO'} |"
        )
    return [*lines, ""], curve


def _ratios(runs: list[Case], eager: list[Case], key: str) -> list[float]:
    return [run[key] / plain[key] for run, plain in zip(runs, eager, strict=True)]


def _shown(ratios: list[float]) -> str:
    return f"{statistics.median(ratios):.2f} ({min(ratios):.2f}–{max(ratios):.2f})"


def _draw(curves: dict[str, list[tuple[float, float]]], file: Path) -> None:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7, 4.5), layout="constrained")
    axes = figure.subplots()
    for name, points in curves.items():
        share, cost = zip(*sorted(points), strict=True)
        axes.plot([100 * value for value in share], cost, "o-", label=name)
    axes.axhline(1.05, color="grey", ls=":", label="5 % dearer")
    axes.set_xlabel("peak, % of eager training")
    axes.set_ylabel("CPU seconds of a step, × eager")
    axes.legend()
    figure.savefig(file, dpi=110)


if __name__ == "__main__":
    main()
