"""The memory manager: which tensors of a training step are on the device, and which wait below it.

Importing this package is cheap: each public name loads its file, and torch, when it is first used.
No file may bear the name of a public function, since importing it would hide the function.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from tensile.actions import Plan as Plan
    from tensile.actions import PlanError as PlanError
    from tensile.actions import Recompute as Recompute
    from tensile.actions import Swap as Swap
    from tensile.actions import Timeline as Timeline
    from tensile.budget import BudgetError as BudgetError
    from tensile.budget import budget_bytes as budget_bytes
    from tensile.calibration import calibrate as calibrate
    from tensile.coordinator.lease import LeaseRefused as LeaseRefused
    from tensile.costs import Costs as Costs
    from tensile.floor import floor_bytes as floor_bytes
    from tensile.forecasting import Forecast as Forecast
    from tensile.forecasting import forecast as forecast
    from tensile.lower_tier import TierError as TierError
    from tensile.manageable import SessionError as SessionError
    from tensile.membership import Membership as Membership
    from tensile.planner import plan as plan
    from tensile.recorder import TraceError as TraceError
    from tensile.repetition import StepOutOfMemory as StepOutOfMemory
    from tensile.rungs import ladder as ladder
    from tensile.search import improve as improve
    from tensile.sequence import Trace as Trace
    from tensile.session import Session as Session
    from tensile.simulator import simulate as simulate
    from tensile.stats import Stats as Stats
    from tensile.tracing import trace as trace

_HOMES = {
    "calibrate": "tensile.calibration",
    "Costs": "tensile.costs",
    "Plan": "tensile.actions",
    "Recompute": "tensile.actions",
    "Swap": "tensile.actions",
    "PlanError": "tensile.actions",
    "Timeline": "tensile.actions",
    "Trace": "tensile.sequence",
    "improve": "tensile.search",
    "ladder": "tensile.rungs",
    "plan": "tensile.planner",
    "simulate": "tensile.simulator",
    "BudgetError": "tensile.budget",
    "budget_bytes": "tensile.budget",
    "Forecast": "tensile.forecasting",
    "LeaseRefused": "tensile.coordinator.lease",
    "Membership": "tensile.membership",
    "Session": "tensile.session",
    "SessionError": "tensile.manageable",
    "Stats": "tensile.stats",
    "StepOutOfMemory": "tensile.repetition",
    "TierError": "tensile.lower_tier",
    "TraceError": "tensile.recorder",
    "floor_bytes": "tensile.floor",
    "forecast": "tensile.forecasting",
    "trace": "tensile.tracing",
}


def __getattr__(name: str) -> object:
    home = _HOMES.get(name)
    if home is None:
        raise AttributeError(f"module 'tensile' has no attribute {name!r}")
    value: object = getattr(import_module(home), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *_HOMES})
