"""What the job's `memory` asks for, around each training step: nothing, or a tensile session under
the job's budget and, on a device that is shared, under what its broker leaves it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import TypeVar

import torch

import tensile
from dovetail_jobs.errors import UserError
from dovetail_jobs.spec import JobSpec
from dovetail_jobs.units import format_bytes
from dovetail_workers.out_of_memory import OutOfMemory
from dovetail_workers.reports import MemoryUsed
from dovetail_workers.storage.protocol import StorageError
from tensile import resident
from tensile.contents import is_out_of_memory
from tensile.membership import from_environment

RUNGS = 3
_ADVICE = (
    "end what else runs on this device, reserve more with resources.memory, or lower memory.budget"
)
_UNMANAGED = "memory: {policy: tensile} runs a job under less than it would take by itself"

Batch = TypeVar("Batch")
Given = TypeVar("Given")


class MemoryPolicy:
    """Made when the models stand and before the first step; closed after the last."""

    def __init__(
        self,
        spec: JobSpec,
        device: torch.device,
        device_bytes: int,
        models: Mapping[str, torch.nn.Module],
        optimizers: Mapping[str, torch.optim.Optimizer],
        base: resident.Resident | None,
        say: Callable[[str], None] = print,
        cap_bytes: int | None = None,
    ) -> None:
        self._base = base
        self._say = say
        self._rungs_left = RUNGS
        self._session: tensile.Session | None = None
        self._forecast_bytes: int | None = None
        self._limit_bytes: int | None = None
        self._budget_bytes: int | None = None
        self._is_shared = False
        if spec.memory.policy == "none":
            return
        self._wanted = spec.memory.budget
        with _refused():
            lease = from_environment(say=lambda sentence: say(f"memory: {sentence}"))
            self._is_shared = lease is not None
            # a lease is never more than the device, so only what the user said bounds it
            whole_bytes = None if self._is_shared else device_bytes
            has_all = cap_bytes is not None and cap_bytes >= device_bytes
            self._limit_bytes = _limit(spec, whole_bytes, cap_bytes, has_all=has_all)
            self._budget_bytes = self._limit_bytes
            self._session = tensile.Session(
                dict(models), list(optimizers.values()), self._limit_bytes, device, lease=lease
            )

    def prepare(
        self, train_step: Callable[[Batch], object], batch: Batch, beside_bytes: int = 0
    ) -> None:
        """Plan before the first step of a loop that holds `beside_bytes` more; on a device that is
        shared, wait until there is room for the least that a plan takes. Raises UserError for a
        budget that no plan keeps, and OutOfMemory for a device that will never have that room.
        """
        session = self._session
        if session is None:
            return
        with _refused():
            session.prepare(train_step, batch, beside_bytes=beside_bytes)
            forecast = session.forecast
            if forecast is None:
                return
            self._forecast_bytes = forecast.peak_bytes
            if isinstance(self._wanted, str) and self._wanted.endswith("%"):
                share = float(self._wanted[:-1]) / 100
                budget_bytes = int(share * forecast.peak_bytes)
                if self._limit_bytes is not None:
                    budget_bytes = min(self._limit_bytes, budget_bytes)
                session.set_budget(budget_bytes)
                self._budget_bytes = budget_bytes

    def attempt(self, step: Callable[[], object]) -> None:
        """One training step. If memory fails in it before anything that lasts was written, it is
        taken again one rung lower, over the whole run as often as `RUNGS` at most. Raises
        OutOfMemory where that does not help.
        """
        session = self._session
        if session is None:
            with _sustained(nullcontext(), _UNMANAGED):
                step()
            return
        while True:
            with _sustained(nullcontext()):
                try:
                    session.attempt(lambda _: step(), None)
                    return
                except tensile.StepOutOfMemory as error:
                    undone, sentence = error.undone, str(error)
            lower = session.step_down() if undone and self._rungs_left > 0 else None
            if lower is None:
                raise OutOfMemory(f"{sentence}; {_ADVICE}")
            self._rungs_left -= 1
            self._say(
                f"memory: a step found none, so it is taken again under {format_bytes(lower)}, one "
                "rung lower"
            )

    def evaluate(self) -> AbstractContextManager[None]:
        if self._session is None:
            return _sustained(nullcontext(), _UNMANAGED)
        return _sustained(self._session.evaluate())

    def staging(self) -> AbstractContextManager[Callable[[int], None]]:
        """Around a checkpoint that is written or loaded: gives what makes room for so many bytes
        before they are touched.
        """
        if self._session is None:
            return nullcontext(_no_limit)
        return _sustained(self._session.staging())

    def used(self) -> MemoryUsed:
        """What was needed so far."""
        if self._session is not None:
            stats = self._session.stats()
            return MemoryUsed(
                base_bytes=stats.base_bytes,
                peak_bytes=stats.peak_bytes,
                forecast_bytes=self._forecast_bytes,
                budget_bytes=stats.budget_bytes if self._is_shared else self._budget_bytes,
                swapped_out_bytes=stats.swapped_out_bytes,
                swapped_in_bytes=stats.swapped_in_bytes,
                recomputed_bytes=stats.recomputed_bytes,
                passive_fetches=stats.passive_fetches,
                stall_s=stats.stall_s,
                replans=stats.replans,
            )
        if self._base is None:
            return MemoryUsed()
        return MemoryUsed(
            base_bytes=self._base.total_bytes, peak_bytes=resident.peak_growth_bytes(self._base)
        )

    def notes(self) -> tuple[str, ...]:
        return self._session.stats().notes if self._session is not None else ()

    def close(self) -> None:
        if self._session is not None:
            self._session.close()


def _no_limit(size_bytes: int) -> None:
    """There is room for everything."""


def _limit(
    spec: JobSpec, device_bytes: int | None, cap_bytes: int | None, *, has_all: bool = False
) -> int | None:
    """What admission reserves, and never more than the job asks tensile to plan under, nor more
    than `cap_bytes`; of a device of so many bytes, or of one whose broker says how many. One that
    was given all of it may use that, whatever it declares.
    """
    reserved = None if has_all else spec.resources.memory
    limits = [
        limit for limit in (reserved, spec.memory.budget, cap_bytes) if isinstance(limit, int)
    ]
    if device_bytes is not None and not isinstance(reserved, int):
        limits.append(device_bytes)
    return min(limits, default=None)


@contextmanager
def _sustained(passage: AbstractContextManager[Given], advice: str = _ADVICE) -> Iterator[Given]:
    """A lower tier that gives out in the middle is a storage that refuses; memory that does is said
    in a sentence.
    """
    try:
        with passage as given:
            yield given
    except (MemoryError, RuntimeError, OSError) as error:
        if is_out_of_memory(error) or isinstance(error, tensile.LeaseRefused):
            raise OutOfMemory(f"{error}; {advice}") from error
        if isinstance(error, tensile.TierError):
            raise StorageError(f"memory.policy: tensile  {error.strerror}") from error
        raise


@contextmanager
def _refused() -> Iterator[None]:
    """What tensile refuses is for the user to mend; a device that is too small is for admission."""
    try:
        yield
    except (tensile.PlanError, tensile.BudgetError) as error:
        raise UserError(f"memory.budget: {error}") from None
    except tensile.LeaseRefused as error:
        raise OutOfMemory(str(error)) from None
    except (tensile.TierError, tensile.SessionError) as error:
        sentence = error.strerror if isinstance(error, tensile.TierError) else error
        raise UserError(f"memory.policy: tensile  {sentence}") from None
