"""What a traced step will take, and what a budget will cost it, as plain JSON values."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from tensile.actions import Swap
from tensile.budget import Budget, budget_bytes
from tensile.calibration import calibrate
from tensile.coordinator.traced import traced
from tensile.forecasting import forecast
from tensile.lower_tier import TierError
from tensile.picture_files import picture_files
from tensile.planning import Planning
from tensile.sequence import Trace


def preview(
    trace: Trace,
    budget: Budget = None,
    picture: Path | None = None,
    *,
    trial: Callable[[int], dict[str, Any]] | None = None,
    profile: bool = False,
) -> dict[str, Any]:
    """`{"forecast", "operators", "notes"}`; with a budget `"plan"` too, with a picture
    `"pictures"`, the paths that were written, and with a trial `"measured"`, what it says for the
    budget in bytes. The plan is the one that a session under this budget begins with: it leaves
    `"spared_bytes"` free for what the process takes beside its tensors. Where `profile` is asked
    for, `"profile"` is what a device is asked for that is shared, as `Profile.from_json` reads it;
    a lower tier that refuses leaves a note in its stead.

    Raises BudgetError, PlanError for a budget that no session accepts, and PictureError.
    """
    files = picture_files(picture) if picture is not None else ()
    foreseen = forecast(trace)
    answer: dict[str, Any] = {
        "forecast": {
            "peak_bytes": foreseen.peak_bytes,
            "floor_bytes": foreseen.floor_bytes,
            "margin_bytes": foreseen.margin_bytes,
            "by_class": {kind.value: size for kind, size in foreseen.by_class.items() if size},
        },
        "operators": len(trace.operators),
        "notes": list(trace.notes),
    }
    if profile:
        try:
            answer["profile"] = traced(trace, calibrate("cpu")).to_json()
        except TierError as error:
            answer["notes"].append(f"no profile: {error}")
    limit_bytes = budget_bytes(budget, foreseen.peak_bytes)
    if limit_bytes is None:
        return answer
    costs = calibrate("cpu")
    found = Planning(trace, costs).schedule(limit_bytes).plan
    swaps = [action for action in found.actions if isinstance(action, Swap)]
    answer["plan"] = {
        "budget_bytes": limit_bytes,
        "spared_bytes": limit_bytes - found.budget_bytes,
        "peak_bytes": found.peak_bytes,
        "step_s": found.step_s,
        "stall_s": found.stall_s,
        "swaps": len(swaps),
        "recomputations": len(found.actions) - len(swaps),
        "moved_bytes": sum(swap.bytes for swap in swaps),
    }
    if trial is not None:
        answer["measured"] = trial(limit_bytes)
    if files:
        from tensile.picture import draw

        measured_bytes = answer["measured"]["peak_bytes"] if trial is not None else None
        answer["pictures"] = draw(trace, found, costs, foreseen, files, limit_bytes, measured_bytes)
    return answer
