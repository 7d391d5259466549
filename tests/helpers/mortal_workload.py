"""The tiny family with an end that comes at an exact step of its first attempt."""

from __future__ import annotations

import os
import resource
import signal
from collections.abc import Mapping
from typing import Any

from dovetail_jobs.workload import StepResult, WorkloadContext
from helpers import tiny_workload


class Params(tiny_workload.Params):
    """At `fatal_step`, before it is done, the process is killed, or stops for good, or finds its
    disk full: no file may be larger than this from then on.
    """

    fatal_step: int | None = None
    end: str = "killed"  # killed | stopped | full


class Mortal(tiny_workload.Tiny):
    def __init__(self, params: Params, context: WorkloadContext) -> None:
        super().__init__(params, context)
        first = os.environ.get("DOVETAIL_ATTEMPT") == "1"
        self.fatal_step = params.fatal_step if first else None
        self.end = params.end

    def step(self, batches: Mapping[str, Any]) -> StepResult:
        if self.steps_seen + 1 == self.fatal_step:
            match self.end:
                case "killed":
                    os.kill(os.getpid(), signal.SIGKILL)
                case "stopped":
                    os.kill(os.getpid(), signal.SIGSTOP)
                case "full":
                    resource.setrlimit(resource.RLIMIT_FSIZE, (1000, 1000))
        return super().step(batches)


def build(params: Params, context: WorkloadContext) -> Mortal:
    return Mortal(params, context)
