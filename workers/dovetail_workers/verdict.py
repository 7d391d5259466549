"""How an attempt ended, from what is known of its process. Pure."""

from __future__ import annotations

import re
import signal
from dataclasses import dataclass

from dovetail_jobs.units import format_seconds
from dovetail_workers.log import OWN_WORDS
from dovetail_workers.reports import Ended, Outcome

_LAST_LINE_CHARACTERS = 300
_KILLED_IN_A_SHELL = 128 + signal.SIGKILL
# The last line of a Python program whose exception nobody caught
_FOUND_NO_MEMORY = re.compile(
    r"([\w.]+\.)?(_Array)?MemoryError\b|([\w.]+\.)?OutOfMemoryError: |"
    r"RuntimeError: .*can't allocate memory|OSError: \[Errno 12\]"
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Traces:
    """What an attempt leaves behind. `exit_code` is negative for a signal; `hung_s` is the
    `progress_timeout` that ran out; `refusal` and `failure` are the program's own sentences; `tail`
    the last lines of its log; `kind` the program in words; `again` that its failure is a loss,
    `short_of_memory` that it was for want of memory; `oom_kills` the counter of the kernel's kills
    for want of memory that rose meanwhile.
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
    oom_kills: str | None = None


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
    if is_killed(code, traces.kind):
        if traces.oom_kills is not None:
            return Ended(outcome="out_of_memory", exit_code=code, message=_by_the_kernel(traces))
        cause = "its process was killed by SIGKILL, perhaps for want of host memory"
        return Ended(outcome="lost", exit_code=code, message=cause)
    what = f"exited with code {code}"
    if code < 0:
        what = f"ended by signal {signal.Signals(-code).name}"
    last = _last_line(traces.tail)
    if code > 0 and traces.kind == "script" and _FOUND_NO_MEMORY.match(last):
        return Ended(outcome="out_of_memory", exit_code=code, message=f"out of memory: {last}")
    message = f"the {traces.kind} {what}{f'; its last line: {last}' if last else ''}"
    return Ended(outcome="failed", exit_code=code, message=message)


def is_killed(exit_code: int, kind: str) -> bool:
    """By SIGKILL. A shell says of a program that was what it would say of one that exits with
    137.
    """
    return exit_code == -signal.SIGKILL or (exit_code == _KILLED_IN_A_SHELL and kind == "script")


def _by_the_kernel(traces: Traces) -> str:
    return (
        f"out of memory: the kernel ended the {traces.kind}, since the machine, or the group it "
        f"runs in, had no memory left ({traces.oom_kills} rose)"
    )


def _last_line(tail: str) -> str:
    lines = [line for line in tail.splitlines() if line.strip() and not line.startswith(OWN_WORDS)]
    if not lines:
        return ""
    last = lines[-1].strip()[:_LAST_LINE_CHARACTERS]
    # A database keeps no NUL, and a terminal obeys an escape sequence.
    return "".join(letter if letter.isprintable() else " " for letter in last)
