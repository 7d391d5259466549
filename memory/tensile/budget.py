"""A budget as people write it: bytes, a text such as `1.2GiB`, or a share of the forecast peak (0.6
or `60%`).
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
_LEAST_BYTES = 2**10  # of a text without a unit: "1.5" was meant to be something else
_SHARE = re.compile(r"\s*(\d+(?:\.\d+)?)\s*%\s*")
_SIZE = re.compile(r"\s*(\d+(?:\.\d+)?)\s*([A-Za-z]*)\s*")


class BudgetError(ValueError):
    """A budget that is no size; the message shows what was given and what can be written."""


def share_of(budget: Budget) -> float | None:
    """The share of the forecast peak that is asked for; None for anything else.

    Raises BudgetError for a share outside of (0, 1], also in per cent.
    """
    share = budget if isinstance(budget, float) else None
    if isinstance(budget, str) and (match := _SHARE.fullmatch(budget)):
        share = float(match[1]) / 100
    if share is not None and not 0 < share <= 1:
        raise BudgetError(_refusal(budget))
    return share


def budget_bytes(budget: Budget, peak_bytes: int | None = None) -> int | None:
    """`budget` in bytes; None for none. A float in (0, 1], or a text in per cent, is a share of
    `peak_bytes`.

    Raises BudgetError for what is no size, and for a share where no peak is known.
    """
    if budget is None:
        return None
    if isinstance(budget, bool) or not isinstance(budget, (int, float, str)):
        raise BudgetError(_refusal(budget))
    share = share_of(budget)
    if share is None:
        if isinstance(budget, str):
            return _text_bytes(budget)
        if budget <= 0:
            raise BudgetError(_refusal(budget))
        return int(budget)
    if peak_bytes is None:
        raise BudgetError(
            f"budget {budget} is a share of the forecast peak, and no peak was forecast yet; "
            "call session.prepare(train_step, batch) first, or give bytes"
        )
    return int(share * peak_bytes)


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


def _text_bytes(text: str) -> int:
    match = _SIZE.fullmatch(text)
    unit = _UNITS.get(match[2].upper()) if match else None
    if match is None or unit is None or (size_bytes := int(float(match[1]) * unit)) <= 0:
        raise BudgetError(_refusal(text))
    if not match[2] and size_bytes < _LEAST_BYTES:
        raise BudgetError(
            f"budget {text!r} has no unit and would be {size_bytes} bytes, which nothing fits; "
            f"write '{text.strip()}GiB', or a share of the forecast peak (0.6 or '60%')"
        )
    return size_bytes


def _refusal(budget: object) -> str:
    return (
        f"budget {budget!r} is no size; write bytes (1200000000), a text ('1.2GiB', '800MB'), "
        "a share of the forecast peak (0.6 or '60%'), or None for no limit"
    )
