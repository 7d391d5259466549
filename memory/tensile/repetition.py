"""A step that found no memory, taken once more from the start, where that changes no bit."""

from __future__ import annotations

import gc
from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import TypeVar

from tensile.contents import is_out_of_memory
from tensile.snapshot import Snapshot

Batch = TypeVar("Batch")
Result = TypeVar("Result")


class StepOutOfMemory(MemoryError):
    """A step found no memory, though everything had left that could. All tensors are valid.

    `undone`: everything is as it was before the step, the generators too, so the step can be taken
    again. Otherwise it had begun to write what lasts.
    """

    def __init__(self, message: str, *, undone: bool) -> None:
        super().__init__(message)
        self.undone = undone


class Repetition:
    """`step()` is what a step runs in; `retreat()` makes room between the two tries."""

    def __init__(
        self,
        snapshot: Snapshot,
        step: Callable[[], AbstractContextManager[None]],
        retreat: Callable[[], None],
    ) -> None:
        self._snapshot = snapshot
        self._step = step
        self._retreat = retreat

    def attempt(self, train_step: Callable[[Batch], Result], batch: Batch) -> Result:
        """`train_step(batch)`, at most twice. Raises StepOutOfMemory, and whatever else it does."""
        for is_last in (False, True):
            self._snapshot.take(train_step)
            try:
                with self._step():
                    return train_step(batch)
            except (MemoryError, RuntimeError, OSError) as error:
                if not is_out_of_memory(error):
                    raise
                undone = self._snapshot.undo()
                if is_last or not undone:
                    raise StepOutOfMemory(_sentence(error, undone), undone=undone) from error
            gc.collect()  # the frames of the failure are gone, and with them what they held
            self._retreat()
        raise AssertionError("the last try returns or raises")


def _sentence(error: BaseException, undone: bool) -> str:
    cause = str(error).strip().splitlines() or [type(error).__name__]
    if undone:
        return f"the step found no memory, also after everything left that could: {cause[-1]}"
    return (
        "the step found no memory when it had begun to write parameters, gradients of earlier "
        f"steps or large buffers, so it was not taken again: {cause[-1]}"
    )
