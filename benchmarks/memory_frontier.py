"""What memory costs: budgets from 80 % of the forecast peak to the floor, against eager training.

Each arm is a process of its own. All arms of a model are there at once and take their steps in
turn, one at a time and in an order that rotates, so that a machine whose speed changes does so for
all of them: the ratios are of steps that were taken within seconds of each other. Memory is the
operating system's peak over the bare process; time is CPU seconds (also of threads that work on
after their step) and wall seconds of a step. Ratios are the median over the rounds, in brackets the
interval that has the true median in it with 95 % (order statistics). Steps begin to count when no
better plan is being made any more. Goal: at least 45 % saved at most 5 % dearer; the smallest
budget at most 20 % of the peak at most twice as long; passive fetches at most 1 % after the third
step; a budget above the peak (`idle`) at most 1 % dearer.

What is not managed is measured twice: `eager` as PyTorch does it, whose heap keeps what it frees
where that happens to lie, and `pooled`, which differs by tensile's allocator alone. A session is to
be compared with both: the pool alone makes most models faster.

python benchmarks/memory_frontier.py [--rounds N] [--shares S ...] [--write NAME] [MODEL ...]
"""

from __future__ import annotations

import argparse
import contextlib
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

from environment import describe, median_ci
from frontier_models import MODELS
from memory_forecast import load_libraries, step_of

IDLE = 1.25  # of the forecast peak: more than its margin above it
POOLED = -1  # in place of a budget
SHARES: tuple[float | str, ...] = (0.8, 0.6, 0.55, 0.45, 0.35, 0.25, "floor")
FIRST, MOST_FIRST = 3, 24  # steps before the clock starts; more while plans are being made
USED = ("cpu_s", "system_s", "faults")
MIB = 2**20
ALONE = {**os.environ, "OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"}
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


class Trainee:
    """One arm, in its own process. A budget of None is eager training."""

    def __init__(self, name: str, budget: int | None) -> None:
        import tensile
        from tensile import freed_memory, resident

        model, optimizer, self._step, self._batch = made(name)
        self._made_bytes = sum(parameter.nbytes for parameter in model.parameters())
        base, _ = resident.measure(), resident.reset_peak()
        if base is None:
            sys.exit("this system does not say how much memory a process has")
        self._base_bytes = base.total_bytes
        self._session = None
        if budget == POOLED:
            freed_memory.return_it()
            freed_memory.keep_within(2**40)
        elif budget is not None:
            self._session = tensile.Session(model, optimizer, budget)
            self._session.prepare(self._step, self._batch)
        self._losses: list[float] = []
        self._early = self._before = None
        self._warm = 0

    def _run(self) -> None:
        if self._session is None:
            self._losses.append(self._step(self._batch))
            return
        with self._session.step():
            self._losses.append(self._step(self._batch))

    def warm_up(self) -> Case:
        """Steps until no better plan is being made."""
        for _ in range(FIRST):
            self._run()
        self._early = self._session.stats() if self._session else None
        while len(self._losses) < MOST_FIRST:
            planned_s = _planning_s()
            for _ in range(2):
                self._run()
            if _planning_s() == planned_s:
                break
        self._warm = len(self._losses)
        self._before, self._used = self._session.stats() if self._session else None, _used()
        return {}

    def turn(self) -> Case:
        """One step; what its threads did since the last turn's end counts as its own."""
        begin_s = time.perf_counter()
        self._run()
        case: Case = {"wall_s": time.perf_counter() - begin_s}
        used = _used()
        for key, now, then in zip(USED, used, self._used, strict=True):
            case[key] = now - then
        self._used = used
        return case

    def end(self) -> Case:
        from tensile import resident

        measured = resident.measure()
        assert measured is not None
        case: Case = {
            "peak_bytes": measured.peak_bytes - self._base_bytes + self._made_bytes,
            "losses": self._losses[: FIRST + 2],
        }
        early, before = self._early, self._before
        if self._session and early and before:
            stats, turns = self._session.stats(), len(self._losses) - self._warm
            case |= {
                "peak_bytes": stats.peak_bytes,
                "passive": stats.passive_fetches - early.passive_fetches,
                "fetches": stats.fetches - early.fetches,
                "moved_bytes": (stats.swapped_out_bytes - before.swapped_out_bytes) / turns,
                "recomputed_bytes": (stats.recomputed_bytes - before.recomputed_bytes) / turns,
                "stall_s": (stats.stall_s - before.stall_s) / turns,
                "notes": list(stats.notes),
            }
            self._session.close()
        return case

    def serve(self) -> None:
        """A line in, a line out, until `end`."""
        for line in sys.stdin:
            word = line.strip()
            answers = {"warm up": self.warm_up, "turn": self.turn, "end": self.end}
            print(json.dumps(answers[word]()), flush=True)
            if word == "end":
                return


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


