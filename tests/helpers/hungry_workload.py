"""The tiny family, whose step wants more memory than there is: for as many tries as `fails` says,
after each validation. With `late` it wants it when its optimizers have stepped already, with
`early` when it is built.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from dovetail_jobs.workload import StepResult, WorkloadContext
from helpers import tiny_workload
from helpers.mischief import impossible


class Params(tiny_workload.Params):
    fails: int = 0
    late: bool = False
    early: bool = False


class Hungry(tiny_workload.Tiny):
    def __init__(self, params: Params, context: WorkloadContext) -> None:
        super().__init__(params, context)
        self.wanted = params
        self.left = 0
        if params.early:
            impossible()
        if params.late:
            last = list(self.optimizers.values())[-1]
            last.register_step_post_hook(lambda *_: self.demand())

    def demand(self) -> None:
        if self.left:
            self.left -= 1
            impossible()

    def step(self, batches: Mapping[str, Any]) -> StepResult:
        result = super().step(batches)
        if not self.wanted.late:
            self.demand()
        return result

    def validate(self) -> dict[str, float]:
        self.left = self.wanted.fails
        return super().validate()


def build(params: Params, context: WorkloadContext) -> Hungry:
    return Hungry(params, context)
