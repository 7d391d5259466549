"""One optimizer step of a workload: micro-batches, backward, clip, optimizers, averages.

It is a function of its batches alone, so that the memory manager can rehearse it.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import torch

from dovetail_jobs.errors import UserError
from dovetail_jobs.workload import Workload, WorkloadContext
from dovetail_workers import averages, schedules
from dovetail_workers.precision import Precision
from dovetail_workers.streams import Stream

Batches = Sequence[Mapping[str, Any]]  # one mapping of streams for each micro-batch


class OptimizerStep:
    """`drawn` gives the batches of the next step, `take(batches)` trains on them, `steps` of them
    make the run. A step may be taken again, from its beginning, until `taken` counts it.
    """

    def __init__(self, workload: Workload, context: WorkloadContext) -> None:
        averages.prepare(workload.models)
        self._workload, self._train = workload, context.train
        self.precision = Precision(self._train.precision, context.device)
        self.streams = {
            name: Stream(name, feed, seed=context.seed, accumulate=self._train.accumulate)
            for name, feed in workload.feeds.items()
        }
        self.steps = _steps(self._train, self.streams)
        self.done = 0
        self._drawn: Batches | None = None
        self._losses: list[torch.Tensor] = []
        self._samples = 0

    def drawn(self) -> Batches:
        """The next step's; drawn once, however often it is tried."""
        if self._drawn is None:
            self._drawn = [
                {name: next(stream) for name, stream in self.streams.items()}
                for _ in range(self._train.accumulate)
            ]
        return self._drawn

    def ahead_bytes(self) -> int:
        """What the streams hold while a step is taken, beside its own batches."""
        self.drawn()
        return sum(stream.ahead_bytes() for stream in self.streams.values())

    def take(self, batches: Batches) -> None:
        """Forward and backward on each micro-batch, then one update. All have the same size."""
        self.precision.begin()
        optimizers = self._workload.optimizers.values()
        schedules.apply(optimizers, schedules.factor(self._train.schedule, self.done, self.steps))
        for optimizer in optimizers:
            optimizer.zero_grad(set_to_none=True)
        self._losses, self._samples = [], 0
        for micro_batch in batches:
            with self.precision.autocast():
                result = self._workload.step(micro_batch)
            self.precision.backward(result.loss / self._train.accumulate)
            self._losses.append(result.loss.detach())
            self._samples += result.samples
            del result
        self.precision.step(optimizers, self._train.clip_norm)
        averages.update(self._workload.models, self.done + 1, self.steps)

    def taken(self) -> tuple[float, int]:
        """Count the step that was taken; its mean loss and the number of samples.

        Raises UserError for a loss that is not finite.
        """
        self.done += 1
        self._drawn = None
        loss = float(torch.stack(self._losses).double().mean())
        self._losses = []
        if not math.isfinite(loss):
            raise UserError(
                f"step {self.done}: the loss is {loss}, so training cannot go on; lower "
                "train.optimizer.lr, set train.clip_norm, or lengthen train.schedule.warmup_steps"
            )
        return loss, self._samples

    def close(self) -> None:
        for stream in self.streams.values():
            stream.close()


def _steps(settings: Any, streams: Mapping[str, Stream]) -> int:
    if settings.steps is not None:
        return int(settings.steps)
    return int(settings.epochs * next(iter(streams.values())).steps_per_epoch)
