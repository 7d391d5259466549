"""Three unequal jobs on one CPU device that has half the bytes they would take, in five ways.

- unlimited: together, in plain PyTorch and without any budget: what the device would need;
- serial: one after the other, each with the whole device; with all cores, and with a thread;
- equal shares: together, each with a third of the bytes for good;
- sum of maxima: together, with the bytes of the paper's rule, for good (`sum_of_maxima.py`);
- dovetail: together, under a broker that divides anew when one comes or goes.

All but the first are sessions of the same executor. The last three are measured twice: with copies
as fast as the disk, and throttled, where all jobs of the device share one channel of a known speed,
which stands for a GPU that copies decide about (simulated; `throttled_copies.py`). A serial job has
the device's bytes and copies nothing, so it is measured once. All arms of a repeat run in turn.

Jobs that share have a thread each. Ratios are to the faster of the serial arms in that repeat:
threads that wait for each other suffer most where others use the machine too. Speed counts steps
while all jobs train, each with the seconds that it takes in that serial arm: 1 is serial. Losses of
all that have a thread must be the same, bit for bit, and so must those with all cores.

python benchmarks/many_jobs.py [--repeats N] [--quick] [--copies MB/S] [--write NAME]
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from device_arms import CHILD, Arm, Job, Run, ratios, run
from environment import describe, interval
from lone_training import Task
from sum_of_maxima import static_budgets

from tensile.coordinator.profile import Profile

JOBS = (
    Job(model="GPT", steps=6),
    Job(model="Swin", steps=7),
    Job(model="ResNet-like", steps=12),
)
QUICK = 3  # times fewer steps
SHARE = 0.5  # of the sum of the natural peaks
COPIES_MB_PER_S = 200.0
MIB, MB, GB = 2**20, 10**6, 10**9
ALL_CORES, A_THREAD = "serial, all cores", "serial, a thread"


def profiled(model: str, copies_bytes_per_s: float) -> dict[str, Any]:
    """What a job asks of a device (`lone_training.profile_here`)."""
    task = Task(model=model, steps=0, threads=1, copies_bytes_per_s=copies_bytes_per_s)
    done = subprocess.run(
        [sys.executable, CHILD, "profile", json.dumps(asdict(task))],
        check=True,
        stdout=subprocess.PIPE,
        text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"},
    )
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return found


def arms(
    profiles: Mapping[str, Mapping[str, Any]], device_bytes: int, copies_bytes_per_s: float
) -> list[Arm]:
    """In the order in which a repeat runs them."""
    serial = dict.fromkeys(profiles, device_bytes)
    found = [
        Arm(label="unlimited", is_managed=False),
        Arm(label=ALL_CORES, threads=os.cpu_count() or 1, one_by_one=True, budgets=serial),
        Arm(label=A_THREAD, one_by_one=True, budgets=serial),
    ]
    equal = dict.fromkeys(profiles, device_bytes // len(profiles))
    for regime, speed in (("disk", None), ("throttled", copies_bytes_per_s)):
        of_regime = {n: Profile.from_json(found[regime]) for n, found in profiles.items()}
        maxima = static_budgets(of_regime, device_bytes)
        if maxima is None:
            sys.exit(f"{device_bytes} bytes are fewer than the jobs' minima together")
        found += [
            Arm(label=f"equal shares, {regime}", budgets=equal, copies_bytes_per_s=speed),
            Arm(label=f"sum of maxima, {regime}", budgets=maxima, copies_bytes_per_s=speed),
            Arm(label=f"dovetail, {regime}", broker_bytes=device_bytes, copies_bytes_per_s=speed),
        ]
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--quick", action="store_true", help=f"{QUICK} times fewer steps, once")
    parser.add_argument("--copies", type=float, default=COPIES_MB_PER_S, help="throttled, MB/s")
    parser.add_argument("--write", type=Path, help="NAME.md and NAME.png")
    given = parser.parse_args()
    jobs, repeats = JOBS, given.repeats
    if given.quick:
        jobs, repeats = tuple(Job(model=j.model, steps=j.steps // QUICK) for j in JOBS), 1
    lines = ["# Three jobs on half the memory", "", describe(), ""]
    profiles = {job.model: profiled(job.model, given.copies * MB) for job in jobs}
    device_bytes = int(SHARE * sum(found["peak_bytes"] for found in profiles.values()))
    lines += [
        f"The device has {device_bytes / MIB:.0f} MiB. "
        + "; ".join(
            f"{job.model}: {job.steps} steps, {profiles[job.model]['peak_bytes'] / MIB:.0f} MiB "
            "at most"
            for job in jobs
        )
        + f". Throttled: {given.copies:.0f} MB/s in each direction, for all jobs together, "
        "simulated. Serial: all cores for one job; together: a thread each.",
        "",
    ]
    print("\n".join(lines), flush=True)
    every = arms(profiles, device_bytes, given.copies * MB)
    runs: dict[str, list[Run]] = {arm.label: [] for arm in every}
    for number in range(repeats):
        for arm in every:
            runs[arm.label].append(measured := run(arm, jobs))
            print(f"repeat {number}: {arm.label}, {measured.makespan_s:.1f} s", file=sys.stderr)
        same_losses(runs)
        report = [*table(runs, device_bytes), "", *of_jobs(runs, jobs), "", *sentences(runs)]
        report += ["", f"load at the end: {os.getloadavg()[0]:.1f}"]
        if given.write:  # after each repeat: what was measured stays, should the next one fail
            given.write.with_suffix(".md").write_text("\n".join([*lines, *report]) + "\n")
            draw(runs, device_bytes, given.write.with_suffix(".png"))
    print("\n".join(report))


def same_losses(runs: Mapping[str, Sequence[Run]]) -> None:
    """Ends the program where a job found other losses than in another arm with as many threads."""
    first: dict[tuple[int, str], Any] = {}
    for label, repeats in runs.items():
        for measured in repeats:
            for name, found in measured.found.items():
                key = (measured.arm.threads, name)
                if first.setdefault(key, found["losses"]) != found["losses"]:
                    sys.exit(f"{label}: {name} found other losses than in another arm")


def table(runs: Mapping[str, Sequence[Run]], device_bytes: int) -> list[str]:
    """A row for each arm; intervals are median (least–most), ratios are within a repeat."""
    serial = faster_serial(runs)
    lines = [
        "| arm | makespan s | × serial | speed while all train | steps/s | CPU s | × serial "
        "| moved GB | recomputed GB | waited s | peak of the sum, MiB | of the device |",
        f"|{'---|' * 12}",
    ]
    for label, measured in runs.items():
        speeds = [one.speed(alone) for one, alone in zip(measured, serial, strict=True)]
        known = [speed for speed in speeds if speed is not None]
        moved = [one.total("swapped_out_bytes") + one.total("swapped_in_bytes") for one in measured]
        steps = sum(len(found["ends_s"]) for found in measured[0].found.values())
        peak_bytes = max(one.peak_bytes for one in measured)
        columns = (
            label,
            interval([one.makespan_s for one in measured], ".1f"),
            interval(ratios(measured, serial, lambda one: one.makespan_s)),
            interval(known) if known else "-",
            interval([steps / one.makespan_s for one in measured]),
            interval([one.total("cpu_s") for one in measured], ".1f"),
            interval(ratios(measured, serial, lambda one: one.total("cpu_s"))),
            interval([size / GB for size in moved]),
            interval([one.total("recomputed_bytes") / GB for one in measured]),
            interval([one.total("stall_s") for one in measured], ".1f"),
            f"{peak_bytes / MIB:.0f}",
            f"{peak_bytes / device_bytes:.0%}",
        )
        lines.append(f"| {' | '.join(columns)} |")
    return lines


def faster_serial(runs: Mapping[str, Sequence[Run]]) -> list[Run]:
    """In each repeat, the one of both that took less time."""
    pairs = zip(runs[ALL_CORES], runs[A_THREAD], strict=True)
    return [min(pair, key=lambda one: one.makespan_s) for pair in pairs]


def of_jobs(runs: Mapping[str, Sequence[Run]], jobs: Sequence[Job]) -> list[str]:
    """Each job in each arm, in the last repeat."""
    lines = [
        "| arm | job | budget MiB | step ms | last step ms | begins at s | ends at s | replans "
        "| passive of fetches | most held MiB |",
        f"|{'---|' * 10}",
    ]
    for label, measured in runs.items():
        last = measured[-1]
        for job in jobs:
            found = last.found[job.model]
            ends_s = found["ends_s"]
            budget = None if last.arm.budgets is None else last.arm.budgets[job.model]
            most = max((m.resident_bytes[job.model] for m in last.moments), default=0)
            columns = (
                label,
                job.model,
                "-" if budget is None else f"{budget / MIB:.0f}",
                f"{1000 * last.step_s(job.model):.0f}",
                f"{1000 * (ends_s[-1] - ends_s[-2]):.0f}",
                f"{found['begun_s'] - last.begin_s:.1f}",
                f"{ends_s[-1] - last.begin_s:.1f}",
                str(found.get("replans", "-")),
                f"{found.get('passive_fetches', 0)} of {found.get('fetches', 0)}",
                f"{most / MIB:.0f}",
            )
            lines.append(f"| {' | '.join(columns)} |")
    return lines


def sentences(runs: Mapping[str, Sequence[Run]]) -> list[str]:
    """Dovetail against each other arm of its regime, repeat by repeat."""
    lines = []
    for regime in ("disk", "throttled"):
        ours = runs[f"dovetail, {regime}"]
        against = (ALL_CORES, A_THREAD, f"equal shares, {regime}", f"sum of maxima, {regime}")
        for label in against:
            found = ratios(ours, runs[label], lambda one: one.makespan_s)
            lines.append(f"- dovetail, {regime}: makespan {interval(found)} × {label}")
    lines.append("- losses: the same in all arms with as many threads, bit for bit")
    return lines


def draw(runs: Mapping[str, Sequence[Run]], device_bytes: int, file: Path) -> None:
    """Each arm's last repeat: what each job held, over time, and the device's bytes."""
    from matplotlib.figure import Figure

    columns = 2
    figure = Figure(figsize=(11, 2.1 * ((len(runs) + 1) // columns)), layout="constrained")
    every = figure.subplots((len(runs) + 1) // columns, columns, sharey=True)
    for axes in every.flat:
        axes.set_axis_off()  # one may stay empty
    longest_s = max(measured[-1].makespan_s for measured in runs.values())
    order = sorted(runs, key=lambda label: label.endswith("throttled"))
    for axes, label in zip(every.T.flat, order, strict=False):
        last = runs[label][-1]
        names = list(last.found)
        times_s = [moment.at_s - last.begin_s for moment in last.moments]
        held = [[m.resident_bytes[name] / MIB for m in last.moments] for name in names]
        axes.set_axis_on()
        axes.stackplot(times_s, *held, labels=names)
        axes.axhline(device_bytes / MIB, color="black", ls="--", lw=0.8)
        axes.set_title(f"{label}: {last.makespan_s:.0f} s", fontsize=9, loc="left")
        axes.set_xlim(0, longest_s)
        axes.set_ylabel("MiB")
    for axes in every[-1]:
        axes.set_xlabel("s")
    every.flat[0].legend(fontsize=7, loc="upper right")
    figure.savefig(file, dpi=110)


if __name__ == "__main__":
    main()
