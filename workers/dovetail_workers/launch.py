"""What the control plane hands to a worker: one attempt of one job on one device."""

from __future__ import annotations

from dataclasses import asdict, dataclass, fields
from typing import Any


@dataclass(frozen=True, slots=True, kw_only=True)
class Launch:
    """`spec` is the resolved JSON of the job. `resume_from` lists storage prefixes whose
    checkpoints may serve, best first. `code` is the sha256 of the code snapshot to run; without it
    the program runs in the spec's `workdir` as that is. An attempt with `share` joins the broker of
    its device, with that weight and priority. `cap_bytes` is the most device memory that it may
    hold, where an earlier attempt ran out; None: what the spec says. Attempts like it were measured
    to hold `overrun` times what their plans foresee. `readmitted`: memory ended an earlier attempt.
    """

    job_id: str
    job_name: str
    attempt: int
    spec: dict[str, Any]
    node: str
    device: str
    device_bytes: int
    storage_uri: str
    resume_from: tuple[str, ...] = ()
    code: str | None = None
    share: bool = False
    weight: float = 1.0
    priority: int = 0
    cap_bytes: int | None = None
    overrun: float = 1.0
    readmitted: bool = False

    @property
    def attempt_id(self) -> str:
        """`<job>.<attempt>`: the fencing token of everything this attempt writes and runs."""
        return f"{self.job_id}.{self.attempt}"

    def to_json(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def from_json(cls, value: dict[str, Any]) -> Launch:
        known = {field.name for field in fields(cls)}
        given = {key: item for key, item in value.items() if key in known}
        return cls(**{**given, "resume_from": tuple(given.get("resume_from", ()))})


def parse_attempt_id(attempt_id: str) -> tuple[str, int]:
    """The job's id and the attempt's number."""
    job_id, _, number = attempt_id.partition(".")
    return job_id, int(number)
