"""A family of a user's own with typed params; it prints on import, which nobody sees."""

from pathlib import Path
from typing import Any, Self

from dovetail_jobs.family_params import DataRefused, FamilyParams, absolute

print("imported")


class Params(FamilyParams):
    width: int = 64
    depth: int = 2
    table: str | None = None

    def located(self, base: Path) -> Self:
        if self.table is None:
            return self
        table = absolute(self.table, base)
        if not table.exists():
            raise DataRefused("table", f"no such file (looked for {table})")
        return self.model_copy(update={"table": str(table)})


def build(params: Params, context: Any) -> tuple[Params, Any]:
    return params, context
