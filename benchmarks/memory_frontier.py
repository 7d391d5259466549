"""What memory costs: budgets from 80 % of the forecast peak to the floor, against eager training.

Each case is a child process; all budgets of a model are measured in turn, several times over, so
that a busy machine slows all of them alike. Memory is the operating system's peak over the bare
process, time is CPU seconds and wall seconds of a step: median (least–most) of the repeats. Steps
begin to count when no better plan is being made any more. Goal: at least 45 % saved at most 5 %
dearer; the smallest budget at most 20 % of the peak at most twice as long; passive fetches at most
1 % after the third step; a budget above the peak (`idle`) at most 1 % dearer.

What is not managed is measured twice: `eager` as PyTorch does it, whose heap keeps what it frees
where that happens to lie, and `pooled`, which differs by tensile's allocator alone. A session is to
be compared with both: the pool alone makes most models faster.

python benchmarks/memory_frontier.py [--repeats N] [--steps N] [--shares S ...] [--write NAME] [...]
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import statistics
import subprocess
import sys
import threading
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from environment import describe
from frontier_models import MODELS
from memory_forecast import load_libraries, step_of

IDLE = 1.25  # of the forecast peak: more than its margin above it
POOLED = -1  # in place of a budget
SHARES: tuple[float | str, ...] = (0.8, 0.6, 0.45, 0.35, 0.25, "floor")
FIRST, MOST_FIRST = 3, 24  # steps before the clock starts; more while plans are being made
USED = ("cpu_s", "system_s", "faults")
MIB = 2**20
Case = dict[str, Any]


def made(name: str) -> tuple[Any, Any, Any, Any]:
    """Model, optimizer, step and batch; the same in every process."""
    import torch

    torch.set_num_threads(1)
    torch.manual_seed(0)
    load_libraries()
    make, batch_size = MODELS[name]
    model, batch = make(batch_size)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4)
    return model, optimizer, step_of(model, optimizer), batch


def forecast_here(name: str) -> Case:
    import tensile

    model, optimizer, step, batch = made(name)
    found = tensile.forecast(tensile.trace(step, model, optimizer, batch))
    return {"forecast_bytes": found.peak_bytes, "floor_bytes": found.floor_bytes}


def measure_here(name: str, budget: int | None, steps: int) -> Case:
    """`steps` steps, after those in which plans are still being made. None for eager training."""
    import tensile
    from tensile import freed_memory, resident

    model, optimizer, step, batch = made(name)
    made_bytes = sum(parameter.nbytes for parameter in model.parameters())
    base, _ = resident.measure(), resident.reset_peak()
    if base is None:
        sys.exit("this system does not say how much memory a process has")
    session = None
    if budget == POOLED:
        freed_memory.return_it()
        freed_memory.keep_within(2**40)
    elif budget is not None:
        session = tensile.Session(model, optimizer, budget)
        session.prepare(step, batch)

    def run() -> float:
        if session is None:
            return step(batch)
        with session.step():
            return step(batch)

    losses = [run() for _ in range(FIRST)]
    early = session.stats() if session else None
    while len(losses) < MOST_FIRST:
        planned_s = _planning_s()
        losses += [run() for _ in range(2)]
        if _planning_s() == planned_s:
            break
    before, used, begin_s = session.stats() if session else None, _used(), time.perf_counter()
    losses += [run() for _ in range(steps)]
    case: Case = {"wall_s": (time.perf_counter() - begin_s) / steps}
    for key, now, then in zip(USED, _used(), used, strict=True):
        case[key] = (now - then) / steps
    measured = resident.measure()
    assert measured is not None
    case |= {
        "peak_bytes": measured.peak_bytes - base.total_bytes + made_bytes,
        "losses": losses[: FIRST + 2],
    }
    if session and early and before:
        stats = session.stats()
        case |= {
            "peak_bytes": stats.peak_bytes,
            "passive": stats.passive_fetches - early.passive_fetches,
            "fetches": stats.fetches - early.fetches,
            "moved_bytes": (stats.swapped_out_bytes - before.swapped_out_bytes) / steps,
            "recomputed_bytes": (stats.recomputed_bytes - before.recomputed_bytes) / steps,
            "stall_s": (stats.stall_s - before.stall_s) / steps,
            "planning_s": _planning_s(),
            "first": len(losses) - steps,
            "notes": list(stats.notes),
        }
        session.close()
    return case


def _used() -> tuple[float, float, float]:
    """CPU seconds, those of them in the kernel, and page faults of this process."""
    usage = resource.getrusage(resource.RUSAGE_SELF)
    return usage.ru_utime + usage.ru_stime, usage.ru_stime, usage.ru_minflt


def _planning_s() -> float:
    """CPU seconds of the thread that looks for better plans: work that ends."""
    ticks = 0
    for thread in threading.enumerate():
        if thread.name.startswith("tensile planner"):
            text = Path(f"/proc/self/task/{thread.native_id}/stat").read_text()
            ticks += sum(int(field) for field in text.rpartition(")")[2].split()[11:13])
    return ticks / os.sysconf("SC_CLK_TCK")


def measured(function: str, *arguments: object) -> Case:
    """One of the functions `…_here`, in a process of its own."""
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"}
    done = subprocess.run(
        [sys.executable, __file__, "--child", json.dumps([function, *arguments])],
        check=True,
        capture_output=True,
        text=True,
        env=environment,
    )
    case: Case = json.loads(done.stdout.splitlines()[-1])
    return case


def budgets(forecast: Case, shares: Sequence[float | str]) -> dict[str, int]:
    """By label; shares below the floor have no plan, so they are left out."""
    peak, floor = forecast["forecast_bytes"], forecast["floor_bytes"]
    found = {f"{share:.0%}": int(share * peak) for share in shares if isinstance(share, float)}
    found = {label: budget for label, budget in found.items() if budget > floor}
    return found | ({"floor": floor} if "floor" in shares else {})


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("models", nargs="*", default=list(MODELS))
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--steps", type=int, default=8)
    parser.add_argument("--shares", type=_share, nargs="+", default=SHARES)
    parser.add_argument("--write", type=Path, help="NAME.md and NAME.png")
    parser.add_argument("--child", help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.child:
        function, *arguments = json.loads(given.child)
        print(json.dumps({"forecast": forecast_here, "case": measure_here}[function](*arguments)))
        return
    lines = ["# What memory costs", "", describe(), ""]
    print("\n".join(lines), flush=True)
    curves: dict[str, list[tuple[float, float]]] = {}
    for name in given.models:
        forecast = measured("forecast", name)
        arms: dict[str, int | None] = {"eager": None, "pooled": POOLED}
        arms["idle"] = int(IDLE * forecast["forecast_bytes"])
        arms |= budgets(forecast, given.shares)
        cases: dict[str, list[Case]] = {label: [] for label in arms}
        for _ in range(given.repeats):
            for label, budget in arms.items():
                cases[label].append(measured("case", name, budget, given.steps))
        table, curves[name] = _table(name, forecast, arms, cases)
        print("\n".join(table), flush=True)
        lines += table
    if given.write:
        given.write.with_suffix(".md").write_text("\n".join(lines) + "\n")
        _draw(curves, given.write.with_suffix(".png"))


def _share(text: str) -> float | str:
    return text if text == "floor" else float(text)


def _table(
    name: str, forecast: Case, arms: dict[str, int | None], cases: dict[str, list[Case]]
) -> tuple[list[str], list[tuple[float, float]]]:
    eager = cases["eager"]
    natural = statistics.median(case["peak_bytes"] for case in eager)
    peak = forecast["forecast_bytes"]
    lines = [
        f"## {name}, batch {MODELS[name][1]}: forecast {peak / MIB:.0f} MiB, eager by the system's "
        f"count {natural / MIB:.0f} MiB",
        "",
        "| budget | MiB | peak MiB | of the budget | of the forecast | CPU × | CPU × pooled "
        "| wall × | faults/step | moved MiB/step | recomputed MiB/step | stall ms/step "
        "| passive of fetches | same losses |",
        f"|{'---|' * 14}",
    ]
    curve = []
    pooled = cases["pooled"]
    for label, runs in cases.items():
        top = max(case["peak_bytes"] for case in runs)
        cpu, wall = _ratios(runs, eager, "cpu_s"), _ratios(runs, eager, "wall_s")
        budget = arms[label]
        faults = statistics.median(case["faults"] for case in runs)
        if budget is None or budget == POOLED:
            system = _interval([case["system_s"] / case["cpu_s"] for case in runs])
            cpu_ms = _interval([1000 * case["cpu_s"] for case in runs], "4.0f")
            wall_ms = _interval([1000 * case["wall_s"] for case in runs], "4.0f")
            lines.append(
                f"| {label} | | {top / MIB:.0f} | | {top / peak:.0%} | {_interval(cpu)}: {cpu_ms} "
                f"ms, {system} of it in the kernel | | {_interval(wall)}: {wall_ms} ms "
                f"| {faults:.0f} | | | | | |"
            )
            continue
        curve.append((top / peak, statistics.median(cpu)))
        over_pooled = _ratios(runs, pooled, "cpu_s")
        same = all(case["losses"] == eager[0]["losses"] for case in runs)
        late = sum(case["passive"] for case in runs)
        fetches = sum(case["fetches"] for case in runs)
        lines.append(
            f"| {label} | {budget / MIB:.0f} | {top / MIB:.0f} | {top / budget:.0%} "
            f"| {top / peak:.0%} | {_interval(cpu)} | {_interval(over_pooled)} "
            f"| {_interval(wall)} | {faults:.0f} "
            f"| {_median(runs, 'moved_bytes') / MIB:.0f} "
            f"| {_median(runs, 'recomputed_bytes') / MIB:.0f} "
            f"| {1000 * _median(runs, 'stall_s'):.0f} "
            f"| {late} of {fetches}{f' ({late / fetches:.1%})' if fetches else ''} "
            f"| {'yes' if same else 'NO'} |"
        )
    lines += ["", *_verdicts(peak, eager, {label: cases[label] for label in arms})]
    return [*lines, ""], curve


def _verdicts(peak: int, eager: list[Case], cases: dict[str, list[Case]]) -> list[str]:
    """What the goals say of these figures; savings are of the forecast peak."""
    managed = {label: runs for label, runs in cases.items() if label not in ("eager", "pooled")}
    tops = {label: max(case["peak_bytes"] for case in runs) for label, runs in managed.items()}
    dear = {
        label: statistics.median(_ratios(runs, eager, "cpu_s")) for label, runs in managed.items()
    }
    passive = {
        label: sum(case["passive"] for case in runs) / max(sum(c["fetches"] for c in runs), 1)
        for label, runs in managed.items()
    }
    saving = [label for label in managed if tops[label] <= 0.55 * peak * 1.05]
    found = [f"- idle: {dear['idle']:.3f} times eager (goal 1.01)"]
    if saving:
        best = min(saving, key=lambda label: dear[label])
        found.append(
            f"- 45 % or more saved: {1 - tops[best] / peak:.0%} at {dear[best]:.2f} times eager, "
            f"budget {best} (goal 1.05)"
        )
    lowest = min(managed, key=lambda label: tops[label])
    found.append(
        f"- least: {tops[lowest] / peak:.0%} of the forecast peak, "
        f"{tops[lowest] / max(case['peak_bytes'] for case in eager):.0%} of what eager was counted "
        f"with, at {dear[lowest]:.2f} times eager (goal 20 % at 2)"
    )
    late = [f"{label} {share:.1%}" for label, share in passive.items() if share > 0.01]
    found.append(
        f"- more than 1 % of the fetches passive: {', '.join(late) if late else 'nowhere'}"
    )
    return found


def _median(runs: list[Case], key: str) -> float:
    return statistics.median(run[key] for run in runs)


def _ratios(runs: list[Case], eager: list[Case], key: str) -> list[float]:
    return [run[key] / plain[key] for run, plain in zip(runs, eager, strict=True)]


def _interval(values: list[float], form: str = ".2f") -> str:
    middle, low, high = statistics.median(values), min(values), max(values)
    return f"{middle:{form}} ({low:{form}}–{high:{form}})".replace("( ", "(")


def _draw(curves: dict[str, list[tuple[float, float]]], file: Path) -> None:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7, 4.5), layout="constrained")
    axes = figure.subplots()
    for name, points in curves.items():
        share, cost = zip(*sorted(points), strict=True)
        axes.plot([100 * value for value in share], cost, "o-", label=name)
    axes.axhline(1.05, color="grey", ls=":", label="5 % dearer")
    axes.axhline(2, color="grey", ls="--", label="twice as dear")
    axes.set_xlabel("measured peak, % of the forecast natural peak")
    axes.set_ylabel("CPU seconds of a step, × eager")
    axes.legend()
    figure.savefig(file, dpi=110)


if __name__ == "__main__":
    main()
