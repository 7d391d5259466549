"""Submit to first training step, against starting the same worker by hand with plain Ray on the
same cluster, in turn.

Both sides are whole processes, from their start to the end of the first optimizer step.

    python benchmarks/start_latency.py [pairs]
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from pathlib import Path

from environment import describe, spread
from running_platform import EXAMPLE, journal, platform, submit_and_wait

from dovetail.cluster import ray_head
from dovetail_jobs.load import load_file
from dovetail_workers.launch import Launch
from dovetail_workers.reports import Metrics


def through_platform_s(home: Path) -> float:
    begin_s = time.time()
    job = submit_and_wait("train.steps=1")
    first = next(e for e in journal(home, job["id"]) if isinstance(e.report, Metrics))
    return first.at.timestamp() - begin_s


def by_hand_s(home: Path, turn: int) -> float:
    head = ray_head.read(home / "ray.json")
    assert head is not None
    launch = Launch(
        job_id=f"hand{turn}",
        job_name="by-hand",
        attempt=1,
        spec=load_file(EXAMPLE, ["train.steps=1"]).to_json(),
        node="n1",
        device="cpu:0",
        device_bytes=2**30,
        storage_uri=str(home / "by-hand"),
    )
    path = home / f"launch-{turn}.json"
    path.write_text(json.dumps(launch.to_json()))
    script = Path(__file__).with_name("by_hand.py")
    begin_s = time.time()
    done = subprocess.run(
        [sys.executable, str(script), str(path), head.address],
        check=True,
        capture_output=True,
        text=True,
        env={**os.environ, **ray_head.environment(home / "ray.token")},
    )
    return float(done.stdout) - begin_s


def main() -> None:
    pairs = int(sys.argv[1]) if len(sys.argv) > 1 else 7
    times = []
    with platform() as home:
        through_platform_s(home)  # the first job of a cluster also pays for Ray's first worker
        for turn in range(pairs):
            if turn % 2:
                hand, through = by_hand_s(home, turn), through_platform_s(home)
            else:
                through, hand = through_platform_s(home), by_hand_s(home, turn)
            times.append((through, hand))
    print(describe())
    print(f"dovetail submit to first step   {spread([pair[0] for pair in times], 's')}")
    print(f"by hand with plain Ray          {spread([pair[1] for pair in times], 's')}")
    print(f"ratio, pair by pair             {spread([a / b for a, b in times], 'x')}")


if __name__ == "__main__":
    main()
