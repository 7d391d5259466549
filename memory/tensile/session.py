"""A session: training under a byte budget, bit for bit as if there were none."""

from __future__ import annotations

import os
import time
import weakref
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import TracebackType
from typing import Self, TypeVar

import torch
from torch.autograd.graph import saved_tensors_hooks

from tensile import freed_memory, names
from tensile.adoption import Adoption
from tensile.budget import Budget, budget_bytes
from tensile.chunked_step import ChunkedStep, owned_by
from tensile.chunks import Chunk
from tensile.contents import Contents
from tensile.costs import Costs
from tensile.execution import Execution
from tensile.forecasting import Forecast
from tensile.gauge import Gauge
from tensile.lasting_file import LastingFile
from tensile.lower_tier import LowerTier
from tensile.module_hooks import ModuleHooks
from tensile.names import Models, Optimizers
from tensile.planning import Planning
from tensile.pressure import Pressure
from tensile.residency import Residency
from tensile.stats import Counters, Stats
from tensile.swap_file import SwapFile

_FIRST_PASSES = 3  # later ones load no more libraries
_SELDOM = 16
SMALLEST_BYTES = 64 * 2**10

Batch = TypeVar("Batch")
_running: weakref.WeakSet[Session] = weakref.WeakSet()


class SessionError(RuntimeError):
    """A session was used in a way that cannot work; the message says which and what would."""


