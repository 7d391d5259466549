"""A process that trains on a device that it shares: `python -m` with a folder, the broker's socket,
a name, the number of steps, and with how many rows its step is foreseen.

It says `ready` before it has any model, with its libraries loaded and warm, and waits for a line;
then, in JSON, when each step was over and under which limit, and at last what it found.
"""

from __future__ import annotations

import ctypes
import json
import os
import sys
import time
from dataclasses import asdict

import torch

from helpers.budgeted_process import WIDTH, medium, warm
from tensile import Session

ROWS = 1152  # twice the peak of a step of few rows, which is the optimizer's


def main(folder: str, socket: str, job: str, steps: int, foreseen_rows: int) -> None:
    torch.set_num_threads(1)
    ctypes.CDLL(None).mallopt(-3, 512 * 1024)
    warm(folder)
    print("ready", flush=True)
    sys.stdin.readline()
    training = medium()
    os.environ |= {"TENSILE_BROKER": socket, "TENSILE_JOB": job} if socket else {}
    with Session(training.model, training.optimizer, folder=folder) as session:
        training.batches = [torch.randn(ROWS, WIDTH) for _ in range(2)]
        session.prepare(training.step, training.batches[0][:foreseen_rows])
        for number in range(steps):
            with session.step():
                training.step(training.batches[number % 2])
            limit_bytes = session.stats().budget_bytes
            print(json.dumps({"at_s": time.monotonic(), "limit": limit_bytes}), flush=True)
        said = {
            "stats": asdict(session.stats()),
            "losses": training.losses,
            "digest": [float(p.detach().double().sum()) for p in training.model.parameters()],
        }
    print(json.dumps(said), flush=True)


if __name__ == "__main__":
    main(*sys.argv[1:4], *map(int, sys.argv[4:]))
