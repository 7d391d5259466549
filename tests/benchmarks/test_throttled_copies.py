"""A channel of a known speed, shared by processes."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from throttled_copies import SharedChannel

FOLDER = Path(__file__).parents[2] / "benchmarks"
SLOW_BYTES_PER_S = 50e6

TRAINING = """
import json, sys, time
from dataclasses import replace
from pathlib import Path
import torch
from torch import nn
from throttled_copies import throttle
import tensile

folder, speed = sys.argv[1], float(sys.argv[2])
torch.set_num_threads(1)
if speed:
    throttle(Path(folder), speed)

def trained(budget):
    torch.manual_seed(0)
    layers = [layer for _ in range(20) for layer in (nn.Linear(256, 256), nn.Tanh())]
    model = nn.Sequential(*layers)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
    batch = torch.randn(1024, 256)
    def step(batch):
        optimizer.zero_grad()
        loss = model(batch).square().mean()
        loss.backward()
        optimizer.step()
        return loss.item()
    with tensile.Session(model, optimizer, budget, folder=folder) as session:
        costs = tensile.calibrate("cpu", folder)
        costs = replace(costs, out_bytes_per_s=speed or 1e9, in_bytes_per_s=speed or 1e9)
        session.prepare(step, batch, costs=costs)
        begin_s = time.monotonic()
        losses = []
        for _ in range(3):
            with session.step():
                losses.append(step(batch))
        return losses, session.stats().swapped_in_bytes, time.monotonic() - begin_s

losses, moved_bytes, seconds = trained(0.5)
print(json.dumps({"losses": losses, "moved_bytes": moved_bytes, "seconds": seconds}))
"""


class Clock:
    def __init__(self) -> None:
        self.now_s = 100.0

    def __call__(self) -> float:
        return self.now_s


def test_copies_of_two_processes_follow_each_other(tmp_path):
    clock = Clock()
    one, other = (SharedChannel(tmp_path / "in", 1000.0, clock) for _ in range(2))
    assert one.reserve(500) == 100.5
    assert other.reserve(1000) == 101.5
    assert one.reserve(500) == 102.0


def test_a_channel_that_was_idle_begins_at_once(tmp_path):
    clock = Clock()
    channel = SharedChannel(tmp_path / "in", 1000.0, clock)
    channel.reserve(500)
    clock.now_s = 200.0
    assert channel.reserve(1000) == 201.0


def test_directions_do_not_wait_for_each_other(tmp_path):
    clock = Clock()
    out, back = (SharedChannel(tmp_path / name, 1000.0, clock) for name in ("out", "in"))
    assert out.reserve(1000) == back.reserve(1000) == 101.0


@pytest.mark.long
def test_a_throttled_session_copies_no_faster_and_finds_the_same(tmp_path):
    def trained(speed: float) -> dict:
        done = subprocess.run(
            [sys.executable, "-c", TRAINING, str(tmp_path), str(speed)],
            check=True,
            capture_output=True,
            text=True,
            env={**os.environ, "PYTHONPATH": f"{FOLDER}:{os.environ.get('PYTHONPATH', '')}"},
        )
        return json.loads(done.stdout)

    free, slow = trained(0.0), trained(SLOW_BYTES_PER_S)
    assert slow["moved_bytes"] > 0
    assert slow["seconds"] >= 0.9 * slow["moved_bytes"] / SLOW_BYTES_PER_S
    assert slow["losses"] == free["losses"]
