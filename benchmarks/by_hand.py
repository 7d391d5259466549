"""The same worker started by hand: a Ray driver, an actor, and our training loop in it. Prints when
its first step was done (Unix time).

python benchmarks/by_hand.py LAUNCH.json RAY_ADDRESS        (environment: Ray's token)
"""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path
from typing import Any

import ray


@ray.remote(num_cpus=1)
class Worker:
    def train(self, launch: dict[str, Any]) -> float:
        from dovetail_workers.launch import Launch
        from dovetail_workers.reports import Metrics, Report
        from dovetail_workers.storage.open import open_storage
        from dovetail_workers.train import train

        first: list[float] = []

        def report(item: Report) -> None:
            if isinstance(item, Metrics):
                first.append(time.time())

        train(
            Launch.from_json(launch),
            open_storage(launch["storage_uri"]),
            report,
            lambda: bool(first),
        )
        return first[0]


def main() -> None:
    launch = json.loads(Path(sys.argv[1]).read_text())
    ray.init(address=sys.argv[2], log_to_driver=False, logging_level="ERROR")
    print(ray.get(Worker.remote().train.remote(launch)))


if __name__ == "__main__":
    main()
