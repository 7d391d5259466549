"""A random model under a budget in a process of its own, where nothing else comes and goes:
`python -m` with a folder, the recipe as JSON and a share between its floor and its natural peak.

It prints what became of it as JSON; `refused` is what PyTorch says of such a program.
"""

from __future__ import annotations

import ctypes
import gc
import json
import sys
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch

from helpers.budgeted_process import warm
from helpers.invented_costs import COSTS
from helpers.random_trainings import BATCHES, Recipe
from helpers.small_trainings import Training, contents, differences
from tensile import Session

STEPS = 3


def refusal(training: Training, session: Session | None = None) -> str | None:
    """Trains; the beginning of the error where PyTorch refuses what a random program does."""
    training.start()
    try:
        for number in range(STEPS):
            if session is None:
                training.step(training.batches[number % BATCHES])
                continue
            with session.step():
                training.step(training.batches[number % BATCHES])
    except RuntimeError as error:
        return str(error).split(":")[0]
    return None


def budgeted(folder: Path, recipe: Recipe, share: float) -> dict[str, Any]:
    managed = recipe.made()
    with Session(managed.model, managed.optimizer, folder=folder, smallest_bytes=0) as session:
        session.prepare(managed.step, managed.batches[0], costs=COSTS)
        assert session.forecast is not None
        peak, floor = session.forecast.peak_bytes, session.forecast.floor_bytes
        session.set_budget(floor + int(share * (peak - floor)))
        refused = refusal(managed, session)
        stats = asdict(session.stats())
        found = contents(managed)
    plain = recipe.made()
    assert refusal(plain) == refused
    return {"refused": refused, "differences": differences(found, contents(plain)), "stats": stats}


def main(folder: str, text: str, share: str) -> None:
    torch.set_num_threads(1)
    ctypes.CDLL(None).mallopt(-3, 512 * 1024)  # freed heap is the system's again at once
    warm(folder)
    gc.collect()
    given = json.loads(text)
    given["program"] = [tuple(operation) for operation in given["program"]]
    print(json.dumps(budgeted(Path(folder), Recipe(**given), float(share))))


if __name__ == "__main__":
    main(*sys.argv[1:])
