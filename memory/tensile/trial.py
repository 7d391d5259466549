"""A few real steps under a budget, to hold against what was foreseen."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

from tensile.names import Models, Optimizers
from tensile.session import Session

_WARM = 1  # steps before the clock starts


def trial(
    train_step: Callable[[Any], object],
    model: Models,
    optimizer: Optimizers,
    batch: object,
    *,
    budget_bytes: int,
    steps: int,
    beside_bytes: int = 0,
) -> dict[str, Any]:
    """Train `steps` steps on `batch` in a loop that holds `beside_bytes` more, all but the first of
    them timed: `{"steps", "peak_bytes", "step_s", "moved_bytes", "notes"}`, with the bytes that
    left the device in each step.

    The parameters are trained. Raises PlanError below the floor and TierError without a disk.
    """
    with Session(model, optimizer, budget_bytes) as session:
        session.prepare(train_step, batch, beside_bytes=beside_bytes)
        begin_s = time.perf_counter()
        for number in range(steps):
            if number == min(_WARM, steps - 1):
                begin_s = time.perf_counter()
            with session.step():
                train_step(batch)
        step_s = (time.perf_counter() - begin_s) / max(steps - _WARM, 1)
        stats = session.stats()
    return {
        "steps": steps,
        "peak_bytes": stats.peak_bytes,
        "step_s": step_s,
        "moved_bytes": stats.swapped_out_bytes // steps,
        "notes": list(stats.notes),
    }
