"""The training loop: one plain loop for every workload.

The order of things: the newest checkpoint is found, the workload is built from the spec, the state
is put back, and then step by step: micro-batches, clip, optimizers, averages, reports, validation,
checkpoint. Whoever reads the reports finds them in that order.
"""

from __future__ import annotations

import math
import os
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Literal

import torch
import torch._dynamo  # every optimizer imports it; here it counts to the bare process

from dovetail_jobs import catalog
from dovetail_jobs.errors import UserError
from dovetail_jobs.spec import JobSpec, Train
from dovetail_jobs.units import format_bytes, format_seconds
from dovetail_jobs.workload import Workload, WorkloadContext
from dovetail_workers import checkpoint, cuda_fence, keys, optimizers
from dovetail_workers.curves import Curves
from dovetail_workers.launch import Launch
from dovetail_workers.memory_policy import MemoryPolicy
from dovetail_workers.numerics import reproducible
from dovetail_workers.optimizer_step import OptimizerStep
from dovetail_workers.random_state import seed_everything
from dovetail_workers.reports import (
    CheckpointRemoved,
    CheckpointSaved,
    Metrics,
    Progress,
    Report,
    Started,
)
from dovetail_workers.speed import Speedometer
from dovetail_workers.storage.protocol import Storage
from dovetail_workers.training_state import TrainingState
from dovetail_workers.validation import validate
from tensile import resident

POINTS_PER_METRIC = 10_000

say = partial(print, flush=True)


def train(
    launch: Launch,
    storage: Storage,
    report: Callable[[Report], None],
    should_stop: Callable[[], bool],
) -> Literal["succeeded", "stopped"]:
    """Train what `launch.spec` describes, to its end or until `should_stop()` at a step's boundary.

    A stop writes no checkpoint. Raises UserError for what the user must mend: data smaller than a
    batch, a loss that is not finite, a checkpoint of another program; StorageError when a
    checkpoint could not be written; OutOfMemory. What is printed is the log.
    """
    spec = JobSpec.model_validate(launch.spec)
    if spec.family is None or spec.train is None:
        raise UserError(f"job {spec.name}: has no family to train; a script runs by itself")
    found = _newest(launch, storage, report)
    threads = max(1, int(spec.resources.cpus))
    with reproducible(threads):
        workdir = Path(spec.workdir) if spec.workdir else None
        build = catalog.build(spec.family, workdir=workdir)
        params = catalog.params_model(spec.family, workdir=workdir).model_validate(spec.params)
        context = workload_context(spec.train, _device(launch.device), params, threads)
        cuda_fence.fence(launch)
        base = resident.measure()
        resident.reset_peak()
        seed_everything(context.seed)
        run = _Run(launch, spec, storage, report, build(params, context), context, base)
        try:
            run.begin(spec.family, found)
            outcome = run.advance(should_stop)
        finally:
            run.close()
    return outcome


def _newest(
    launch: Launch, storage: Storage, report: Callable[[Report], None]
) -> checkpoint.Checkpoint | None:
    """The checkpoint to continue from; each damaged one is named in the log and in the story."""
    skipped: list[checkpoint.Skipped] = []
    found = checkpoint.newest(storage, launch.resume_from, skipped.append)
    for item in skipped:
        say(item)
        report(item.report(found))
    return found


def point_is_due(step: int, steps: int) -> bool:
    """Whether the loss of `step` is reported: every one of a short run, 10 000 of a long one."""
    return step % math.ceil(steps / POINTS_PER_METRIC) == 0 or step == steps


