"""What a job is: the typed, frozen form of its YAML (DESIGN §3). Bytes are `int`, times seconds.

This file knows no file, no place and no device; `load.py` turns text into a `JobSpec` and errors
into file:line.
"""

from __future__ import annotations

import re
from typing import Annotated, Any, Literal, Self

from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    JsonValue,
    WithJsonSchema,
    model_validator,
)
from pydantic_core import PydanticCustomError

from dovetail_jobs.units import parse_bytes, parse_seconds

NAME_PATTERN = r"^[A-Za-z0-9]([A-Za-z0-9._-]*[A-Za-z0-9])?$"
ENV_PATTERN = r"^[A-Za-z_][A-Za-z0-9_]*$"
SECRET_PATTERN = r"^(env|file):.+$"

_SIZE_SCHEMA: dict[str, Any] = {
    "anyOf": [{"type": "integer", "minimum": 0}, {"type": "string", "examples": ["4GiB"]}]
}
_TIME_SCHEMA: dict[str, Any] = {
    "anyOf": [{"type": "number", "exclusiveMinimum": 0}, {"type": "string", "examples": ["2h"]}]
}
_BUDGET_SCHEMA: dict[str, Any] = {**_SIZE_SCHEMA, "examples": ["auto", "4GiB", "60%"]}

Bytes = Annotated[int, BeforeValidator(parse_bytes), WithJsonSchema(_SIZE_SCHEMA)]
Seconds = Annotated[float, BeforeValidator(parse_seconds), WithJsonSchema(_TIME_SCHEMA)]


def _budget(value: int | str) -> int | str:
    if isinstance(value, str) and re.fullmatch(r"\d{1,3}(\.\d+)?%", value.strip()):
        percent = float(value.strip()[:-1])
        if not 0 < percent <= 100:
            raise ValueError("must be above 0% and at most 100% of the forecast peak")
        return value.strip()
    if value == "auto":
        return value
    try:
        return parse_bytes(value)
    except ValueError:
        raise ValueError("must be auto, a size such as 4GiB or a percentage such as 60%") from None


Budget = Annotated[int | str, BeforeValidator(_budget), WithJsonSchema(_BUDGET_SCHEMA)]
Name = Annotated[
    str,
    Field(
        pattern=NAME_PATTERN,
        max_length=63,
        description="letters, digits, '.', '_' and '-', at most 63",
    ),
]
EnvName = Annotated[str, Field(pattern=ENV_PATTERN)]
Positive = Annotated[int, Field(ge=1)]


def _whole(value: object) -> object:
    """Literal alone takes `true` and `1.0` for 1."""
    if type(value) is not int:
        raise ValueError("must be a whole number")
    return value


Beta = Annotated[float, Field(ge=0, lt=1)]


def _refused(key: str, rule: str) -> PydanticCustomError:
    """A rule over several keys; `key` (dotted) is the one whose place is shown."""
    return PydanticCustomError("rule", "{rule}", {"key": key, "rule": rule})