class Session:
    """`model` is a module or a mapping of modules, `optimizer` one or a sequence; `budget` is
    bytes, a text ("1.2GiB"), a share of the forecast peak (0.6; needs `prepare`), or None for no
    limit.

    What leaves the device goes to `folder`, on a real file system (`$TENSILE_FOLDER`, or a folder
    of the user's cache). Storages below `smallest_bytes` never move.

    Raises BudgetError for a budget that is no size, TierError for a folder that cannot be used, and
    SessionError for a model on another device or one that has a session already.
    """

    def __init__(
        self,
        model: Models,
        optimizer: Optimizers,
        budget: Budget = None,
        device: str | torch.device = "cpu",
        folder: str | os.PathLike[str] | None = None,
        *,
        smallest_bytes: int = SMALLEST_BYTES,
    ) -> None:
        self._inside: str | None = None
        self._closed = False
        self._forked = False
        self._model, self._optimizer = model, optimizer
        self._optimizers = names.optimizers(optimizer)
        parameters, buffers = names.parameters(model, optimizer), names.buffers(model)
        _check_device(torch.device(device), {**parameters, **buffers})
        for other in _running:
            if any(mine is theirs for mine in self._optimizers for theirs in other._optimizers):
                raise SessionError(
                    "this optimizer has a session already; close that one first, or use it"
                )
        self._budget: Budget = budget
        if not isinstance(budget, float):
            budget_bytes(budget)
        elif not 0 < budget <= 1:
            budget_bytes(budget, 1)

        self._counters = Counters()
        self._tier = LowerTier(folder)
        self._swap_file = SwapFile(self._tier)
        self._lasting_file = LastingFile(self._tier)
        self._contents = Contents(self._swap_file, self._counters)
        self._residency = Residency(
            parameters=parameters,
            buffers=buffers,
            optimizers=self._optimizers,
            file=self._lasting_file,
            channel=self._swap_file,
            counters=self._counters,
            smallest_bytes=smallest_bytes,
        )
        self._gauge = Gauge(self._residency.lasting_bytes, self._tier.folder)
        self._pressure = Pressure(self._gauge, self._contents, self._residency)
        self._execution = Execution(
            contents=self._contents,
            residency=self._residency,
            pressure=self._pressure,
            counters=self._counters,
            smallest_bytes=smallest_bytes,
        )
        self._adoption = Adoption(
            modules=names.modules(model).items(),
            tier=self._tier,
            residency=self._residency,
            execution=self._execution,
            counters=self._counters,
        )
        self._exceeded = False
        self._passes = 0
        self._hooks = ModuleHooks(
            names.modules(model), parameters, self._execution, self._is_active
        )
        self._chunked = ChunkedStep(
            self._optimizers, active=self._is_active, begin=self._begin_chunk, end=self._end_chunk
        )
        self._chunked.install()
        for sentence in self._chunked.whole():
            self._counters.note(sentence)
        _running.add(self)

    # the public contract

    def prepare(
        self,
        train_step: Callable[[Batch], object],
        batch: Batch,
        *,
        costs: Costs | None = None,
    ) -> None:
        """Plan from a trace of `train_step(batch)`, so that the first step keeps the budget too.
        Called again for a batch of another shape, the session has a plan for each.

        Nothing is computed and nothing changes. A step that cannot be traced is said in the notes,
        and runs without a plan. Raises PlanError for a budget below the floor, and TierError where
        the disk has no room.
        """
        self._require_open("prepare")
        if self._inside is not None:
            raise SessionError(f"prepare() inside a {self._inside} of the session; call it before")
        from tensile.recorder import TraceError

        try:
            with self._gauge.aside():
                planning = Planning.of(
                    train_step, self._model, self._optimizer, batch, costs, self._tier.folder
                )
        except TraceError as error:
            self._counters.note(f"the step was not traced, so it runs without a plan: {error}")
            return
        self._adoption.add(planning)
        for note in planning.trace.notes:
            self._counters.note(note)
        self._replan()

    @contextmanager
    def step(self) -> Iterator[None]:
        """Around one training step. An exception inside leaves everything valid and usable."""
        limit = self._begin("step")
        watched = self._watches(limit)
        try:
            if watched:
                with self._watched():
                    yield
            else:
                yield
        finally:
            self._inside = None
            self._pressure.rest(watched=watched)
            self._counters.steps += 1
            self._look_back(limit, watched=watched)

    @contextmanager
    def evaluate(self) -> Iterator[None]:
        """Around passes without gradients, such as a validation, inside the same budget."""
        limit = self._begin("evaluation")
        watched = self._watches(limit)
        try:
            with torch.no_grad():
                if watched:
                    self._return_freed_memory()
                    self._execution.begin()
                yield
        finally:
            self._execution.stop()
            self._inside = None
            self._look_back(limit, watched=watched)

    @contextmanager
    def staging(self) -> Iterator[Callable[[int], None]]:
        """Around ordinary code between steps that goes through parameters and states one by one,
        such as a checkpoint that is written or loaded, inside the same budget.

        It gives `make_room(bytes)`, to be called before so many bytes are read or written.
        """
        limit = self._begin("staging")
        watched = self._watches(limit)
        try:
            if not watched:
                yield _no_limit
                return
            self._return_freed_memory()
            here = self._residency.here()
            try:
                yield self._pressure.clear
            finally:
                self._pressure.bring_back(here)
        finally:
            self._inside = None
            self._look_back(limit, watched=watched)

    def stats(self) -> Stats:
        """Totals so far."""
        self._note_peak()
        return self._counters.frozen(
            base_bytes=self._gauge.base_bytes, budget_bytes=self._pressure.limit_bytes
        )

    @property
    def forecast(self) -> Forecast | None:
        """What `prepare` foresaw; None before it, and for a step that could not be traced."""
        return self._adoption.forecast

    def set_budget(self, budget: Budget) -> None:
        """From the next step on. Raises PlanError below the floor; the old budget stays then."""
        self._require_open("set_budget")
        before = self._budget
        self._budget = budget
        try:
            self._limit()
            if self._adoption.forecast is not None:
                self._replan()
                self._counters.replans += 1
        except ValueError:
            self._budget = before
            raise

    def close(self) -> None:
        """Everything back into ordinary memory; the model trains on as if nothing had been."""
        if self._closed:
            return
        if self._inside is not None:
            raise SessionError(f"close() inside a {self._inside} of the session; leave it first")
        self._note_peak()
        self._closed = True
        _running.discard(self)
        self._hooks.remove()
        self._chunked.remove()
        self._adoption.close()
        self._residency.go_home()
        freed_memory.let_wait(None)
        self._lasting_file.close()
        self._swap_file.close()
        self._gauge.close()

    def __enter__(self) -> Self:
        self._require_open("with")
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    # one step

    def _begin(self, what: str) -> int | None:
        self._require_open(what)
        if self._inside is not None:
            raise SessionError(f"a {what} inside a {self._inside}: a session runs one at a time")
        self._adoption.take_better()
        limit = self._limit()
        self._pressure.limit_bytes = limit
        if limit is not None and self._counters.steps == 0:
            self._tier.require_room(self._adoption.lower_bytes or self._residency.lasting_bytes)
        self._inside = what
        return limit

    @contextmanager
    def _watched(self) -> Iterator[None]:
        schedules, counters = self._adoption.schedules, self._counters
        self._return_freed_memory()
        if not schedules:
            counters.note(
                "a step without a plan keeps the budget as well as it can; prepare(...) makes one"
            )
        begin_s, stall_s = time.perf_counter(), counters.stall_s
        passive, back = counters.passive_fetches, counters.fetches
        self._residency.register()
        saved = self._execution.saved
        try:
            self._execution.begin(*schedules)
            with saved_tensors_hooks(saved.pack, saved.unpack):
                yield
            self._execution.end()
            if self._execution.is_followed:
                self._adoption.observe(
                    time.perf_counter() - begin_s - (counters.stall_s - stall_s),
                    (counters.passive_fetches - passive) / max(counters.fetches - back, 1),
                )
        finally:
            self._execution.stop()

    def _watches(self, limit: int | None) -> bool:
        """Nothing is watched where nothing can happen: no budget, or a peak that is below it."""
        if limit is None or self._forked:
            return False
        return self._exceeded or not self._adoption.is_idle

    def _look_back(self, limit: int | None, *, watched: bool) -> None:
        """After a pass. Where nothing was watched, the peak is looked at now and then only: the
        system keeps it, and asking takes time.
        """
        self._passes += 1
        if not watched and self._passes % _SELDOM != 1:
            return
        if watched and self._passes <= _FIRST_PASSES:
            self._gauge.note_libraries()
        before_bytes = self._counters.peak_bytes
        self._note_peak()
        over_bytes = 0 if limit is None else self._counters.peak_bytes - limit
        if over_bytes > 0:
            self._exceeded = True
            if self._counters.peak_bytes > before_bytes:
                self._pressure.learn(over_bytes)

    def _return_freed_memory(self) -> None:
        slow = freed_memory.return_it()
        if slow is not None:
            self._counters.note(slow)

    def _note_peak(self) -> None:
        if not self._closed:
            peak = self._gauge.peak_bytes()
            self._counters.peak_bytes = max(self._counters.peak_bytes, peak)

    def _is_active(self) -> bool:
        return self._inside is not None and self._execution.is_running

    def _begin_chunk(self, number: int, chunk: Chunk) -> None:
        self._execution.begin_chunk(number, owned_by(self._optimizers, chunk))

    def _end_chunk(self, number: int, chunk: Chunk) -> None:
        self._execution.end_chunk(number, owned_by(self._optimizers, chunk))

    # plans

    def _limit(self) -> int | None:
        forecast = self._adoption.forecast
        return budget_bytes(self._budget, None if forecast is None else forecast.peak_bytes)

    def _replan(self) -> None:
        limit = self._limit()
        if limit is not None:
            self._return_freed_memory()
        self._adoption.plan(limit)
        self._pressure.limit_bytes = limit
        self._pressure.rest(watched=self._watches(limit))

    def _require_open(self, what: str) -> None:
        if self._closed:
            raise SessionError(f"{what} after close(): make a new session")


def _no_limit(size_bytes: int) -> None:
    """There is room for everything."""


def _check_device(device: torch.device, tensors: dict[str, torch.Tensor]) -> None:
    if device.type != "cpu":
        raise SessionError(f"device {device} is not managed here yet; use device='cpu'")
    for name, tensor in tensors.items():
        if tensor.device.type != device.type:
            raise SessionError(
                f"{name} is on {tensor.device} and the session on {device}; move the model, or "
                "name its device with device=..."
            )


def _in_child() -> None:
    """A forked child shares the mapped pages with its parent; it manages nothing of its own."""
    for session in _running:
        session._forked = True
        session._execution.stop()
        session._contents.in_child()


os.register_at_fork(after_in_child=_in_child)
