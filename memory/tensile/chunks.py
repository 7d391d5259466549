"""In which pieces the optimizer's step runs, so that only one piece's gradients and states are
needed at a time. Tracing and executing share this rule, so both count the same chunks. No torch.

A chunk runs as the optimizer's own `step` while it believes to own the chunk's parameters only.
That gives the same bits for optimizers that treat each parameter alone; others run as one chunk.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch.optim import Optimizer

CHUNK_BYTES = 16 * 2**20  # at most …
_PIECES = 8  # … and about a piece of the model, …
_FEWEST_BYTES = 2**20  # … but below this a call takes longer than its work
# LBFGS looks at all parameters together; SparseAdam and Muon refuse some kinds of them. A subclass
# may override `step` with anything, so only the classes themselves are known.
PER_PARAMETER = frozenset(
    f"torch.optim.{name.lower()}.{name}"
    for name in (
        *("Adadelta", "Adagrad", "Adam", "Adamax", "AdamW", "ASGD"),
        *("NAdam", "RAdam", "RMSprop", "Rprop", "SGD"),
    )
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Chunk:
    """Parameters `start` to `stop` (exclusive) of group `group` of optimizer number `optimizer`.

    `group` is None for a step that is not divided: every parameter of every group.
    """

    optimizer: int
    group: int | None
    start: int
    stop: int


def chunks(optimizers: Sequence[Optimizer]) -> tuple[Chunk, ...]:
    """All chunks, in the order in which the optimizers and their groups are given.

    Neighbours in a group share a chunk while their bytes stay within `CHUNK_BYTES`, or an eighth of
    all parameters where that is less: what a chunk needs at once, states and all, is the floor of a
    small model.
    """
    found = []
    most_bytes = _most_bytes(optimizers)
    for number, optimizer in enumerate(optimizers):
        if not is_chunkable(optimizer):
            count = sum(len(group["params"]) for group in optimizer.param_groups)
            found.append(Chunk(optimizer=number, group=None, start=0, stop=count))
            continue
        for group_number, group in enumerate(optimizer.param_groups):
            sizes = [parameter.numel() * parameter.element_size() for parameter in group["params"]]
            found += [
                Chunk(optimizer=number, group=group_number, start=start, stop=stop)
                for start, stop in _runs(sizes, most_bytes)
            ]
    return tuple(found)


def is_chunkable(optimizer: Optimizer) -> bool:
    """Whether running `step` in chunks gives the same bits, seen as one step from outside.

    Hooks of the step would see several steps, so an optimizer with hooks is not chunked.
    """
    kind = type(optimizer)
    hooked = optimizer._optimizer_step_pre_hooks or optimizer._optimizer_step_post_hooks
    return f"{kind.__module__}.{kind.__qualname__}" in PER_PARAMETER and not hooked


@contextmanager
def narrowed(optimizer: Optimizer, chunk: Chunk) -> Iterator[None]:
    """Within it the optimizer owns the chunk's parameters only; afterwards all of them again."""
    if chunk.group is None:
        yield
        return
    groups = optimizer.param_groups
    group = groups[chunk.group]
    parameters = group["params"]
    group["params"] = parameters[chunk.start : chunk.stop]
    optimizer.param_groups = [group]
    try:
        yield
    finally:
        group["params"] = parameters
        optimizer.param_groups = groups


def _most_bytes(optimizers: Sequence[Optimizer]) -> int:
    total_bytes: int = sum(
        parameter.numel() * parameter.element_size()
        for optimizer in optimizers
        for group in optimizer.param_groups
        for parameter in group["params"]
    )
    return min(CHUNK_BYTES, max(_FEWEST_BYTES, total_bytes // _PIECES))


def _runs(sizes_bytes: Sequence[int], most_bytes: int) -> Iterator[tuple[int, int]]:
    """Consecutive ranges that hold at most `most_bytes`, or a single larger item."""
    start = 0
    total_bytes = 0
    for index, size_bytes in enumerate(sizes_bytes):
        if index > start and total_bytes + size_bytes > most_bytes:
            yield start, index
            start, total_bytes = index, 0
        total_bytes += size_bytes
    if start < len(sizes_bytes):
        yield start, len(sizes_bytes)
