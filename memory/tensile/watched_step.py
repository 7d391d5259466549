"""One step with every hook in place, from its first moment to what is learnt after its last."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager

from torch.autograd.graph import saved_tensors_hooks

from tensile.adoption import Adoption
from tensile.execution import Execution
from tensile.observer import Observer
from tensile.residency import Residency
from tensile.stats import Counters


class WatchedStep:
    """Follows a plan if there is one, or is observed so that there is one for the next."""

    def __init__(
        self,
        *,
        execution: Execution,
        residency: Residency,
        adoption: Adoption,
        observer: Observer,
        counters: Counters,
    ) -> None:
        self._execution = execution
        self._residency = residency
        self._adoption = adoption
        self._observer = observer
        self._counters = counters

    @contextmanager
    def under(self, limit_bytes: int) -> Iterator[None]:
        """Around the step. What is saved stays valid for as long as its graph lives."""
        schedules, counters = self._adoption.schedules, self._counters
        if not schedules:
            counters.note(
                "the first steps have no plan and keep the budget as well as they can; "
                "prepare(...) makes one before the first"
            )
        completed = False
        begin_s, stall_s = time.perf_counter(), counters.stall_s
        passive, back = counters.passive_fetches, counters.fetches
        self._residency.register()
        saved = self._execution.saved
        try:
            is_observed = self._observer.begin()
            self._execution.begin(*(() if is_observed else schedules))
            with saved_tensors_hooks(saved.pack, saved.unpack):
                yield
            self._execution.end()
            completed = True
            if self._execution.is_followed:
                self._adoption.observe(
                    time.perf_counter() - begin_s - (counters.stall_s - stall_s),
                    (counters.passive_fetches - passive) / max(counters.fetches - back, 1),
                )
        finally:
            self._execution.stop()
            self._observer.end(limit_bytes, completed=completed)
