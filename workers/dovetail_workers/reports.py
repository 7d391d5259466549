"""The words a worker speaks upward. Frozen values; one JSON object per line in the reports pipe and
in the journal.

The training process writes them to `$DOVETAIL_REPORTS`; the supervisor beside it numbers them and
puts them into the journal in storage. `Ended` is the
supervisor's own, and so is `Started` for a script.
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from functools import cache
from typing import Annotated, Any, ClassVar, Literal

from pydantic import Field, TypeAdapter, ValidationError

Outcome = Literal["succeeded", "failed", "stopped", "lost", "out_of_memory"]
Count = Annotated[int, Field(ge=0, lt=2**63)]  # what a database keeps as a whole number


@dataclass(frozen=True, slots=True, kw_only=True)
class Started:
    """The training process runs. `resumed_from_step` is None for a run from the beginning."""

    type: ClassVar[str] = "started"
    pid: Count
    node: str
    device: str
    resumed_from_step: Count | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Progress:
    """Where the run is. `steps` is the total of this phase, None when the program does not
    know it.
    """

    type: ClassVar[str] = "progress"
    step: Count
    steps: Count | None = None
    phase: str = "train"
    steps_per_s: float | None = None
    samples_per_s: float | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Metrics:
    """What the workload's loss and metric functions returned at this step: deterministic values
    only.
    """

    type: ClassVar[str] = "metrics"
    step: Count
    values: dict[str, float]
    phase: str = "train"


@dataclass(frozen=True, slots=True, kw_only=True)
class CheckpointSaved:
    """A whole checkpoint lies under storage prefix `key`; its manifest is written."""

    type: ClassVar[str] = "checkpoint"
    step: Count
    key: str
    uri: str
    bytes: Count
    phase: str = "train"


@dataclass(frozen=True, slots=True, kw_only=True)
class CheckpointRemoved:
    """Retention removed the checkpoint under `key`."""

    type: ClassVar[str] = "checkpoint_removed"
    key: str


@dataclass(frozen=True, slots=True, kw_only=True)
class CheckpointSkipped:
    """A resume found the checkpoint under `key` damaged, as `cause` says. The one of
    `instead_step` serves; None: none is whole, and the run begins anew.
    """

    type: ClassVar[str] = "checkpoint_skipped"
    key: str
    step: Count
    attempt: Count
    cause: str
    instead_step: Count | None = None

    def __str__(self) -> str:
        then = "the run begins anew"
        if self.instead_step is not None:
            then = f"the one of step {self.instead_step} serves"
        return (
            f"checkpoint of step {self.step} (attempt {self.attempt}) is damaged: {self.cause}; "
            f"{then}"
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class CheckpointFolder:
    """A script wrote a checkpoint into the local folder `path`; the supervisor stores it and says
    CheckpointSaved.
    """

    type: ClassVar[str] = "checkpoint_folder"
    step: Count
    path: str


@dataclass(frozen=True, slots=True, kw_only=True)
class MemoryUsed:
    """Resident bytes by the operating system: the bare process with its libraries, and the highest
    growth over it. With a memory manager also what it foresaw, was given, and did so far. The
    supervisor's words are `fence`, who keeps it to its budget, and `overrun` of one that was ended
    for holding more: what it held over what is foreseen of a plan for that budget.
    """

    type: ClassVar[str] = "memory"
    base_bytes: Count | None = None
    peak_bytes: Count | None = None
    forecast_bytes: Count | None = None
    budget_bytes: Count | None = None
    swapped_out_bytes: Count | None = None
    swapped_in_bytes: Count | None = None
    recomputed_bytes: Count | None = None
    passive_fetches: Count | None = None
    stall_s: float | None = None
    replans: Count | None = None
    fence: str | None = None
    overrun: Annotated[float, Field(gt=0, allow_inf_nan=False)] | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Busy:
    """The share of its processors that the attempt keeps computing while it trains and nobody else
    wants them: 0 to 1, on the average so far. The supervisor's word.
    """

    type: ClassVar[str] = "busy"
    share: Annotated[float, Field(ge=0, le=1)]


@dataclass(frozen=True, slots=True, kw_only=True)
class Refused:
    """The program ends because of what the user wrote; `message` is the sentence for them."""

    type: ClassVar[str] = "refused"
    message: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Failed:
    """The program ends for a cause that it can name and that another attempt may not meet, such as
    a full disk. The supervisor makes it the message of `Ended`. `again`: it had not begun to train
    yet, or memory gave out, so it counts as a loss and not as a failure; `memory`: the latter.
    """

    type: ClassVar[str] = "failed"
    message: str
    again: bool = False
    memory: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class JournalDamaged:
    """Stands where a reader of the journal found bytes that are no report: of `segment`, the first
    `whole` reports could be read. No worker says it.
    """

    type: ClassVar[str] = "journal_damaged"
    segment: Count
    whole: Count
    cause: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Ended:
    """The attempt is over. `exit_code` as the shell counts it: negative for a signal."""

    type: ClassVar[str] = "ended"
    outcome: Outcome
    exit_code: int | None
    message: str


Report = (
    Started | Progress | Metrics | CheckpointSaved | CheckpointRemoved | CheckpointSkipped
    | CheckpointFolder | MemoryUsed | Busy | Refused | Failed | JournalDamaged | Ended
)  # fmt: skip
_TYPES: dict[str, type[Any]] = {
    kind.type: kind
    for kind in (
        Started, Progress, Metrics, CheckpointSaved, CheckpointRemoved, CheckpointSkipped,
        CheckpointFolder, MemoryUsed, Busy, Refused, Failed, JournalDamaged, Ended,
    )
}  # fmt: skip


def to_json(report: Report) -> dict[str, Any]:
    return {"type": report.type, **asdict(report)}


def from_json(value: dict[str, Any]) -> Report:
    """Read a report; keys that a later version added are ignored. Raises ValueError naming what is
    missing or of another type: any program may write these lines.
    """
    kind = _TYPES.get(str(value.get("type")))
    if kind is None:
        raise ValueError(f"report type {value.get('type')!r} is not one of {', '.join(_TYPES)}")
    text = json.dumps({key: item for key, item in value.items() if key != "type"})
    if "\\u0000" in text:
        raise ValueError(f"report {kind.type}: holds a NUL character, which no database keeps")
    try:
        report: Report = _reader(kind.type).validate_json(text, strict=True)
    except ValidationError as error:
        first = error.errors()[0]
        place = ".".join(str(step) for step in first["loc"])
        raise ValueError(f"report {kind.type}: {place}: {first['msg']}") from None
    return report


@cache
def _reader(type_: str) -> TypeAdapter[Any]:
    return TypeAdapter(_TYPES[type_])


def to_line(report: Report) -> bytes:
    return json.dumps(to_json(report), separators=(",", ":")).encode() + b"\n"
