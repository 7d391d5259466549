"""What the scheduler decides: values with a reason, carried out by the daemon."""

from __future__ import annotations

from dataclasses import dataclass

from dovetail_jobs.lifecycle import Reason


@dataclass(frozen=True, slots=True, kw_only=True)
class Start:
    """Give the job's next attempt this device. `reason` is one sentence for the log. After an end
    for want of memory, `cap_bytes` is the most that it may hold, and `readmission` says why so.
    """

    job_id: str
    node_id: str
    node: str
    device: str
    reason: str
    cap_bytes: int | None = None
    readmission: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Wait:
    """Leave the job in the queue; `message` says what it waits for and what would unblock it."""

    job_id: str
    reason: Reason
    message: str


@dataclass(frozen=True, slots=True, kw_only=True)
class RuleOut:
    """End the job: no device can ever hold it; `message` says why, and what would help."""

    job_id: str
    message: str


Decision = Start | Wait | RuleOut
