"""In which order waiting jobs are offered what is free. To add a policy: one function, one line."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from datetime import datetime
from typing import Final

from dovetail.scheduler.view import QueuedJob

Policy = Callable[[Sequence[QueuedJob], datetime], list[QueuedJob]]


def priority(queued: Sequence[QueuedJob], now: datetime) -> list[QueuedJob]:
    """Higher priority first; among equals, the one that was submitted first."""
    return sorted(queued, key=lambda job: (-job.priority, job.seq))


POLICIES: Final[dict[str, Policy]] = {"priority": priority}
