"""How an attempt ended, from what is known of its process. Pure."""

from __future__ import annotations

import signal
from dataclasses import dataclass

from dovetail_jobs.units import format_seconds
from dovetail_workers.log import OWN_WORDS
from dovetail_workers.reports import Ended, Outcome

_LAST_LINE_CHARACTERS = 300
_KILLED_IN_A_SHELL = 128 + signal.SIGKILL


@dataclass(frozen=True, slots=True, kw_only=True)
class Traces:
    """What an attempt leaves behind. `exit_code` is negative for a signal; `hung_s` is the
    `progress_timeout` that ran out; `refusal` and `failure` are the program's own sentences; `tail`
    the last lines of its log; `kind` the program in words; `again` that its failure is a loss,
    `short_of_memory` that it was for want of memory.
    """

    exit_code: int
    stopping: bool
    hung_s: float | None
    refusal: str | None
    failure: str | None
    tail: str
    kind: str
    again: bool = False
    short_of_memory: bool = False


def verdict(traces: Traces) -> Ended:
    """A stop, then a hang, then the program's own sentence explain what the exit code does not."""
    code = traces.exit_code
    if code == 0:
        return Ended(outcome="succeeded", exit_code=0, message="ran to its end")
    if traces.stopping:
        return Ended(outcome="stopped", exit_code=code, message="stopped on request")
    if traces.hung_s is not None:
        cause = f"no progress for {format_seconds(traces.hung_s)} (progress_timeout)"
        return Ended(outcome="lost", exit_code=code, message=cause)
    if sentence := traces.refusal or traces.failure:
        outcome: Outcome = "lost" if traces.again else "failed"
        if traces.short_of_memory:
            outcome = "out_of_memory"
        return Ended(outcome=outcome, exit_code=code, message=sentence)
    # A shell says of a program that was killed what it would say of one that exits with 137.
    if code == -signal.SIGKILL or (code == _KILLED_IN_A_SHELL and traces.kind == "script"):
        cause = "its process was killed by SIGKILL, perhaps for want of host memory"
        return Ended(outcome="lost", exit_code=code, message=cause)
    what = f"exited with code {code}"
    if code < 0:
        what = f"ended by signal {signal.Signals(-code).name}"
    message = f"the {traces.kind} {what}{_last_words(traces.tail)}"
    return Ended(outcome="failed", exit_code=code, message=message)


def _last_words(tail: str) -> str:
    lines = [line for line in tail.splitlines() if line.strip() and not line.startswith(OWN_WORDS)]
    if not lines:
        return ""
    last = lines[-1].strip()[:_LAST_LINE_CHARACTERS]
    # A database keeps no NUL, and a terminal obeys an escape sequence.
    shown = "".join(letter if letter.isprintable() else " " for letter in last)
    return f"; its last line: {shown}"
