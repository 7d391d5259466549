"""The words a worker speaks upward. Frozen values; one JSON object per line in the reports pipe and
in the journal.

The training process writes them to `$DOVETAIL_REPORTS`; the supervisor beside it numbers them and
puts them into the journal in storage. `Ended` is the
supervisor's own, and so is `Started` for a script.
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, fields
from typing import Any, ClassVar, Literal

Outcome = Literal["succeeded", "failed", "stopped", "lost"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Started:
    """The training process runs. `resumed_from_step` is None for a run from the beginning."""

    type: ClassVar[str] = "started"
    pid: int
    node: str
    device: str
    resumed_from_step: int | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Progress:
    """Where the run is. `steps` is the total of this phase, None when the program does not
    know it.
    """

    type: ClassVar[str] = "progress"
    step: int
    steps: int | None = None
    phase: str = "train"
    steps_per_s: float | None = None
    samples_per_s: float | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Metrics:
    """What the workload's loss and metric functions returned at this step: deterministic values
    only.
    """

    type: ClassVar[str] = "metrics"
    step: int
    values: dict[str, float]
    phase: str = "train"


@dataclass(frozen=True, slots=True, kw_only=True)
class CheckpointSaved:
    """A whole checkpoint lies under storage prefix `key`; its manifest is written."""

    type: ClassVar[str] = "checkpoint"
    step: int
    key: str
    uri: str
    bytes: int
    phase: str = "train"


@dataclass(frozen=True, slots=True, kw_only=True)
class CheckpointRemoved:
    """Retention removed the checkpoint under `key`."""

    type: ClassVar[str] = "checkpoint_removed"
    key: str


@dataclass(frozen=True, slots=True, kw_only=True)
class CheckpointFolder:
    """A script wrote a checkpoint into the local folder `path`; the supervisor stores it and says
    CheckpointSaved.
    """

    type: ClassVar[str] = "checkpoint_folder"
    step: int
    path: str


@dataclass(frozen=True, slots=True, kw_only=True)
class MemoryUsed:
    """Resident bytes by the operating system: the bare process with its libraries, and the highest
    growth over it.
    """

    type: ClassVar[str] = "memory"
    base_bytes: int | None = None
    peak_bytes: int | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Refused:
    """The program ends because of what the user wrote; `message` is the sentence for them."""

    type: ClassVar[str] = "refused"
    message: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Ended:
    """The attempt is over. `exit_code` as the shell counts it: negative for a signal."""

    type: ClassVar[str] = "ended"
    outcome: Outcome
    exit_code: int | None
    message: str


Report = (
    Started | Progress | Metrics | CheckpointSaved | CheckpointRemoved | CheckpointFolder
    | MemoryUsed | Refused | Ended
)  # fmt: skip
_TYPES: dict[str, type[Any]] = {
    kind.type: kind
    for kind in (
        Started, Progress, Metrics, CheckpointSaved, CheckpointRemoved, CheckpointFolder,
        MemoryUsed, Refused, Ended,
    )
}  # fmt: skip


def to_json(report: Report) -> dict[str, Any]:
    return {"type": report.type, **asdict(report)}


def from_json(value: dict[str, Any]) -> Report:
    """Read a report; keys that a later version added are ignored. Raises ValueError naming what is
    missing.
    """
    kind = _TYPES.get(value.get("type", ""))
    if kind is None:
        raise ValueError(f"report type {value.get('type')!r} is not one of {', '.join(_TYPES)}")
    known = {field.name for field in fields(kind)}
    try:
        report: Report = kind(**{key: item for key, item in value.items() if key in known})
    except TypeError as error:
        raise ValueError(f"report {value['type']}: {error}") from None
    return report


def to_line(report: Report) -> bytes:
    return json.dumps(to_json(report), separators=(",", ":")).encode() + b"\n"