class Arm:
    """A trainee, and what it said in its turns."""

    def __init__(self, name: str, budget: int | None) -> None:
        self.budget = budget
        self.turns: list[Case] = []
        self.whole: Case = {}
        self._process = subprocess.Popen(
            [sys.executable, __file__, "--child", json.dumps([name, budget])],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env=ALONE,
        )

    def tell(self, word: str) -> None:
        assert self._process.stdin is not None
        print(word, file=self._process.stdin, flush=True)

    def hear(self) -> Case:
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line:
            sys.exit(f"an arm ended with {self._process.wait()}, before its end")
        case: Case = json.loads(line)
        return case

    def turn(self) -> None:
        self.tell("turn")
        self.turns.append(self.hear())

    def end(self) -> None:
        self.tell("end")
        self.whole = self.hear()
        self._process.wait()

    def stop(self) -> None:
        if self._process.poll() is None:
            self._process.kill()
            self._process.wait()

    @property
    def is_managed(self) -> bool:
        return self.budget is not None and self.budget != POOLED

    def of(self, key: str) -> list[float]:
        return [turn[key] for turn in self.turns]


def forecast_of(name: str) -> Case:
    done = subprocess.run(
        [sys.executable, __file__, "--forecast", name],
        check=True,
        capture_output=True,
        text=True,
        env=ALONE,
    )
    case: Case = json.loads(done.stdout.splitlines()[-1])
    return case


def measured(name: str, budgets: dict[str, int | None], rounds: int) -> dict[str, Arm]:
    with contextlib.ExitStack() as stack:
        arms: dict[str, Arm] = {}
        for label, budget in budgets.items():  # one after the other: nothing disturbs a calibration
            arms[label] = arm = Arm(name, budget)
            stack.callback(arm.stop)
            arm.tell("warm up")
            arm.hear()
        order = list(arms.values())
        for number in range(rounds):
            first = number % len(order)
            for arm in (*order[first:], *order[:first]):
                arm.turn()
        for arm in order:
            arm.end()
        return arms


