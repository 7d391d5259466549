"""Three unequal jobs on one CUDA device, capped at half the bytes they would take: the arms of
`many_jobs.py` that PyTorch alone can run there. No GPU has run this yet (`docs/gpu-status.md`).

- time sharing: together, each taking what it likes: what the device would need;
- serial: one after the other, each with all the bytes;
- equal shares: together, each with a third of them for good
  (`torch.cuda.set_per_process_memory_fraction`); a job that needs more runs out of memory;
- sum of maxima, by admission: each with its peak for good, and let in when that fits beside the
  peaks of those that train: the best that can be done without moving anything.

Nothing is swapped: `tensile` has no executor for CUDA yet, so the arm `dovetail`, and the sum of
maxima of plans, are left out, and the report says so. Bytes are what the device has in use beyond
the moment when all processes were ready. Losses are compared, and may differ: see `gpu-status.md`.

With `--device cpu` the same program runs on a CPU, so that it is known to work: bytes are resident
then, and limits are the system's on the data of a process. Its figures say nothing of a GPU.

python benchmarks/gpu_many_jobs.py [--device cpu] [--repeats N] [--steps N] [--times N]
    [--write NAME]
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

from device_arms import Arm, Job, Run, ratios, run
from environment import describe, interval
from many_jobs import JOBS, MIB, SHARE
from trainee import Trainee

CUDA, CPU = "cuda:0", "cpu"
SERIAL = "serial"
ROOM = 1.1  # of its peak, for a job that is let in with that: an allocator is never full


class DeviceBytes:
    """What is in use on the device beyond what was when this was asked first."""

    def __init__(self) -> None:
        self._base_bytes: int | None = None

    def __call__(self, trainees: Mapping[str, Trainee]) -> dict[str, int]:
        import torch

        free_bytes, whole_bytes = torch.cuda.mem_get_info(CUDA)
        used_bytes = whole_bytes - free_bytes
        if self._base_bytes is None:
            self._base_bytes = used_bytes
        return {"device": max(0, used_bytes - self._base_bytes)}


def arms(peaks_bytes: Mapping[str, int], device_bytes: int) -> list[Arm]:
    """`time sharing` is measured before anything is known of the jobs."""
    threads = max(1, (os.cpu_count() or 1) // len(peaks_bytes))
    whole = dict.fromkeys(peaks_bytes, device_bytes)
    equal = dict.fromkeys(peaks_bytes, device_bytes // len(peaks_bytes))
    maxima = {name: min(int(ROOM * peak), device_bytes) for name, peak in peaks_bytes.items()}
    return [
        Arm(label="time sharing", threads=threads, is_managed=False),
        Arm(label=SERIAL, threads=threads, is_managed=False, one_by_one=True, budgets=whole),
        Arm(label="equal shares", threads=threads, is_managed=False, budgets=equal),
        Arm(
            label="sum of maxima, by admission",
            threads=threads,
            is_managed=False,
            budgets=maxima,
            admits_bytes=device_bytes,
        ),
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--device", choices=(CUDA, CPU), default=CUDA)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--steps", type=int, default=20, help="times the steps of many_jobs.py")
    parser.add_argument("--times", type=int, default=32, help="times its batches")
    parser.add_argument("--write", type=Path, help="NAME.md")
    given = parser.parse_args()
    import torch

    on_cuda = given.device == CUDA
    if on_cuda and not torch.cuda.is_available():
        sys.exit("no CUDA device here; --device cpu tries the program out on a CPU")
    jobs = tuple(Job(model=job.model, steps=given.steps * job.steps) for job in JOBS)

    def measured(arm: Arm) -> Run:
        look = DeviceBytes() if on_cuda else None
        return run(arm, jobs, device=given.device, times=given.times, look=look)

    alone = measured(Arm(label="alone", is_managed=False, one_by_one=True))
    if alone.failed:
        sys.exit(f"{', '.join(alone.failed)}: out of memory alone; lower --times {given.times}")
    peaks_bytes = {name: found["peak_bytes"] for name, found in alone.found.items()}
    largest_bytes = int(ROOM * max(peaks_bytes.values()))
    device_bytes = max(int(SHARE * sum(peaks_bytes.values())), largest_bytes)
    every = arms(peaks_bytes, device_bytes)
    runs: dict[str, list[Run]] = {arm.label: [] for arm in every}
    for _ in range(given.repeats):
        for arm in every:
            runs[arm.label].append(measured(arm))
    lines = [
        "# Three jobs on half the memory of a GPU" if on_cuda else "# A trial on a CPU, of no GPU",
        "",
        f"{torch.cuda.get_device_name(CUDA)}; {describe()}" if on_cuda else describe(),
        "",
        f"The device is capped at {device_bytes / MIB:.0f} MiB; "
        + "; ".join(f"{name}: {size / MIB:.0f} MiB alone" for name, size in peaks_bytes.items()),
        "",
        *table(runs),
        "",
        _same_losses(runs),
        "dovetail, and the sum of maxima of plans: not measured; tensile has no CUDA executor yet",
    ]
    print("\n".join(lines))
    if given.write:
        given.write.with_suffix(".md").write_text("\n".join(lines) + "\n")


def table(runs: Mapping[str, Sequence[Run]]) -> list[str]:
    """A row for each arm. The time of an arm in which a job failed is compared with none."""
    lines = [
        "| arm | makespan s | × serial | speed while all train | peak of the sum, MiB | failed |",
        f"|{'---|' * 6}",
    ]
    serial = runs[SERIAL]
    for label, measured in runs.items():
        failed = sorted({name for one in measured for name in one.failed})
        whole = not failed and not any(one.failed for one in serial)
        pairs = zip(measured, serial, strict=True)
        speeds = [speed for one, other in pairs if (speed := one.speed(other)) is not None]
        columns = (
            label,
            interval([one.makespan_s for one in measured], ".1f"),
            interval(ratios(measured, serial, lambda one: one.makespan_s)) if whole else "-",
            "1" if label == SERIAL else interval(speeds) if speeds else "-",
            f"{max(one.peak_bytes for one in measured) / MIB:.0f}",
            ", ".join(f"{name}: out of memory" for name in failed) or "none",
        )
        lines.append(f"| {' | '.join(columns)} |")
    return lines


def _same_losses(runs: Mapping[str, Sequence[Run]]) -> str:
    found: dict[str, set[tuple[float, ...]]] = {}
    for measured in (one for repeats in runs.values() for one in repeats):
        for name, said in measured.found.items():
            if "failed" not in said:
                found.setdefault(name, set()).add(tuple(said["losses"]))
    other = [name for name, losses in found.items() if len(losses) > 1]
    return f"losses that differ between arms or repeats: {', '.join(other) or 'none'}"


if __name__ == "__main__":
    main()
