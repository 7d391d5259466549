"""What a process takes beside its tensors while it trains under a budget: buffers of the threads,
fragments of the heap, stacks. A plan leaves it free; what is really taken is learnt.
"""

from __future__ import annotations

# Chosen, not fitted: near the floor of a small model a process was seen to take more.
ALLOWANCE_BYTES = 5 * 2**20
ALLOWANCE_SHARE = 0.04  # … but no more of a small budget


def allowance_bytes(budget_bytes: int) -> int:
    """What a plan for `budget_bytes` leaves free."""
    return min(ALLOWANCE_BYTES, int(budget_bytes * ALLOWANCE_SHARE))


def with_allowance(tensors_bytes: int) -> int:
    """A budget that has room for so many bytes of tensors beside its allowance."""
    by_share = int(tensors_bytes / (1 - ALLOWANCE_SHARE)) + 1
    return min(tensors_bytes + ALLOWANCE_BYTES, by_share)
