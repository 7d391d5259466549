"""What operators take beside the tensors that are seen: scratch memory of their libraries.

Filled in below with what was measured; an operator that is not named takes nothing.
"""

from __future__ import annotations

from typing import Any

from torch._ops import OpOverload


def workspace_bytes(
    func: OpOverload, args: tuple[Any, ...], kwargs: dict[str, Any], result: object
) -> int:
    return 0


def hidden_result_bytes(func: OpOverload, args: tuple[Any, ...]) -> tuple[int, int] | None:
    return None
