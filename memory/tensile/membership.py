"""Where a job shares its device with others, and as whom: what whoever starts it puts into its
environment.
"""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from tensile.coordinator.apportion import Member, is_weight
from tensile.coordinator.profile import declared
from tensile.manageable import SessionError

_BROKER, _JOB = "TENSILE_BROKER", "TENSILE_JOB"
_WEIGHT, _PRIORITY, _OVERRUN = "TENSILE_WEIGHT", "TENSILE_PRIORITY", "TENSILE_OVERRUN"


@dataclass(frozen=True, slots=True, kw_only=True)
class Membership:
    """`path` is the socket of the device's broker, `job` a name that is there once. Jobs of a
    higher `priority` are served first; `weight` counts among equals. Jobs like it were measured to
    hold `overrun` times what is foreseen of them. `say` hears, in a sentence, that the job waits,
    and that it waits no more. Raises SessionError for what is no membership.
    """

    path: Path
    job: str
    weight: float = 1.0
    priority: int = 0
    overrun: float = 1.0
    say: Callable[[str], None] | None = field(default=None, compare=False)

    def __post_init__(self) -> None:
        """What the broker would cut it off for is said here, where it can be corrected."""
        try:
            Member(job=self.job, profile=declared(1), weight=self.weight, priority=self.priority)
        except ValueError as error:
            raise SessionError(f"Membership: {error}") from None


def from_environment(
    say: Callable[[str], None] | None = None, environment: Mapping[str, str] = os.environ
) -> Membership | None:
    """None where the device is not shared. Raises SessionError for what is no membership."""
    path = environment.get(_BROKER)
    if not path:
        return None
    job = environment.get(_JOB, "")
    if not job:
        raise SessionError(
            f"{_BROKER} is set and {_JOB} is not; set it to a name that no other job there has"
        )
    return Membership(
        path=Path(path),
        job=job,
        weight=_weight(environment.get(_WEIGHT, "1")),
        priority=_priority(environment.get(_PRIORITY, "0")),
        overrun=_overrun(environment.get(_OVERRUN, "1")),
        say=say,
    )


def _weight(text: str) -> float:
    try:
        weight = float(text)
    except ValueError:
        weight = math.nan
    if not is_weight(weight):
        raise SessionError(f"{_WEIGHT}: {text!r} is no number above 0; write 1 for an equal share")
    return weight


def _priority(text: str) -> int:
    try:
        return int(text)
    except ValueError:
        raise SessionError(f"{_PRIORITY}: {text!r} is no whole number; 0 is the usual") from None


def _overrun(text: str) -> float:
    try:
        overrun = float(text)
    except ValueError:
        overrun = math.nan
    if not 1 <= overrun < math.inf:
        raise SessionError(
            f"{_OVERRUN}: {text!r} is no number from 1 on; write 1 for what is foreseen"
        )
    return overrun
