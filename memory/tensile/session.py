"""A session: training under a byte budget, bit for bit as if there were none."""

from __future__ import annotations

import os
import weakref
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from types import TracebackType
from typing import Self, TypeVar

import torch
from torch.optim import Optimizer
from torch.utils._pytree import tree_leaves

from tensile import names
from tensile.actions import PlanError
from tensile.adoption import Adoption
from tensile.budget import Budget, budget_bytes
from tensile.budget_in_force import BudgetInForce
from tensile.chunked_step import ChunkedStep, owned_by
from tensile.chunks import Chunk
from tensile.contents import Contents
from tensile.costs import Costs
from tensile.execution import Execution
from tensile.forecasting import Forecast
from tensile.lower_tier import TierError
from tensile.manageable import (
    SessionError,
    managed_device,
    refuse_shared,
    refuse_unmanageable,
)
from tensile.membership import Membership, from_environment
from tensile.module_hooks import ModuleHooks
from tensile.names import Models, Optimizers
from tensile.observer import Observer
from tensile.peaks import Peaks
from tensile.planning import Planning
from tensile.pressure import Pressure
from tensile.repetition import Repetition
from tensile.residency import Residency, storage_bytes
from tensile.snapshot import Snapshot
from tensile.stats import Counters, Stats
from tensile.tenancy import Tenancy
from tensile.watched_step import WatchedStep

SMALLEST_BYTES = 64 * 2**10

Batch = TypeVar("Batch")
Result = TypeVar("Result")
_running: weakref.WeakSet[Session] = weakref.WeakSet()


