"""`python -m tensile forecast|plan FILE.py`: what a training step takes of a device, and what a
budget costs it, without training (but for `--steps`).

The file has a function `build()` that returns `(train_step, model, optimizer, batch)`, as
`tensile.trace` takes them.
"""

from __future__ import annotations

import argparse
import json
import runpy
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import tensile
from tensile.budget import at_least
from tensile.picture_files import PictureError, picture_files
from tensile.preview import preview
from tensile.trial import trial

_MIB = 2**20


def main(arguments: list[str] | None = None) -> int:
    given = _parser().parse_args(arguments)
    try:
        if given.picture is not None:
            picture_files(given.picture)  # before the work
        parts = _built(given.file)
        trace = tensile.trace(*parts)
        answer = preview(trace, given.budget, given.picture, trial=_trial(parts, given.steps))
    except (
        _Unusable,
        tensile.TraceError,
        tensile.PlanError,
        tensile.BudgetError,
        tensile.TierError,
    ) as error:
        print(f"error: {given.file}: {error}", file=sys.stderr)
        return 2
    except PictureError as error:
        print(f"error: --picture {error}", file=sys.stderr)
        return 2
    if given.json:
        print(json.dumps(answer, indent=2))
    else:
        print("\n".join(f"{name:<12} {text}" for name, text in _facts(answer)))
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m tensile", description=__doc__)
    commands = parser.add_subparsers(required=True, metavar="forecast|plan")
    forecast = commands.add_parser("forecast", help="the peak of a step, and the least it could be")
    plan = commands.add_parser("plan", help="a plan for a budget, and what it costs")
    for command in (forecast, plan):
        command.add_argument("file", type=Path, metavar="FILE.py")
        command.add_argument("--json", action="store_true", help="print JSON")
    plan.add_argument("--budget", required=True, help="1GiB, 800MB, bytes, or 60%% of the peak")
    plan.add_argument("--picture", type=Path, help="draw the timeline, as .png and .svg")
    plan.add_argument("--steps", type=int, default=0, help="train so many, and measure the peak")
    forecast.set_defaults(budget=None, picture=None, steps=0)
    return parser


class _Unusable(Exception):
    """The file is not one that can be previewed; the message says what is missing."""


def _built(file: Path) -> tuple[Any, Any, Any, Any]:
    if not file.is_file():
        raise _Unusable("no such file")
    sys.path.insert(0, str(file.resolve().parent))
    try:
        build = runpy.run_path(str(file)).get("build")
        parts = build() if callable(build) else None
    except Exception as error:  # the user's own code may raise anything
        raise _Unusable(f"failed: {type(error).__name__}: {error}") from error
    if parts is None:
        raise _Unusable("has no function build() -> (train_step, model, optimizer, batch)")
    if not isinstance(parts, tuple) or len(parts) != 4:
        raise _Unusable("build() must return (train_step, model, optimizer, batch)")
    return parts


def _trial(parts: tuple[Any, Any, Any, Any], steps: int) -> Callable[[int], dict[str, Any]] | None:
    return None if steps < 1 else lambda limit: trial(*parts, budget_bytes=limit, steps=steps)


def _facts(answer: dict[str, Any]) -> list[tuple[str, str]]:
    forecast = answer["forecast"]
    facts = [
        ("forecast", f"peak {_mib(forecast['peak_bytes'])} ± {_mib(forecast['margin_bytes'])}"),
        *(
            (kind.replace("_", " "), _mib(size))
            for kind, size in sorted(forecast["by_class"].items(), key=lambda item: -item[1])
        ),
        ("floor", f"{at_least(forecast['floor_bytes'])} is the least budget"),
    ]
    if plan := answer.get("plan"):
        facts += [
            ("budget", _mib(plan["budget_bytes"])),
            ("planned", f"peak {_mib(plan['peak_bytes'])}, {_mib(plan['spared_bytes'])} left free"),
            ("swaps", f"{plan['swaps']}, {_mib(plan['moved_bytes'])} each way"),
            ("recomputed", str(plan["recomputations"])),
            ("step", f"{plan['step_s']:.3f} s by estimate, {plan['stall_s']:.3f} s of it waiting"),
        ]
    if measured := answer.get("measured"):
        moved = f"{_mib(measured['moved_bytes'])} out in each step"
        facts += [
            ("measured", f"peak {_mib(measured['peak_bytes'])}, {moved}"),
            ("", f"{measured['step_s']:.3f} s for a step"),
        ]
    facts += [("picture", path) for path in answer.get("pictures", ())]
    return facts + [("note", note) for note in answer["notes"]]


def _mib(size_bytes: int) -> str:
    return f"{size_bytes / _MIB:.1f} MiB"


if __name__ == "__main__":
    sys.exit(main())