class _Model(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


class Optimizer(_Model):
    name: Literal["adamw", "adam", "sgd"] = "adamw"
    lr: Annotated[float, Field(gt=0)] = 1e-3
    weight_decay: Annotated[float, Field(ge=0)] = 0.0
    momentum: Annotated[float, Field(ge=0, lt=1)] = 0.0
    betas: tuple[Beta, Beta] = (0.9, 0.999)
    eps: Annotated[float, Field(gt=0)] = 1e-8


class Schedule(_Model):
    """The learning rate over the run, a factor on `optimizer.lr`, after a linear warm-up from 0."""

    name: Literal["constant", "linear", "cosine"] = "constant"
    warmup_steps: Annotated[int, Field(ge=0)] = 0


class Validate(_Model):
    """Validation runs every so many steps, and always at the end."""

    every: Positive | None = None
    batch_size: Positive | None = None


class Checkpoint(_Model):
    """A checkpoint every so many steps and at the end; the newest `keep` stay."""

    every: Positive | None = None
    keep: Positive = 2


class Train(_Model):
    steps: Positive | None = None
    epochs: Positive | None = None
    accumulate: Positive = 1
    clip_norm: Annotated[float, Field(gt=0)] | None = None
    optimizer: Optimizer = Optimizer()
    schedule: Schedule = Schedule()
    validate_: Annotated[Validate, Field(alias="validate")] = Validate()
    precision: Literal["fp32", "bf16", "fp16"] = "fp32"
    seed: Annotated[int, Field(ge=0, lt=2**32)] = 0
    checkpoint: Checkpoint = Checkpoint()

    @model_validator(mode="after")
    def _length(self) -> Self:
        if self.steps is None and self.epochs is None:
            raise _refused("train", "needs a length; give train.steps or train.epochs")
        if self.steps is not None and self.epochs is not None:
            raise _refused("train.epochs", "excludes train.steps; give exactly one of them")
        return self


Share = Literal["auto"] | bool


class Resources(_Model):
    """`cpus` is per rank: it books Ray's logical cpus and fixes the rank's thread count. `memory`
    is what admission reserves, and no more is used. `min_speed` is the least that a device and
    neighbours may leave of the job's speed, by what memory costs it: stalls and recomputation, not
    computing.
    """

    devices: Positive = 1
    cpus: Annotated[float, Field(gt=0)] = 1.0
    memory: Literal["auto"] | Bytes = "auto"
    share: Share = "auto"
    min_speed: Annotated[float, Field(gt=0, le=1)] = 0.5


class Memory(_Model):
    policy: Literal["none", "tensile"] = "none"
    budget: Budget = "auto"


class Offload(_Model):
    optimizer: Literal["none", "cpu"] = "none"
    parameters: Literal["none", "cpu"] = "none"


class Sharding(_Model):
    engine: Literal["deepspeed"] = "deepspeed"
    stage: Annotated[Literal[0, 1, 2, 3], BeforeValidator(_whole)] = 3
    offload: Offload = Offload()


class Search(_Model):
    metric: str
    mode: Literal["min", "max"]
    samples: Positive
    scheduler: Literal["fifo", "asha"] = "fifo"
    space: dict[str, dict[str, Any]]


class Retry(_Model):
    """`max` counts losses (worker, node or Ray gone).

    A program's own failure is final unless `on` says so.
    """

    max: Annotated[int, Field(ge=0)] = 3
    on: tuple[Literal["failure"], ...] = ()


class JobSpec(_Model):
    version: Annotated[Literal[1], BeforeValidator(_whole)] = 1
    name: Name
    project: Name = "default"
    labels: dict[str, str] = {}
    family: Annotated[str, Field(min_length=1)] | None = None
    script: Annotated[str, Field(min_length=1)] | None = None
    params: dict[str, JsonValue] = {}
    workdir: str | None = None
    env: dict[EnvName, str] = {}
    secrets: dict[EnvName, Annotated[str, Field(pattern=SECRET_PATTERN)]] = {}
    setup: None = Field(default=None, description="reserved")
    train: Train | None = None
    resources: Resources = Resources()
    memory: Memory = Memory()
    sharding: Sharding | None = None
    search: Search | None = None
    priority: Annotated[int, Field(ge=0, le=100)] = 50
    retry: Retry = Retry()
    max_duration: Seconds | None = None
    progress_timeout: Seconds | None = None

    @model_validator(mode="after")
    def _program(self) -> Self:
        if self.family is None and self.script is None:
            raise _refused("", "needs a program; give family or script")
        if self.family is not None and self.script is not None:
            raise _refused("script", "excludes family; give exactly one of them")
        if self.family is not None and self.train is None:
            raise _refused("family", "needs train; add train: {steps: 100} or train: {epochs: 10}")
        if self.script is not None and self.train is not None:
            raise _refused("train", "belongs to a family; a script trains by itself, remove train")
        if self.script is not None and self.params:
            raise _refused(
                "params", "belongs to a family; give a script its options in its command"
            )
        return self

    @model_validator(mode="after")
    def _sharing(self) -> Self:
        if self.resources.share is not True or self.shares:
            return self
        if self.script is not None:
            rule = "needs resources.memory for a script; say how much it takes, or use auto"
        else:
            rule = "needs memory.policy: tensile, which keeps a job to its part; add it or use auto"
        raise _refused("resources.share", rule)

    @property
    def shares(self) -> bool:
        """Whether other jobs may come onto its device: it keeps to a part of the memory, by tensile
        or by its own declaration, and does not ask for a device of its own.
        """
        if self.resources.share is False:
            return False
        if self.script is not None:
            return isinstance(self.resources.memory, int) and self.resources.memory > 0
        return self.memory.policy == "tensile"

    def to_json(self) -> dict[str, Any]:
        """Plain JSON values, every default filled in; `JobSpec.model_validate` reads it back."""
        return self.model_dump(mode="json", by_alias=True)