class Session:
    """`model` is a module or a mapping of modules, `optimizer` one or a sequence; `budget` is
    bytes, a text ("1.2GiB"), a share of the forecast peak (0.6 or "60%"; needs `prepare`), or None
    for no limit. Parameters that an optimizer gets later are taken in before they are stepped.

    On a device that other jobs use too, `lease` says where its broker is; without it, the process's
    environment does (`membership.py`). Then the budget is what the job may have at most, and what
    it has changes as others come and go.

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
        lease: Membership | None = None,
    ) -> None:
        self._inside: str | None = None
        self._closed = False
        self._forked = False
        self._roomy_bytes: int | None = None  # the budget for which the disk had room
        self._model, self._optimizer = model, optimizer
        self._optimizers = names.optimizers(optimizer)
        parameters, buffers = names.parameters(model, optimizer), names.buffers(model)
        modules = names.modules(model)
        self._device = managed_device(
            torch.device(device), folder, {**parameters, **buffers}, modules
        )
        self._parameters = parameters
        self._stepped = _count(self._optimizers)
        refuse_shared(
            self._optimizers, parameters, ((o._optimizers, o._parameters) for o in _running)
        )
        budget_bytes(budget, peak_bytes=1)  # raises for what is none, whatever the peak
        lease = lease or from_environment()

        self._counters = Counters()
        self._contents = Contents(self._device.swap_file, self._counters)
        self._residency = Residency(
            parameters=parameters,
            buffers=buffers,
            optimizers=self._optimizers,
            file=self._device.lasting_file,
            channel=self._device.swap_file,
            counters=self._counters,
            smallest_bytes=smallest_bytes,
        )
        self._gauge = self._device.gauge(self._residency.model_bytes)
        self._peaks = Peaks(self._gauge, self._counters)
        self._pressure = Pressure(self._gauge, self._contents, self._residency, self._counters)
        self._execution = Execution(
            contents=self._contents,
            residency=self._residency,
            pressure=self._pressure,
            counters=self._counters,
            smallest_bytes=smallest_bytes,
        )
        self._adoption = Adoption(
            modules=modules.items(),
            tier=self._device.tier,
            residency=self._residency,
            execution=self._execution,
            gauge=self._gauge,
            counters=self._counters,
        )
        self._observer = Observer(
            execution=self._execution,
            contents=self._contents,
            residency=self._residency,
            gauge=self._gauge,
            adoption=self._adoption,
            counters=self._counters,
        )
        self._watched_step = WatchedStep(
            execution=self._execution,
            residency=self._residency,
            adoption=self._adoption,
            observer=self._observer,
            counters=self._counters,
        )
        self._tenancy = None
        if lease is not None:
            self._tenancy = Tenancy(
                lease,
                adoption=self._adoption,
                device=self._device,
                gauge=self._gauge,
                pressure=self._pressure,
                residency=self._residency,
                counters=self._counters,
            )
        self._budget = BudgetInForce(
            budget,
            adoption=self._adoption,
            device=self._device,
            peaks=self._peaks,
            counters=self._counters,
            tenancy=self._tenancy,
        )
        self._hooks = ModuleHooks(modules, parameters, self._execution, self._is_active)
        self._chunked = ChunkedStep(
            self._optimizers, active=self._is_active, begin=self._begin_chunk, end=self._end_chunk
        )
        self._snapshot = Snapshot(
            modules.values(), parameters.values(), self._optimizers, lambda: self._chunked.begun
        )
        self._repetition = Repetition(self._snapshot, self.step, self._retreat)
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
        beside_bytes: int = 0,
    ) -> None:
        """Plan from a trace of `train_step(batch)`, so that the first step keeps the budget too.
        Called again for a batch of another shape, the session has a plan for each. `beside_bytes`
        is what the loop holds beside its step, such as batches that are loaded ahead.

        Nothing is computed and nothing changes. A step that cannot be traced is said in the notes;
        it is observed, and follows a plan from the third on. Raises PlanError for a budget below
        the floor, TierError where the disk has no room, and BudgetError for a share of a peak that
        cannot be foreseen.
        """
        self._require_open("prepare")
        if self._inside is not None:
            raise SessionError(f"prepare() inside a {self._inside} of the session; call it before")
        self._take_in()
        from tensile.recorder import TraceError

        if self._counters.steps == 0:
            away_bytes = self._residency.away_bytes(self._residency.away())
            leaves = (leaf for leaf in tree_leaves(batch) if isinstance(leaf, torch.Tensor))
            inputs_bytes = storage_bytes(t for t in leaves if t.layout == torch.strided)
            self._gauge.note_tensors(self._residency.model_bytes - away_bytes + inputs_bytes)
        try:
            with self._adoption.aside():
                from tensile.calibration import calibrate
                from tensile.tracing import trace

                costs = costs or calibrate(self._device.kind, folder=self._device.tier.folder)
                self._observer.costs = costs
                traced = trace(
                    train_step, self._model, self._optimizer, batch, beside_bytes=beside_bytes
                )
                planning = Planning(traced, costs)
        except TraceError as error:
            self._budget.do_without_forecast(str(error))
            self._counters.note(f"the step was not traced, so a real one is observed: {error}")
            return
        self._adoption.add(planning)
        for note in planning.trace.notes:
            self._counters.note(note)
        try:
            self._budget.plan()
        except PlanError as error:
            self._counters.note(
                f"{error} Steps taken nevertheless have no plan and do not keep the budget."
            )
            raise
        self._settle()
        if self._counters.steps == 0:
            self._gauge.forget_peak()  # what is there before a session is no part of its budget

    @contextmanager
    def step(self) -> Iterator[None]:
        """Around one training step. An exception inside leaves everything valid and usable."""
        limit = self._begin("step")
        watched = self._watches(limit)
        try:
            if watched:
                assert limit is not None
                self._budget.give_back_freed_memory()
                with self._watched_step.under(limit):
                    yield
            else:
                yield
        finally:
            self._inside = None
            self._pressure.rest(watched=watched)
            self._counters.steps += 1
            self._look_back(limit, watched=watched)

    def attempt(self, train_step: Callable[[Batch], Result], batch: Batch) -> Result:
        """`train_step(batch)` in a step; once more from the start if memory fails in it and it had
        not begun to write what lasts: no chunk of an optimizer, no gradient of an earlier step.
        Buffers, settings of the optimizers' groups and every generator are as before then, all that
        can leave has left, and the budget is one rung lower from there on (`step_down`).

        What the step changes in Python before its optimizer steps happens twice then. Raises
        StepOutOfMemory where memory fails again or something was written. Without a budget it is
        the step alone.
        """
        self._require_open("attempt")
        if self._budget.limit_bytes() is None:
            with self.step():
                return train_step(batch)
        return self._repetition.attempt(train_step, batch)

    @contextmanager
    def evaluate(self) -> Iterator[None]:
        """Around passes without gradients, such as a validation, inside the same budget."""
        limit = self._begin("evaluation")
        watched = self._watches(limit)
        try:
            with torch.no_grad():
                if watched:
                    self._budget.give_back_freed_memory()
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
            self._budget.give_back_freed_memory()
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
        if not self._closed:
            self._peaks.note()
        return self._counters.frozen(
            base_bytes=self._gauge.base_bytes,
            budget_bytes=self._pressure.limit_bytes,
            floor_bytes=self._adoption.known_floor_bytes,
        )

    @property
    def forecast(self) -> Forecast | None:
        """What `prepare` foresaw; None before it, and for a step that could not be traced."""
        return self._adoption.forecast

    def set_budget(self, budget: Budget) -> None:
        """From the next step on. Raises PlanError below the floor; the old budget stays then."""
        self._require_open("set_budget")
        self._budget.change(budget)
        self._settle()

    def step_down(self) -> int | None:
        """Where memory failed under the present budget: one rung of the ladder lower from the next
        step on, until `set_budget`. Answers its bytes; None where there is none, at the floor.
        """
        self._require_open("step_down")
        return self._budget.step_down()

    def close(self) -> None:
        """Everything back into ordinary memory; the model trains on as if nothing had been. On a
        device that is shared it stays below instead, and comes when it is touched.
        """
        if self._closed:
            return
        if self._inside is not None:
            raise SessionError(f"close() inside a {self._inside} of the session; leave it first")
        self._peaks.note()
        self._closed = True
        _running.discard(self)
        self._hooks.remove()
        self._chunked.remove()
        self._adoption.close()
        if self._tenancy is None:
            self._residency.go_home()
        else:
            self._tenancy.close()
        self._device.close()
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
        self._take_in()
        limit = self._budget.follow(what)
        self._adoption.take_better()
        self._pressure.limit_bytes = limit
        if limit is not None and limit != self._roomy_bytes:
            needed_bytes = self._adoption.lower_bytes or self._residency.lasting_bytes
            self._device.tier.require_room(max(0, needed_bytes - self._device.lasting_file.bytes))
            self._roomy_bytes = limit
        self._inside = what
        return limit

    def _watches(self, limit: int | None) -> bool:
        """Nothing is watched where nothing can happen: no budget, or a peak that is below it. On a
        device that is shared no forecast is relied on: the bytes beside are another's.
        """
        if limit is None or self._forked:
            return False
        is_shared = self._tenancy is not None
        return is_shared or self._peaks.exceeded or not self._adoption.is_idle

    def _look_back(self, limit: int | None, *, watched: bool) -> None:
        over_bytes = self._budget.look_back(limit, watched=watched)
        if over_bytes > 0:
            self._pressure.learn(over_bytes)

    def _settle(self) -> None:
        """A plan or a budget is new: what was freed waits as it may under that one."""
        limit = self._budget.limit_bytes()
        self._pressure.limit_bytes = limit
        self._pressure.rest(watched=self._watches(limit))

    def _is_active(self) -> bool:
        return self._inside is not None and self._execution.is_running

    def _take_in(self) -> None:
        """Parameters that an optimizer got since; plans know nothing of them yet."""
        if _count(self._optimizers) == self._stepped:
            return
        known = {id(parameter) for parameter in self._parameters.values()}
        found = names.parameters(self._model, self._optimizer)
        new = {name: each for name, each in found.items() if id(each) not in known}
        refuse_unmanageable(self._device, new, self._parameters)
        self._parameters = {**self._parameters, **new}
        self._residency.take_in(new)
        self._hooks.take_in(names.modules(self._model), self._parameters)
        self._snapshot.take_in(new.values())
        self._stepped = _count(self._optimizers)
        self._counters.note(
            "an optimizer has got parameters that the session's plans do not know; call prepare "
            "again, or steps are observed until one does"
        )

    def _begin_chunk(self, number: int, chunk: Chunk) -> None:
        self._take_in()
        self._execution.begin_chunk(number, owned_by(self._optimizers, chunk))

    def _end_chunk(self, number: int, chunk: Chunk) -> None:
        self._execution.end_chunk(number, owned_by(self._optimizers, chunk))

    def _retreat(self) -> None:
        """After a step that found no memory: all that can leave does, and a lower rung follows."""
        self._peaks.exceeded = True
        self._budget.give_back_freed_memory()
        with suppress(TierError):  # what has left is what counts
            self._residency.evict_everything()
        self._pressure.empty(frozenset())
        self._budget.step_down()

    def _require_open(self, what: str) -> None:
        if self._closed:
            raise SessionError(f"{what} after close(): make a new session")


def _count(optimizers: tuple[Optimizer, ...]) -> int:
    return sum(len(group["params"]) for each in optimizers for group in each.param_groups)


def _no_limit(size_bytes: int) -> None:
    """There is room for everything."""


def _in_child() -> None:
    """A forked child shares the mapped pages with its parent; it manages nothing of its own."""
    for session in _running:
        session._forked = True
        session._execution.stop()
        session._contents.in_child()
        if session._tenancy is not None:
            session._tenancy.in_child()


os.register_at_fork(after_in_child=_in_child)
