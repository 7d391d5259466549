"""What a job is: the typed, frozen form of its YAML (DESIGN §3). Bytes are `int`, durations are seconds.

This file knows no file, no place and no device; `load.py` turns text into a `JobSpec` and errors into file:line.
"""

from __future__ import annotations

import re
from typing import Annotated, Any, Literal, Self

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, JsonValue, model_validator

from dovetail_jobs.units import parse_bytes, parse_seconds

_SIZE_SCHEMA = {"anyOf": [{"type": "integer", "minimum": 0}, {"type": "string", "examples": ["4GiB"]}]}
_TIME_SCHEMA = {"anyOf": [{"type": "number"}, {"type": "string", "examples": ["2h", "30m"]}]}

Bytes = Annotated[int, BeforeValidator(parse_bytes), Field(json_schema_extra=_SIZE_SCHEMA)]
Seconds = Annotated[float, BeforeValidator(parse_seconds), Field(json_schema_extra=_TIME_SCHEMA)]


def _budget(value: int | str) -> int | str:
    if isinstance(value, str) and re.fullmatch(r"\d{1,3}(\.\d+)?%", value.strip()):
        percent = float(value.strip()[:-1])
        if not 0 < percent <= 100:
            raise ValueError("a percentage of the forecast peak lies above 0 and at most at 100")
        return value.strip()
    return value if value == "auto" else parse_bytes(value)


Budget = Annotated[
    int | str, BeforeValidator(_budget), Field(json_schema_extra={"examples": ["auto", "4GiB", "60%"]})
]
Name = Annotated[
    str,
    Field(
        pattern=r"^[A-Za-z0-9]([A-Za-z0-9._-]*[A-Za-z0-9])?$",
        max_length=63,
        description="letters, digits, '.', '_' and '-', at most 63",
    ),
]
EnvName = Annotated[str, Field(pattern=r"^[A-Za-z_][A-Za-z0-9_]*$")]
Positive = Annotated[int, Field(ge=1)]


class _Model(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


class Optimizer(_Model):
    name: Literal["adamw", "adam", "sgd"] = "adamw"
    lr: Annotated[float, Field(gt=0)] = 1e-3
    weight_decay: Annotated[float, Field(ge=0)] = 0.0
    momentum: Annotated[float, Field(ge=0, lt=1)] = 0.0
    betas: tuple[float, float] = (0.9, 0.999)
    eps: Annotated[float, Field(gt=0)] = 1e-8


class Schedule(_Model):
    """The learning rate over the run, as a factor on `optimizer.lr`; a linear warm-up from 0 comes first."""

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
        if (self.steps is None) == (self.epochs is None):
            raise ValueError("give exactly one of train.steps and train.epochs")
        return self


class Resources(_Model):
    """`cpus` is per rank: it books Ray's logical cpus and fixes the rank's thread count."""

    devices: Positive = 1
    cpus: Annotated[float, Field(gt=0)] = 1.0
    memory: Literal["auto"] | Bytes = "auto"
    share: Literal["auto"] | bool = "auto"


class Memory(_Model):
    policy: Literal["none", "tensile"] = "none"
    budget: Budget = "auto"


class Offload(_Model):
    optimizer: Literal["none", "cpu"] = "none"
    parameters: Literal["none", "cpu"] = "none"


class Sharding(_Model):
    engine: Literal["deepspeed"] = "deepspeed"
    stage: Literal[0, 1, 2, 3] = 3
    offload: Offload = Offload()


class Search(_Model):
    metric: str
    mode: Literal["min", "max"]
    samples: Positive
    scheduler: Literal["fifo", "asha"] = "fifo"
    space: dict[str, dict[str, Any]]


class Retry(_Model):
    """`max` counts losses (worker, node or Ray gone); a program's own failure is final unless `on` says so."""

    max: Annotated[int, Field(ge=0)] = 3
    on: tuple[Literal["failure"], ...] = ()


class JobSpec(_Model):
    version: Literal[1] = 1
    name: Name
    project: Name = "default"
    labels: dict[str, str] = {}
    family: str | None = None
    script: str | None = None
    params: dict[str, JsonValue] = {}
    workdir: str | None = None
    env: dict[EnvName, str] = {}
    secrets: dict[EnvName, Annotated[str, Field(pattern=r"^(env|file):.+$")]] = {}
    setup: None = Field(default=None, description="reserved")
    train: Train | None = None
    resources: Resources = Resources()
    memory: Memory = Memory()
    sharding: Sharding | None = None
    search: Search | None = None
    priority: Annotated[int, Field(ge=0, le=100)] = 50
    retry: Retry = Retry()
    max_duration: Seconds | None = None

    @model_validator(mode="after")
    def _program(self) -> Self:
        if (self.family is None) == (self.script is None):
            raise ValueError("give exactly one of family and script")
        if self.family is not None and self.train is None:
            raise ValueError("a family needs train with steps or epochs")
        if self.script is not None and self.train is not None:
            raise ValueError("train belongs to a family; a script trains by itself")
        if self.script is not None and self.params:
            raise ValueError("params belong to a family; give a script its options in the command")
        return self

    def to_json(self) -> dict[str, Any]:
        """The resolved spec as plain JSON values: every default filled in, `JobSpec.model_validate` reads it back."""
        return self.model_dump(mode="json", by_alias=True)
