"""How jobs and lists are named in what the scheduler says."""

from __future__ import annotations

from collections.abc import Iterable

from dovetail.scheduler.view import Holding

_NAMED = 3  # so many are named in a sentence, the rest are counted


def who(holding: Holding) -> str:
    return f"{holding.job_id} ({holding.job_name})" if holding.job_name else holding.job_id


def listed(sentences: Iterable[str]) -> str:
    told = list(sentences)
    more = [f"and {len(told) - _NAMED} more"] if len(told) > _NAMED else []
    return ", ".join(told[:_NAMED] + more)
