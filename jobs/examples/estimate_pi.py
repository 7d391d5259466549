"""Estimates pi by throwing darts at a square: a job of plain Python that reports and resumes.

It runs by hand too (`python estimate_pi.py`); Dovetail only adds the environment variables.
"""

import argparse
import json
import os
import random
from pathlib import Path

DARTS_PER_STEP = 50_000


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--steps", type=int, default=40)
    parser.add_argument("--checkpoint-every", type=int, default=10)
    options = parser.parse_args()

    step, hits = newest_checkpoint()
    while step < options.steps:
        step += 1
        darts = random.Random(
            step
        )  # one stream per step: a resumed run continues as if never stopped
        hits += sum(darts.random() ** 2 + darts.random() ** 2 < 1 for _ in range(DARTS_PER_STEP))
        estimate = 4 * hits / (step * DARTS_PER_STEP)
        report({"step": step, "steps": options.steps, "metrics": {"pi": estimate}})
        if step % options.checkpoint_every == 0 or step == options.steps:
            print(f"step {step}: pi is about {estimate:.6f}", flush=True)
            save_checkpoint(step, hits)


def report(line: dict[str, object]) -> None:
    """Append one JSON line to `$DOVETAIL_REPORTS`, in one write; without Dovetail, nothing."""
    if "DOVETAIL_REPORTS" in os.environ:
        with open(os.environ["DOVETAIL_REPORTS"], "ab", buffering=0) as reports:
            reports.write(json.dumps(line).encode() + b"\n")


def newest_checkpoint() -> tuple[int, int]:
    """The step and the hits so far, from the folder `$DOVETAIL_RESUME` if there is one."""
    folder = os.environ.get("DOVETAIL_RESUME")
    if not folder:
        return 0, 0
    state = json.loads((Path(folder) / "state.json").read_text())
    return state["step"], state["hits"]


def save_checkpoint(step: int, hits: int) -> None:
    """Write a folder under `$DOVETAIL_CHECKPOINTS`, then say so: Dovetail stores it."""
    if "DOVETAIL_CHECKPOINTS" in os.environ:
        folder = Path(os.environ["DOVETAIL_CHECKPOINTS"]) / f"step-{step:06d}"
        folder.mkdir(parents=True)
        (folder / "state.json").write_text(json.dumps({"step": step, "hits": hits}))
        report({"step": step, "checkpoint": str(folder)})


if __name__ == "__main__":
    main()
