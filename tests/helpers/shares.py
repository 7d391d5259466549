"""How evenly something is shared."""

from collections.abc import Sequence


def jain(values: Sequence[float]) -> float:
    """1 where all are equal, 1/n where one has everything (Jain, Chiu and Hawe 1984)."""
    return sum(values) ** 2 / (len(values) * sum(value**2 for value in values))
