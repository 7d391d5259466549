"""One job of `many_jobs.py`, in the process that trains it; `device_arms.py` starts such processes.

`python benchmarks/lone_training.py TASK`, with a `Task` as JSON. What it says, and when, is in
`trainee.py`.
"""

from __future__ import annotations

import gc
import json
import os
import resource
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import psutil
from frontier_models import MODELS
from memory_forecast import load_libraries, step_of
from throttled_copies import throttle

import tensile
from tensile import resident
from tensile.contents import is_out_of_memory

FEW = 2  # samples of a batch that only loads what the steps will need


@dataclass(frozen=True, slots=True, kw_only=True)
class Task:
    """`steps` of `model`, on batches so many `times` the usual. `is_managed`: in a session, whose
    budget is `budget_bytes`, or its lease where a broker is named by the environment. Without a
    session `budget_bytes` is what the process may take: of the device on CUDA, by its allocator; of
    memory on a CPU, by the system (RLIMIT_DATA).
    `copies_bytes_per_s` is the speed of the channel in `channel`, simulated; None for the disk's.
    """

    model: str
    steps: int
    threads: int
    device: str = "cpu"
    times: int = 1
    is_managed: bool = True
    budget_bytes: int | None = None
    copies_bytes_per_s: float | None = None
    channel: str | None = None


def made(task: Task, batch_size: int) -> tuple[Any, Any, Callable[[Any], float], Any]:
    """Model, optimizer, step and batch; the same in every process."""
    import torch

    torch.manual_seed(0)
    make, _ = MODELS[task.model]
    model, batch = make(batch_size)
    model.to(task.device)
    batch = tuple(part.to(task.device) for part in batch)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4)
    return model, optimizer, step_of(model, optimizer), batch


def costs_of(task: Task) -> tensile.Costs:
    costs = tensile.calibrate("cpu")
    speed = task.copies_bytes_per_s
    if speed is None:
        return costs
    return replace(costs, out_bytes_per_s=speed, in_bytes_per_s=speed)


def profile_here(task: Task) -> dict[str, Any]:
    """What the job asks of a device, on a channel of each speed: that of the task, the disk's."""
    import torch

    from tensile.coordinator.traced import traced

    torch.set_num_threads(task.threads)
    load_libraries()
    model, optimizer, step, batch = made(task, task.times * MODELS[task.model][1])
    trace = tensile.trace(step, model, optimizer, batch)
    return {
        "peak_bytes": tensile.forecast(trace).peak_bytes,
        "disk": traced(trace, costs_of(replace(task, copies_bytes_per_s=None))).to_json(),
        "throttled": traced(trace, costs_of(task)).to_json(),
    }


def train_here(task: Task) -> dict[str, Any]:
    """All steps, once the parent has said so. `begun_s` and `ends_s` are of the monotonic clock,
    which is that of the whole machine.
    """
    import torch

    torch.set_num_threads(task.threads)
    broker = os.environ.pop("TENSILE_BROKER", None)
    _warm_up(task)
    costs = costs_of(task) if task.is_managed else None
    if task.channel is not None and task.copies_bytes_per_s is not None:
        throttle(Path(task.channel), task.copies_bytes_per_s)
    if broker:
        os.environ["TENSILE_BROKER"] = broker
    print("ready", flush=True)
    sys.stdin.readline()
    used_s = time.process_time()
    try:
        found = _train(task, costs)
    except (MemoryError, RuntimeError) as error:
        if task.is_managed or not is_out_of_memory(error):
            raise
        found = {"failed": "out of memory"}
    return found | {"cpu_s": time.process_time() - used_s}


def _train(task: Task, costs: tensile.Costs | None) -> dict[str, Any]:
    import torch

    model, optimizer, step, batch = made(task, task.times * MODELS[task.model][1])
    losses, ends_s = [], []
    resident.reset_peak()
    base = resident.measure()
    with _session(task, costs, model, optimizer, step, batch) as session:
        print("begun", flush=True)
        begun_s = time.monotonic()
        for _ in range(task.steps):
            with nullcontext() if session is None else session.step():
                losses.append(step(batch))
            ends_s.append(time.monotonic())
        found: dict[str, Any] = {"begun_s": begun_s, "ends_s": ends_s, "losses": losses}
        if session is None and task.device != "cpu":
            found["peak_bytes"] = torch.cuda.max_memory_reserved(task.device)
        elif session is None and base is not None:
            found["peak_bytes"] = resident.peak_growth_bytes(base)
        if session is not None:
            stats = session.stats()
            for figure in ("base_bytes", "peak_bytes", "swapped_out_bytes", "swapped_in_bytes"):
                found[figure] = getattr(stats, figure)
            for figure in ("recomputed_bytes", "stall_s", "passive_fetches", "fetches", "replans"):
                found[figure] = getattr(stats, figure)
            found["notes"] = list(stats.notes)
    return found


@contextmanager
def _session(
    task: Task, costs: tensile.Costs | None, model: Any, optimizer: Any, step: Any, batch: Any
) -> Iterator[tensile.Session | None]:
    import torch

    if not task.is_managed:
        if task.device == "cpu" and task.budget_bytes is not None:
            used_bytes = psutil.Process().memory_info().data
            resource.setrlimit(resource.RLIMIT_DATA, (used_bytes + task.budget_bytes,) * 2)
        elif task.budget_bytes is not None:
            whole_bytes = torch.cuda.get_device_properties(task.device).total_memory
            torch.cuda.set_per_process_memory_fraction(task.budget_bytes / whole_bytes)
        yield None
        return
    with tensile.Session(model, optimizer, task.budget_bytes) as session:
        session.prepare(step, batch, costs=costs)
        yield session


def _warm_up(task: Task) -> None:
    """The bare process has its libraries and kernels: their code and scratch are no tensors."""
    import torch

    from tensile import freed_memory

    load_libraries()
    _step_once(task)
    gc.collect()
    freed_memory.give_back()  # what a step left is not the bare process's
    if task.device != "cpu":
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats(task.device)


def _step_once(task: Task) -> None:
    """Of a model and a session that are gone afterwards."""
    model, optimizer, step, batch = made(task, FEW)
    if not task.is_managed:
        step(batch)
        return
    with tensile.Session(model, optimizer, 0.8) as session:
        session.prepare(step, batch)
        with session.step():
            step(batch)


def main() -> None:
    work, given = sys.argv[1:]
    task = Task(**json.loads(given))
    print(json.dumps({"profile": profile_here, "train": train_here}[work](task)), flush=True)


if __name__ == "__main__":
    main()
