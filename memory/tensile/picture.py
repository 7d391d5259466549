"""The timeline of one step as a picture: what lives over its operators, with a plan and without."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

import numpy as np
import numpy.typing as npt

from tensile.actions import Plan, Swap
from tensile.costs import Costs
from tensile.forecasting import Forecast
from tensile.picture_files import PictureError
from tensile.sequence import Kind, Trace
from tensile.simulator import simulate

_MIB = 2**20
_COLOURS = {
    Kind.PARAMETER: "#4c72b0",
    Kind.BUFFER: "#8da0cb",
    Kind.GRADIENT: "#dd8452",
    Kind.STATE: "#937860",
    Kind.ACTIVATION: "#55a868",
    Kind.TEMPORARY: "#c7c7c7",
    Kind.INPUT: "#da8bc3",
    Kind.LOADER: "#ccb974",
}


def draw(
    trace: Trace,
    plan: Plan,
    costs: Costs,
    forecast: Forecast,
    files: Iterable[Path],
    budget_bytes: int,
    measured_bytes: int | None = None,
) -> list[str]:
    """Write `files`, each as its suffix says; their paths. Raises PictureError.

    Coloured: what lives without a plan, by class. The line: what lives under the plan. Below: the
    bytes that leave, come back and are computed again, where that happens. Axes: operators, MiB.
    """
    import matplotlib
    from matplotlib.figure import Figure

    matplotlib.rcParams["svg.hashsalt"] = "tensile"  # equal pictures are equal files
    figure = Figure(figsize=(11, 6), layout="constrained")
    above, below = figure.subplots(2, 1, sharex=True, height_ratios=(3, 1))
    curves = live_by_kind(trace)
    kinds = [kind for kind in Kind if curves[kind].any()]
    above.stackplot(
        range(len(trace.operators)),
        [curves[kind] / _MIB for kind in kinds],
        labels=[kind.value.replace("_", " ") for kind in kinds],
        colors=[_COLOURS[kind] for kind in kinds],
        step="post",
        alpha=0.75,
    )
    timeline = simulate(trace, plan, costs)
    under = np.asarray(timeline.live_bytes) / _MIB
    above.step(range(len(under)), under, "k", where="post", lw=1.4, label="under the plan")
    above.axhline(budget_bytes / _MIB, color="crimson", ls="--", label="budget")
    above.axhline(forecast.peak_bytes / _MIB, color="grey", ls=":", label="forecast peak")
    if measured_bytes is not None:
        above.axhline(measured_bytes / _MIB, color="k", ls=":", label="measured peak")
    above.set_ylabel("live MiB")
    above.legend(loc="upper left", bbox_to_anchor=(1.0, 1.0), fontsize=8)
    above.set_title(
        f"peak {forecast.peak_bytes / _MIB:.0f} MiB, planned {timeline.peak_bytes / _MIB:.0f} MiB, "
        f"stall {timeline.stall_s:.2f} s of a step of {timeline.step_s:.2f} s"
    )
    for label, moves, colour in _moves(trace, plan):
        if moves:
            where, size = zip(*moves, strict=True)
            below.vlines(where, 0, np.asarray(size) / _MIB, color=colour, lw=1.5, label=label)
    below.axhline(0, color="k", lw=0.6)
    below.set_ylabel("moved MiB")
    below.set_xlabel("operators of one step: forward, backward, update")
    if plan.actions:
        below.legend(loc="upper left", bbox_to_anchor=(1.0, 1.0), fontsize=8)
    written = []
    for file in files:
        metadata = {"Date": None} if file.suffix == ".svg" else None
        try:
            figure.savefig(file, dpi=110, metadata=metadata)
        except OSError as error:
            raise PictureError(f"{file}  {error.strerror or error}") from None
        written.append(str(file))
    return written


def live_by_kind(trace: Trace) -> dict[Kind, npt.NDArray[np.int64]]:
    """Bytes that live while each operator runs, without a plan; shape (operators,) each."""
    steps = {kind: np.zeros(len(trace.operators) + 2, dtype=np.int64) for kind in Kind}
    for storage in trace.storages:
        steps[storage.kind][storage.birth] += storage.bytes
        steps[storage.kind][storage.death] -= storage.bytes
    curves = {kind: np.cumsum(step)[: len(trace.operators)] for kind, step in steps.items()}
    workspace = np.asarray([operator.workspace_bytes for operator in trace.operators])
    curves[Kind.TEMPORARY] = curves[Kind.TEMPORARY] + workspace
    return curves


def _moves(trace: Trace, plan: Plan) -> list[tuple[str, list[tuple[int, int]], str]]:
    """Label, (position, signed bytes) of each move, and colour."""

    def place(event: int) -> int:
        return trace.events[event % len(trace.events)].position

    swaps = [action for action in plan.actions if isinstance(action, Swap)]
    again = [action for action in plan.actions if not isinstance(action, Swap)]
    return [
        ("swapped out", [(place(action.out_event), -action.bytes) for action in swaps], "#b2182b"),
        ("swapped in", [(place(action.in_event), action.bytes) for action in swaps], "#2166ac"),
        (
            "computed again",
            [(action.needed_position, action.bytes) for action in again],
            "#55a868",
        ),
    ]
