"""What the params of every family have in common, and how they are filled in.

A user's own module derives its `Params` from `FamilyParams` too, if it wants its defaults shown,
its types checked before anything runs, and its paths resolved against the folder of the YAML file.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Self

from pydantic import BaseModel, ConfigDict, Field, JsonValue, ValidationError

from dovetail_jobs.errors import Problem, SpecError, UserError
from dovetail_jobs.outline import Key, outline
from dovetail_jobs.rules import problems_of


class DataRefused(UserError):
    """Data that params name is missing or of no use. `key` is the name of the parameter."""

    def __init__(self, key: str, rule: str) -> None:
        super().__init__(f"params.{key}  {rule}")
        self.key = key
        self.rule = rule

    def __reduce__(self) -> tuple[type[DataRefused], tuple[str, str]]:
        return (DataRefused, (self.key, self.rule))


class FamilyParams(BaseModel):
    """`batch_size` is global: split over the devices and over `train.accumulate`."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    batch_size: Annotated[
        int, Field(ge=1, description="samples per optimizer step, over all devices together")
    ]

    def located(self, base: Path) -> Self:
        """These params with absolute paths; relative ones start at `base`.

        Reads no more than it must to see that the data is there. Raises DataRefused.
        """
        return self


def absolute(path: str, base: Path) -> Path:
    """`path` as the user wrote it (`~/data`, `../data`) from `base`; links stay as they are."""
    return Path(os.path.abspath(base / os.path.expanduser(path)))


def filled(
    model: type[BaseModel], params: Mapping[str, Any], *, base: Path, keys: Mapping[str, Key]
) -> dict[str, JsonValue]:
    """`params` as JSON, checked by `model`, with every default and absolute paths.

    `keys` are those of the rest of the spec, for hints. Raises SpecError, its keys under `params`.
    """
    given = dict(params)
    try:
        typed = model.model_validate_json(json.dumps(given), strict=True)
    except ValidationError as error:
        known = {**keys, **outline(model, "params.")}
        raise SpecError(problems_of(error, given, known, prefix="params.")) from None
    if isinstance(typed, FamilyParams):
        try:
            typed = typed.located(base)
        except DataRefused as error:
            shown = getattr(typed, error.key, None)
            problem = Problem(
                key=f"params.{error.key}",
                rule=error.rule,
                value=None if shown is None else str(shown),
            )
            raise SpecError([problem]) from None
    return typed.model_dump(mode="json", by_alias=True)
