"""Linear programs, with whole numbers where asked, in the order in which they come up."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from scipy.optimize import Bounds, LinearConstraint, milp
from scipy.sparse import coo_array

Terms = list[tuple[int, float]]  # variables and their coefficients


@dataclass(frozen=True, slots=True, kw_only=True)
class Solution:
    """`bound` is proved: nothing is less. `values` cost `objective`; with time enough they meet."""

    objective: float
    bound: float
    values: tuple[float, ...]


class LinearProgram:
    """Rows `coefficients · x <= limit` with `0 <= x`, and the cost of each variable."""

    def __init__(self) -> None:
        self.costs: list[float] = []
        self.upper: list[float] = []
        self._whole: list[bool] = []
        self._entries: list[tuple[int, int, float]] = []
        self._limits: list[float] = []

    def variable(self, cost: float = 0.0, upper: float = np.inf, *, whole: bool = False) -> int:
        self.costs.append(cost)
        self.upper.append(upper)
        self._whole.append(whole)
        return len(self.costs) - 1

    def at_most(self, terms: Terms, limit: float) -> None:
        row = len(self._limits)
        self._entries += [(row, column, value) for column, value in terms]
        self._limits.append(limit)

    def solve(self, seconds: float = np.inf) -> Solution:
        """Raises ValueError where nothing is feasible, or nothing was found in time."""
        rows, columns, values = zip(*self._entries, strict=True)
        shape = (len(self._limits), len(self.costs))
        result = milp(
            self.costs,
            integrality=np.array(self._whole, int),
            bounds=Bounds(0, np.array(self.upper)),
            constraints=LinearConstraint(
                coo_array((values, (rows, columns)), shape).tocsr(), ub=np.array(self._limits)
            ),
            options={"time_limit": seconds, "mip_rel_gap": 1e-6},
        )
        if result.x is None:
            raise ValueError(f"the linear program has no optimum: {result.message}")
        bound = result.fun if result.mip_dual_bound is None else result.mip_dual_bound
        return Solution(objective=result.fun, bound=bound, values=tuple(result.x))
