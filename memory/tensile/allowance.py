"""What a process takes beside its tensors while it trains under a budget: buffers of the threads,
fragments of the heap, stacks. A plan leaves it free; what is really taken is learnt.
"""

from __future__ import annotations

# Chosen, not fitted: a small model near its floor was seen to take five to eight MiB.
ALLOWANCE_BYTES = 8 * 2**20
ALLOWANCE_SHARE = 0.25  # … but no more of a small budget, …
TINY_BYTES = 4 * 2**20  # … and next to nothing of what a toy has
_TINY_SHARE = 0.04


def allowance_bytes(budget_bytes: int) -> int:
    """What a plan for `budget_bytes` leaves free."""
    tiny_bytes = min(budget_bytes, TINY_BYTES)
    more_bytes = budget_bytes - tiny_bytes
    return min(ALLOWANCE_BYTES, int(_TINY_SHARE * tiny_bytes + ALLOWANCE_SHARE * more_bytes))


def with_allowance(tensors_bytes: int) -> int:
    """A budget that has room for so many bytes of tensors beside its allowance."""
    of_tiny_bytes = min(tensors_bytes, int(TINY_BYTES * (1 - _TINY_SHARE)))
    more_bytes = tensors_bytes - of_tiny_bytes
    by_share = int(of_tiny_bytes / (1 - _TINY_SHARE) + more_bytes / (1 - ALLOWANCE_SHARE)) + 2
    return min(tensors_bytes + ALLOWANCE_BYTES, by_share)
