"""What encloses the processes of one attempt: how much memory they may hold, who enforces it, what
they keep busy, and how that stands in its reports.

On a CPU device a control group does where this user has the memory controller; that of an attempt
that shares its device ends at the device, since a lease moves faster than a group's limit could. So
a watch stands beside it, and in place of it elsewhere. On CUDA the allocator refuses.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace

from dovetail_workers import cuda_fence, library_memory, oom_kills
from dovetail_workers.attempt_watch import AttemptWatch
from dovetail_workers.busyness import Busyness
from dovetail_workers.cgroup import Cgroup
from dovetail_workers.launch import Launch
from dovetail_workers.memory_fence import MemoryFence
from dovetail_workers.memory_limit import limit_of, slack_bytes
from dovetail_workers.reports import MemoryUsed, Report, Started
from dovetail_workers.stand_in import StandIn


class Enclosure:
    """`on_overrun` hears a sentence, once, in a thread of the enclosure: the attempt is to be ended
    then. `report` takes what the enclosure itself has to say. `make_group` gives an attempt a group
    of its own, by its id; `count_kills` reads the kernel's counters of its kills for want of
    memory. `kernel_kill` is the one that rose by `end`, if a SIGKILL ended the attempt.
    """

    kernel_kill: str | None = None
    _is_fenced = False

    def __init__(
        self,
        launch: Launch,
        device_environment: Mapping[str, str],
        on_overrun: Callable[[str], None],
        report: Callable[[Report], None],
        make_group: Callable[[str], Cgroup | None] = Cgroup.make,
        count_kills: Callable[[], Mapping[str, int]] = oom_kills.counts,
    ) -> None:
        self._count_kills = count_kills
        self._kills_before: Mapping[str, int] = {}
        self._launch, self._report, self._make_group = launch, report, make_group
        self._is_script = launch.spec["family"] is None
        self._is_cpu = launch.device.startswith("cpu:")
        self._limit = limit_of(launch, device_environment)
        self._fence = MemoryFence(
            self._limit, on_overrun, awaits_base=not self._is_script, on_base=self._hear_base
        )
        threads = max(1, int(launch.spec["resources"]["cpus"]))
        self._busyness = Busyness(threads, report)
        self._stand_in = StandIn.of(launch, device_environment) if self._is_script else None
        self._group: Cgroup | None = None
        self._watch: AttemptWatch | None = None

    @property
    def kind(self) -> str | None:
        """Who enforces the limit; None where there is none."""
        if not self._is_cpu:
            return None if cuda_fence.fraction(self._launch) is None else "cuda fraction"
        if self._launch.share:
            return "watched"
        if self._limit().bytes is None:
            return None
        return "watched" if self._group is None else "cgroup"

    @property
    def ended_by(self) -> str:
        """Whom an end for want of memory is due to: the fence, the kernel, or the program, which
        found none itself.
        """
        if self._is_fenced:
            return "fence"
        return "program" if self.kernel_kill is None else "kernel"

    def let_in(self, say: Callable[[str], None], is_over: Callable[[], bool]) -> bool:
        """Before the first process: wait until the device has room for what a script declares, and
        say so; False if all `is_over` by then. Raises UserError where it never will have.
        """
        return self._stand_in is None or self._stand_in.join(say, is_over)

    def begin(self, pid: int) -> None:
        """The attempt's first process runs, and has not done anything yet."""
        self._kills_before = self._count_kills()
        if self._is_cpu and self.kind is not None:
            group = self._make_group(self._launch.attempt_id)
            if group is not None and group.take(pid):
                self._group = group
            elif group is not None:
                group.remove()
            if self._is_script:
                self._confine(base_bytes=None)
        if self._is_script and self.kind is not None:
            self._report(MemoryUsed(budget_bytes=self._limit().bytes, fence=self.kind))
        if self._is_script:
            self._busyness.begin()
        if self._is_cpu:
            self._watch = AttemptWatch(
                self._fence.look, self._busyness.look, suspects=lambda: self._fence.suspects
            )

    def heard(self, report: Report) -> Report:
        """A report of the attempt, as it goes on."""
        if isinstance(report, Started):
            self._busyness.begin()
        if not isinstance(report, MemoryUsed):
            return report
        if report.base_bytes is not None:
            self._fence.know_base(report.base_bytes)
            self._confine(report.base_bytes)
        return replace(report, fence=self.kind, overrun=None)

    def end(self, *, was_killed: bool = False) -> str | None:
        """No process of the attempt is left. The sentence if the kernel ended it for its own
        limit. `was_killed`: by a SIGKILL, whosever.
        """
        if was_killed:
            self.kernel_kill = oom_kills.risen(self._kills_before, self._count_kills())
        if self._watch is not None:
            self._watch.close()
        killed = self._group is not None and self._group.kills() > 0
        if self._group is not None:
            if killed:
                self._fence.know_total(self._group.peak_bytes() or 0)
            self._group.remove()
        is_over = killed or self._fence.is_broken
        self._is_fenced = is_over
        # a script has nobody else to say what it took
        tells = self._is_script and self._is_cpu and self.kind is not None
        if is_over or tells or self.kernel_kill is not None:
            used = MemoryUsed(
                peak_bytes=self._fence.peak_bytes,
                budget_bytes=self._fence.limit_bytes or self._limit().bytes,
                fence=self.kind,
                overrun=self._overrun() if is_over else None,
            )
            self._report(used)
        return self._fence.overrun(self._limit()) if killed else None

    def _hear_base(self, base_bytes: int) -> None:
        """By the broker, whom the session told: a script need not say it itself."""
        if self._is_script:
            self._confine(base_bytes)
            self._report(MemoryUsed(base_bytes=base_bytes, fence=self.kind))

    def _overrun(self) -> float | None:
        """Of a job that tensile keeps to a limit: how wrong its plan for that one was."""
        limit_bytes = self._fence.limit_bytes or self._limit().bytes
        if self._is_script or self._launch.spec["memory"]["policy"] == "none" or not limit_bytes:
            return None
        held_bytes = self._fence.over_bytes or self._fence.peak_bytes
        return max(1.0, self._launch.overrun * held_bytes / limit_bytes)

    def leave(self) -> None:
        """Nothing of the attempt is on the device any more, however it ended."""
        if self._stand_in is not None:
            self._stand_in.close()

    def _confine(self, base_bytes: int | None) -> None:
        """A lease may grow at any moment, so the group of one that shares ends at the device."""
        device_bytes = self._launch.device_bytes
        fenced_bytes: int | None = device_bytes + slack_bytes(self._launch, device_bytes)
        if not self._launch.share:
            fenced_bytes = self._limit().fenced_bytes
        if self._group is not None and fenced_bytes is not None:
            bare_bytes = library_memory.MOST_BYTES if base_bytes is None else base_bytes
            self._group.limit(bare_bytes + fenced_bytes)
