"""A transformer of a natural peak of about 3 GB, trained in a process that its parent watches.

`python -m helpers.real_process FOLDER BUDGET STEPS`: a folder for checkpoints and the lower tier, a
budget in bytes (0 for no session). It says `ready` with its libraries loaded and warm and before it
has any model, waits for a line, and then names each phase as that begins; at last what it found.
"""

from __future__ import annotations

import json
import os
import sys
from contextlib import AbstractContextManager, nullcontext
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dovetail_jobs.workload import Member
from dovetail_workers import checkpoint
from dovetail_workers.precision import Precision
from dovetail_workers.random_state import seed_everything
from dovetail_workers.storage.local import LocalStorage
from dovetail_workers.training_state import TrainingState
from helpers.budgeted_process import warm
from helpers.small_trainings import Attention, Training
from tensile import Session

WORDS, CLASSES, WIDTH, HEADS, DEPTH = 60_000, 1_000, 256, 8, 15
SEQUENCES, LENGTH = 32, 256


class Transformer(nn.Module):
    """Tokens (sequences, length) → logits (sequences, length, classes)."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(WORDS, WIDTH)
        self.blocks = nn.Sequential(*(Attention(WIDTH, HEADS) for _ in range(DEPTH)))
        self.head = nn.Linear(WIDTH, CLASSES)

    def forward(self, tokens: Tensor) -> Tensor:
        logits: Tensor = self.head(self.blocks(self.embedding(tokens)))
        return logits


def transformer() -> Training:
    torch.manual_seed(0)
    model = Transformer()
    return Training(
        model=model,
        optimizer=torch.optim.AdamW(model.parameters(), lr=1e-3),
        batches=[torch.randint(WORDS, (SEQUENCES, LENGTH)) for _ in range(2)],
        loss=lambda m, x: F.cross_entropy(m(x).flatten(0, 1), x.flatten() % CLASSES),
    )


def main(folder: Path, budget: int, steps: int) -> None:
    os.environ["TENSILE_FOLDER"] = str(folder)
    torch.set_num_threads(1)
    warm(str(folder))
    seed_everything(0)
    say("ready")
    sys.stdin.readline()
    training = transformer()
    session = Session(training.model, training.optimizer, budget) if budget else None
    said: dict[str, Any] = {}
    if session is not None:
        say("prepare")
        session.prepare(training.step, training.batches[0])
        assert session.forecast is not None
        said["forecast_bytes"] = session.forecast.peak_bytes
    for number in range(steps):
        say(f"step {number + 1}")
        with nullcontext() if session is None else session.step():
            training.step(training.batches[number % 2])
    say("validation")
    with torch.no_grad() if session is None else session.evaluate():
        said["validation"] = training.loss(training.model, training.batches[0]).item()
    state = TrainingState(
        models={"model": Member(module=training.model)},
        optimizers={"model": training.optimizer},
        streams={},
        precision=Precision("fp32", torch.device("cpu")),
    )
    storage = LocalStorage(folder / "storage")
    say("checkpoint")
    with staging(session) as make_room, state.staged(make_room) as parts:
        saved = checkpoint.save(storage, f"{steps:010}-1/", steps, "train", parts)
    said["sha256"] = {name: part.sha256 for name, part in saved.manifest.parts.items()}
    said["checkpoint_bytes"] = saved.bytes
    say("resume")
    with staging(session) as make_room:
        state.load(partial(checkpoint.fetch, storage, saved), make_room)
    say("step after")
    with nullcontext() if session is None else session.step():
        training.step(training.batches[0])
    said["losses"] = training.losses
    said["stats"] = None if session is None else asdict(session.stats())
    say(json.dumps(said))
    sys.stdin.readline()


def staging(session: Session | None) -> AbstractContextManager[Any]:
    return nullcontext(lambda _: None) if session is None else session.staging()


def say(line: str) -> None:
    print(line, flush=True)


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3]))