def budgets(forecast: Case, shares: Sequence[float | str]) -> dict[str, int]:
    """By label; shares below the floor have no plan, so they are left out."""
    peak, floor = forecast["forecast_bytes"], forecast["floor_bytes"]
    found = {f"{share:.0%}": int(share * peak) for share in shares if isinstance(share, float)}
    found = {label: budget for label, budget in found.items() if budget > floor}
    return found | ({"floor": floor} if "floor" in shares else {})


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("models", nargs="*", default=list(MODELS))
    parser.add_argument("--rounds", type=int, default=16)
    parser.add_argument("--shares", type=_share, nargs="+", default=SHARES)
    parser.add_argument("--write", type=Path, help="NAME.md and NAME.png")
    parser.add_argument("--child", help=argparse.SUPPRESS)
    parser.add_argument("--forecast", help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.forecast:
        print(json.dumps(forecast_here(given.forecast)))
        return
    if given.child:
        Trainee(*json.loads(given.child)).serve()
        return
    lines = ["# What memory costs", "", describe(), ""]
    print("\n".join(lines), flush=True)
    curves: dict[str, list[tuple[float, float]]] = {}
    for name in given.models:
        forecast = forecast_of(name)
        wanted: dict[str, int | None] = {"eager": None, "pooled": POOLED}
        wanted["idle"] = int(IDLE * forecast["forecast_bytes"])
        wanted |= budgets(forecast, given.shares)
        arms = measured(name, wanted, given.rounds)
        table, curves[name] = _table(name, forecast, arms)
        print("\n".join(table), flush=True)
        lines += table
    if given.write:
        given.write.with_suffix(".md").write_text("\n".join(lines) + "\n")
        _draw(curves, given.write.with_suffix(".png"))


def _share(text: str) -> float | str:
    return text if text == "floor" else float(text)


def _table(
    name: str, forecast: Case, arms: dict[str, Arm]
) -> tuple[list[str], list[tuple[float, float]]]:
    eager, pooled = arms["eager"], arms["pooled"]
    natural, peak = eager.whole["peak_bytes"], forecast["forecast_bytes"]
    lines = [
        f"## {name}, batch {MODELS[name][1]}: forecast {peak / MIB:.0f} MiB, eager by the system's "
        f"count {natural / MIB:.0f} MiB, {len(eager.turns)} rounds",
        "",
        "| budget | MiB | peak MiB | of the budget | of the forecast | CPU × | CPU × pooled "
        "| wall × | faults/step | moved MiB/step | recomputed MiB/step | stall ms/step "
        "| passive of fetches | same losses |",
        f"|{'---|' * 14}",
    ]
    curve = []
    for label, arm in arms.items():
        whole, budget = arm.whole, arm.budget
        top = whole["peak_bytes"]
        cpu, wall = _ratios(arm, eager, "cpu_s"), _ratios(arm, eager, "wall_s")
        faults = statistics.median(arm.of("faults"))
        if budget is None or not arm.is_managed:
            cpu_ms = median_ci([1000 * spent for spent in arm.of("cpu_s")], "4.0f")
            system = sum(arm.of("system_s")) / sum(arm.of("cpu_s"))
            lines.append(
                f"| {label} | | {top / MIB:.0f} | | {top / peak:.0%} | {median_ci(cpu)}: {cpu_ms} "
                f"ms, {system:.0%} of it in the kernel | | {median_ci(wall)} "
                f"| {faults:.0f} | | | | | |"
            )
            continue
        curve.append((top / peak, statistics.median(cpu)))
        same = whole["losses"] == eager.whole["losses"]
        late, fetches = whole["passive"], whole["fetches"]
        lines.append(
            f"| {label} | {budget / MIB:.0f} | {top / MIB:.0f} | {top / budget:.0%} "
            f"| {top / peak:.0%} | {median_ci(cpu)} | {median_ci(_ratios(arm, pooled, 'cpu_s'))} "
            f"| {median_ci(wall)} | {faults:.0f} "
            f"| {whole['moved_bytes'] / MIB:.0f} "
            f"| {whole['recomputed_bytes'] / MIB:.0f} "
            f"| {1000 * whole['stall_s']:.0f} "
            f"| {late} of {fetches}{f' ({late / fetches:.1%})' if fetches else ''} "
            f"| {'yes' if same else 'NO'} |"
        )
    lines += ["", *_verdicts(peak, arms)]
    return [*lines, ""], curve


def _verdicts(peak: int, arms: dict[str, Arm]) -> list[str]:
    """What the goals say of these figures; savings are of the forecast peak."""
    eager = arms["eager"]
    managed = {label: arm for label, arm in arms.items() if arm.is_managed}
    tops = {label: arm.whole["peak_bytes"] for label, arm in managed.items()}
    dear = {label: _ratios(arm, eager, "cpu_s") for label, arm in managed.items()}
    saving = [label for label in managed if tops[label] <= 0.55 * peak * 1.05]
    found = [f"- idle: {median_ci(dear['idle'], '.3f')} times eager (goal 1.01)"]
    if saving:
        best = min(saving, key=lambda label: statistics.median(dear[label]))
        found.append(
            f"- 45 % or more saved: {1 - tops[best] / peak:.0%} at {median_ci(dear[best])} times "
            f"eager, budget {best} (goal 1.05)"
        )
    lowest = min(managed, key=lambda label: tops[label])
    found.append(
        f"- least: {tops[lowest] / peak:.0%} of the forecast peak, "
        f"{tops[lowest] / eager.whole['peak_bytes']:.0%} of what eager was counted "
        f"with, at {median_ci(dear[lowest])} times eager (goal 20 % at 2)"
    )
    late = {
        label: arm.whole["passive"] / max(arm.whole["fetches"], 1) for label, arm in managed.items()
    }
    told = [f"{label} {share:.1%}" for label, share in late.items() if share > 0.01]
    found.append(
        f"- more than 1 % of the fetches passive: {', '.join(told) if told else 'nowhere'}"
    )
    return found


def _ratios(arm: Arm, other: Arm, key: str) -> list[float]:
    return [mine / theirs for mine, theirs in zip(arm.of(key), other.of(key), strict=True)]


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