class _Run:
    """One attempt's run of a workload: where it is, and what it does after each step."""

    def __init__(
        self,
        launch: Launch,
        spec: JobSpec,
        storage: Storage,
        report: Callable[[Report], None],
        workload: Workload,
        context: WorkloadContext,
        base: resident.Resident | None,
    ) -> None:
        if len(workload.phases) != 1:
            raise UserError(f"{launch.job_name}: several phases are not yet here; name one")
        self._launch, self._spec, self._storage, self._report = launch, spec, storage, report
        self._workload, self._context, self._train = workload, context, context.train
        self._phase, self._base = workload.phases[0], base
        self._optimizer_step = OptimizerStep(workload, context)
        self._state = TrainingState(
            models=workload.models,
            optimizers=workload.optimizers,
            streams=self._optimizer_step.streams,
            precision=self._optimizer_step.precision,
        )
        self._memory: MemoryPolicy | None = None
        self._curves = Curves(storage, keys.curves_prefix(launch.job_id, launch.attempt))
        self._told_step = -1
        self._last: dict[str, float] = {}

    @property
    def _step(self) -> int:
        return self._optimizer_step.done

    @property
    def _steps(self) -> int:
        return self._optimizer_step.steps

    def begin(self, family: str, found: checkpoint.Checkpoint | None) -> None:
        """Say what runs, take the memory in hand, and continue from `found` if there is one."""
        launch, context = self._launch, self._context
        what = f"{self._steps} steps of {context.global_batch} samples"
        if self._train.accumulate > 1:
            what += f" in {self._train.accumulate} parts"
        say(
            f"{launch.job_name} ({launch.job_id}, attempt {launch.attempt}) on {launch.device}: "
            f"{family}, {what}, {self._train.precision}, threads {context.threads}"
        )
        self._memory = MemoryPolicy(
            self._spec,
            context.device,
            launch.device_bytes,
            {name: member.module for name, member in self._workload.models.items()},
            self._workload.optimizers,
            self._base,
            say=say,
            cap_bytes=launch.cap_bytes,
        )
        if found is not None:
            with self._memory.staging() as make_room:
                self._state.load(partial(checkpoint.fetch, self._storage, found), make_room)
            self._optimizer_step.done = found.step
            say(f"continues from step {found.step}: {self._storage.uri(found.prefix)}")

    def advance(self, should_stop: Callable[[], bool]) -> Literal["succeeded", "stopped"]:
        """From the present step to the last; validation and a checkpoint always come at the end."""
        assert self._memory is not None
        step, memory = self._optimizer_step, self._memory
        if step.done < step.steps:
            memory.prepare(step.take, step.drawn(), step.ahead_bytes())
        self._report(memory.used())
        self._tell_start()
        began_s, began_step = time.monotonic(), step.done
        speed = Speedometer(began_s)
        self._tell_progress(speed)
        while step.done < step.steps:
            if should_stop():
                self._tell_progress(speed)
                self._curves.flush()
                say(f"stopped on request after step {step.done} of {step.steps}")
                return "stopped"
            memory.attempt(lambda: step.take(step.drawn()))
            loss, samples = step.taken()
            if speed.stepped(time.monotonic(), samples):
                self._tell_progress(speed)
            self._tell_loss(loss)
            if step.done < step.steps:
                if _is_due(step.done, self._train.validate_.every):
                    self._validate()
                if _is_due(step.done, self._train.checkpoint.every):
                    self._save()
        self._tell_progress(speed)
        self._validate()
        self._save()
        for note in memory.notes():
            say(f"memory: {note}")
        took = format_seconds(time.monotonic() - began_s)
        say(f"finished: {step.done - began_step} steps in {took}{_shown(self._last)}")
        return "succeeded"

    def close(self) -> None:
        if self._memory is not None:
            self._report(self._memory.used())
            self._memory.close()
        self._optimizer_step.close()

    def _tell_start(self) -> None:
        self._report(
            Started(
                pid=os.getpid(),
                node=self._launch.node,
                device=self._launch.device,
                resumed_from_step=self._step or None,
            )
        )

    def _tell_progress(self, speed: Speedometer) -> None:
        if self._told_step == self._step:
            return
        self._told_step = self._step
        steps_per_s, samples_per_s = speed.per_s()
        self._report(
            Progress(
                step=self._step,
                steps=self._steps,
                phase=self._phase,
                steps_per_s=steps_per_s,
                samples_per_s=samples_per_s,
            )
        )

    def _tell_loss(self, loss: float) -> None:
        self._last["loss"] = loss
        if point_is_due(self._step, self._steps):
            self._tell_metrics({"loss": loss})

    def _tell_metrics(self, values: dict[str, float]) -> None:
        self._last |= values
        self._report(Metrics(step=self._step, values=values, phase=self._phase))
        self._curves.add(self._step, values)

    def _validate(self) -> None:
        assert self._memory is not None
        with self._memory.evaluate():
            values = validate(self._workload, self._optimizer_step.precision)
        self._tell_metrics(values)
        self._report(self._memory.used())
        self._curves.flush()
        say(f"step {self._step}/{self._steps}{_shown(self._last)}")

    def _save(self) -> None:
        job_id, step = self._launch.job_id, self._step
        prefix = keys.checkpoint_prefix(job_id, step, self._launch.attempt)
        assert self._memory is not None
        with self._memory.staging() as make_room, self._state.staged(make_room) as parts:
            saved = checkpoint.save(self._storage, prefix, step, self._phase, parts)
        uri = self._storage.uri(prefix)
        self._report(
            CheckpointSaved(step=step, key=prefix, uri=uri, bytes=saved.bytes, phase=self._phase)
        )
        say(f"step {step}/{self._steps}  checkpoint {uri} ({format_bytes(saved.bytes)})")
        kept_in = keys.checkpoints_prefix(job_id)
        for removed in checkpoint.retain(self._storage, kept_in, self._train.checkpoint.keep):
            self._report(CheckpointRemoved(key=removed))
        self._curves.flush()


def workload_context(
    settings: Train, device: torch.device, params: object, threads: int
) -> WorkloadContext:
    """What a family's `build` is told. Raises UserError for a batch size that is none."""
    batch_size = _batch_size(params)
    if batch_size % settings.accumulate:
        raise UserError(
            f"params.batch_size: {batch_size} does not split into train.accumulate: "
            f"{settings.accumulate} equal parts; change one of them"
        )
    return WorkloadContext(
        train=settings,
        seed=settings.seed,
        device=device,
        global_batch=batch_size,
        micro_batch=batch_size // settings.accumulate,
        threads=threads,
        optimizer=partial(optimizers.build, settings.optimizer),
    )


def _device(name: str) -> torch.device:
    """`cpu:1` and `cuda:3` name devices of a node; this process is shown only its own."""
    return torch.device("cuda", 0) if name.startswith("cuda") else torch.device("cpu")


def _batch_size(params: object) -> int:
    size = getattr(params, "batch_size", None)
    if not isinstance(size, int) or size < 1:
        raise UserError(
            f"params.batch_size: {size} must be a whole number from 1: the samples of an optimizer "
            "step, over all devices together"
        )
    return size


def _is_due(step: int, every: int | None) -> bool:
    return every is not None and step % every == 0


def _shown(values: dict[str, float]) -> str:
    return "".join(f"  {name} {value:.4g}" for name, value in values.items())
