"""What a plan says: which storages leave, when, and how they come back. Values, without torch.

Triggers are indices into `Trace.events`, never times: an executor counts the moments it sees.
"""

from __future__ import annotations

from dataclasses import dataclass


class PlanError(ValueError):
    """No plan keeps this budget; the message says the floor and what would lower it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Swap:
    """`storage` (by name) leaves after event `out_event` and is asked back at event `in_event`.

    For an activation `in_event` comes later in the step. For what lives across steps it may also be
    an earlier one, then of the next step. `needed_position` is its next access, where an executor
    waits for it; `dirty` says that it must be written to the lower tier, `bytes` how much moves.
    """

    storage: str
    bytes: int
    out_event: int
    in_event: int
    needed_position: int
    dirty: bool = True


@dataclass(frozen=True, slots=True, kw_only=True)
class Recompute:
    """Slot `slot` is dropped at event `out_event`, and computed again from slot `source` at the
    unpack that needs it (`Recipe`).
    """

    storage: str
    bytes: int
    slot: int
    source: int
    module: str
    call: int
    out_event: int
    needed_position: int


Action = Swap | Recompute


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """Predictions of `simulate` for this very plan: peak over the step, stall over the step without
    a plan, and the step's time. `budget_bytes` is what was asked, `share` its part of the natural
    peak.
    """

    signature: str
    budget_bytes: int
    share: float
    peak_bytes: int
    stall_s: float
    step_s: float
    actions: tuple[Action, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Timeline:
    """`live_bytes[p]` is the most that lives while operator `p` runs; it starts at `start_s[p]`.
    `copied_bytes` move in a step, out and in; `copy_s` of it the busier channel works.
    """

    peak_bytes: int
    stall_s: float
    step_s: float
    copied_bytes: int
    copy_s: float
    live_bytes: tuple[int, ...]
    start_s: tuple[float, ...]
