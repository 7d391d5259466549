"""The progress of a followed job on stderr: a live bar on a terminal, else a line per change."""

from __future__ import annotations

import sys
from types import TracebackType
from typing import Protocol, Self

from dovetail.cli.output import Json, number, say
from dovetail_jobs.units import format_seconds


class ProgressView(Protocol):
    def __enter__(self) -> Self: ...
    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None: ...
    def show(self, job: Json) -> None:
        """Draw the job as it is now."""


class StateLines:
    """`RUNNING: trains on n1/cpu:0`, once for each message."""

    def __init__(self) -> None:
        self._last = ""

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        pass

    def show(self, job: Json) -> None:
        line = f"{job['state']}: {job['message']}"
        if line != self._last:
            say(line)
            self._last = line


class ProgressBar:
    """`swin-digits RUNNING ━━━━ 120/500 loss 0.31 410 samples/s 1m58s left`."""

    def __init__(self) -> None:
        from rich.console import Console
        from rich.progress import BarColumn, Progress, TextColumn

        self._bar = Progress(
            TextColumn("{task.description}"),
            BarColumn(),
            TextColumn("{task.fields[facts]}"),
            console=Console(stderr=True),
            auto_refresh=False,
            transient=True,
            # Log lines for the same terminal appear above the bar; a pipe stays as it is.
            redirect_stdout=sys.stdout.isatty(),
        )
        self._task = self._bar.add_task("", total=None, facts="")

    def __enter__(self) -> Self:
        self._bar.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._bar.stop()

    def show(self, job: Json) -> None:
        from rich.markup import escape

        progress = job["progress"]
        waits = progress["step"] is None
        self._bar.update(
            self._task,
            description=escape(f"{job['name']} {job['state']}"),
            completed=progress["step"] or 0,
            total=progress["steps"],
            facts=escape(job["message"] if waits else facts(job)),
            refresh=True,
        )


def progress_view() -> ProgressView:
    """What fits stderr."""
    return ProgressBar() if sys.stderr.isatty() else StateLines()


def facts(job: Json) -> str:
    """Step, loss, samples/s and the time that is left, as far as they are known."""
    progress = job["progress"]
    steps = progress["steps"]
    known = [
        f"{progress['step']}/{steps}" if steps else f"step {progress['step']}",
        f"loss {number(job['metrics']['loss'])}" if "loss" in job["metrics"] else "",
        f"{number(progress['samples_per_s'])} samples/s" if progress["samples_per_s"] else "",
        f"{format_seconds(progress['eta_s'])} left" if progress["eta_s"] is not None else "",
    ]
    return "  ".join(filter(None, known))
