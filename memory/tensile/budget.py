"""A budget as people write it: bytes, a text such as `1.2GiB`, or a share of the forecast peak,
`0.6` or `60%`.
"""

from __future__ import annotations

import re

Budget = int | float | str | None

_UNITS = {
    "": 1,
    "B": 1,
    "BYTES": 1,
    "KB": 10**3,
    "MB": 10**6,
    "GB": 10**9,
    "TB": 10**12,
    "KIB": 2**10,
    "MIB": 2**20,
    "GIB": 2**30,
    "TIB": 2**40,
}
_SIZE = re.compile(r"\s*(\d+(?:\.\d+)?)\s*([A-Za-z]*)\s*")
_PERCENTAGE = re.compile(r"\s*(\d+(?:\.\d+)?)\s*%\s*")


class BudgetError(ValueError):
    """A budget that is no size; the message shows what was given and what can be written."""


def budget_bytes(budget: Budget, peak_bytes: int | None = None) -> int | None:
    """`budget` in bytes; None for none. A float in (0, 1], or a percentage as text, is a share of
    `peak_bytes`.

    Raises BudgetError for what is no size, and for a share where no peak is known.
    """
    if budget is None:
        return None
    if isinstance(budget, bool) or not isinstance(budget, (int, float, str)):
        raise BudgetError(_refusal(budget))
    share = _share(budget)
    if share is None:
        size_bytes = budget if isinstance(budget, int) else _text_bytes(str(budget))
        if size_bytes <= 0:
            raise BudgetError(_refusal(budget))
        return size_bytes
    if not 0 < share <= 1:
        raise BudgetError(_refusal(budget))
    if peak_bytes is None:
        raise BudgetError(
            f"budget {budget} is a share of the forecast peak, and no peak was forecast yet; "
            "call session.prepare(train_step, batch) first, or give bytes"
        )
    return int(share * peak_bytes)


def is_share(budget: Budget) -> bool:
    """Whether only a forecast peak says how many bytes it is."""
    return _share(budget) is not None


def format_bytes(size_bytes: int) -> str:
    """For people: `512 bytes`, `1.5 MiB`, `12.0 GiB`."""
    if size_bytes < 2**10:
        return f"{size_bytes} bytes"
    units = [(f"{name}iB", 2**power) for name, power in (("K", 10), ("M", 20), ("G", 30))]
    name, unit = max((u for u in units if u[1] <= size_bytes), key=lambda u: u[1])
    return f"{size_bytes / unit:.1f} {name}"


def at_least(size_bytes: int) -> str:
    """The same, rounded up: what it says is enough as a budget."""
    unit = 2 ** (10 * min(3, max(0, size_bytes.bit_length() - 1) // 10))
    tenths = -(-size_bytes * 10 // unit)
    return format_bytes(-(-tenths * unit // 10))


def _share(budget: Budget) -> float | None:
    if isinstance(budget, float):
        return budget
    match = _PERCENTAGE.fullmatch(budget) if isinstance(budget, str) else None
    return None if match is None else float(match[1]) / 100


def _text_bytes(text: str) -> int:
    """A fraction needs a unit: nobody means a part of a byte."""
    match = _SIZE.fullmatch(text)
    unit = _UNITS.get(match[2].upper()) if match else None
    if match is None or unit is None or (unit == 1 and "." in match[1]):
        raise BudgetError(_refusal(text))
    return int(float(match[1]) * unit)


def _refusal(budget: object) -> str:
    return (
        f"budget {budget!r} is no size; write bytes (1200000000), a text ('1.2GiB', '800MB'), "
        "a share of the forecast peak (0.6, '60%'), or None for no limit"
    )
