"""A process that trains under a budget while its parent watches it: `python -m` with the folder,
the budget in bytes (0 for none), the number of steps and a kind: `branching` is a step that cannot
be traced, `crowded` one that holds ever more beside its tensors. It says `ready` before it has any
model, with its libraries loaded and warm, and waits for a line; then one line for each step.
"""

from __future__ import annotations

import ctypes
import json
import sys
from dataclasses import asdict
from functools import partial

import torch
from torch import nn

from helpers.small_trainings import Training
from tensile import Session

WIDTH, DEPTH, ROWS = 512, 10, 2048


def medium(width: int = WIDTH, depth: int = DEPTH) -> Training:
    """Natural peak about 285 MB: 21 MB of parameters, three times that beside, the rest saved."""
    torch.manual_seed(0)
    layers: list[nn.Module] = []
    for _ in range(depth):
        layers += [nn.LayerNorm(width), nn.Linear(width, width), nn.GELU(), nn.Dropout(0.1)]
        layers += [nn.Linear(width, width), nn.Tanh()]
    model = nn.Sequential(*layers, nn.Linear(width, 8))
    return Training(
        model=model,
        optimizer=torch.optim.AdamW(model.parameters(), lr=1e-3),
        batches=[],
        loss=lambda m, x: m(x).square().mean(),
    )


def warm(folder: str) -> None:
    """Load what the steps load: the same kernels on small tensors, the tracer, the planner."""
    training = medium(width=256, depth=4)
    batch = torch.randn(512, 256)
    session = Session(training.model, training.optimizer, 0.6, folder=folder, smallest_bytes=0)
    with session:
        session.prepare(training.step, batch)
        for _ in range(3):
            with session.step():
                training.step(batch)
        with session.evaluate():
            training.loss(training.model, batch)


def branching(training: Training, batch: torch.Tensor) -> None:
    training.optimizer.zero_grad()
    loss = training.loss(training.model, batch)
    if loss > 0:  # on a tensor's value, which a trace does not have
        loss.backward()
    training.optimizer.step()
    training.losses.append(loss.item())


def crowded(training: Training, batch: torch.Tensor) -> None:
    """In the middle of the forward pass Python holds a little more in each step."""
    layers = list(training.model.children())
    hidden: list[bytes] = []
    hooks = [
        layers[10].register_forward_hook(
            lambda *_: hidden.append(b"x" * ((2 + len(training.losses)) * 2**20))
        ),
        layers[20].register_forward_hook(lambda *_: hidden.clear()),
    ]
    training.step(batch)
    for hook in hooks:
        hook.remove()


KINDS = {"branching": branching, "crowded": crowded}


def main(folder: str, budget: int, steps: int, kind: str = "traced") -> None:
    torch.set_num_threads(1)
    ctypes.CDLL(None).mallopt(-3, 512 * 1024)
    warm(folder)
    print("ready", flush=True)
    sys.stdin.readline()
    training = medium()
    step = partial(KINDS[kind], training) if kind in KINDS else training.step
    print("built", flush=True)
    session = Session(training.model, training.optimizer, budget or None, folder=folder)
    with session:
        # as from a loader: what there is before the session belongs to the bare process
        training.batches = [torch.randn(ROWS, WIDTH) for _ in range(2)]
        said: dict[str, object] = {}
        if budget:
            session.prepare(step, training.batches[0])
            if session.forecast is not None:
                said["forecast"] = session.forecast.peak_bytes
                said["floor"] = session.forecast.floor_bytes
        passive, fetches = [], []
        for number in range(steps):
            with session.step():
                step(training.batches[number % 2])
            print("step", flush=True)
            passive.append(session.stats().passive_fetches)
            fetches.append(session.stats().fetches)
        said |= {"passive": passive, "fetches": fetches}
        with session.evaluate():
            training.loss(training.model, training.batches[0])
        said["stats"] = asdict(session.stats())
        said["losses"] = training.losses
        said["digest"] = [float(p.detach().double().sum()) for p in training.model.parameters()]
        print(json.dumps(said), flush=True)
        sys.stdin.readline()


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]), int(sys.argv[3]), *sys.argv[4:])
