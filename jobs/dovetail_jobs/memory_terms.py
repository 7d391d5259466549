"""What a job asks of memory in two places, and which of them counts."""

from __future__ import annotations

from dovetail_jobs.units import format_bytes


def above_reserved(
    budget: int | str, reserved: int | str, peak_bytes: int | None = None
) -> str | None:
    """The sentence for a `memory.budget` above `resources.memory`, under which the job plans then;
    None where it is not above. A percentage is of the forecast peak, and unknown without one.
    """
    if not isinstance(reserved, int):
        return None
    if isinstance(budget, int):
        asked_bytes, asked = budget, format_bytes(budget)
    elif budget.endswith("%") and peak_bytes is not None:
        asked_bytes = int(float(budget[:-1]) / 100 * peak_bytes)
        asked = f"{budget} of the forecast peak, {format_bytes(asked_bytes)},"
    else:
        return None
    if asked_bytes <= reserved:
        return None
    return (
        f"memory.budget: {asked} is above resources.memory of {format_bytes(reserved)}, which a "
        "job never exceeds, so that is its budget; reserve more, or ask for less"
    )
