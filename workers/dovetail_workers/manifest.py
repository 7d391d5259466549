"""What a checkpoint says about itself: the one object that makes its parts a checkpoint."""

from __future__ import annotations

import hashlib
from datetime import UTC, datetime
from importlib import metadata
from typing import Annotated, Literal, Self

from pydantic import AwareDatetime, BaseModel, ConfigDict, Field, model_validator
from pydantic_core import PydanticCustomError


class _Model(BaseModel):
    model_config = ConfigDict(frozen=True)


class Part(_Model):
    """One object of a checkpoint, as it was written."""

    bytes: Annotated[int, Field(ge=0)]
    sha256: Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]


class Manifest(_Model):
    """`parts` maps the name of a part, which may hold slashes, to what it must be; `sha256` is of
    all other fields. Format 1, which had none, is still read.
    """

    format: Literal[1, 2] = 2
    step: Annotated[int, Field(ge=0)]
    phase: str
    created_at: AwareDatetime
    versions: dict[str, str]
    parts: dict[str, Part]
    sha256: str | None = None

    def digest(self) -> str:
        """The sha256 that this manifest must name."""
        rest = self.model_dump_json(exclude={"sha256"})
        return hashlib.sha256(rest.encode()).hexdigest()

    @model_validator(mode="after")
    def _whole(self) -> Self:
        expected = self.digest() if self.format == 2 or self.sha256 is not None else None
        if self.sha256 != expected:
            raise PydanticCustomError("digest", "does not have the sha256 that it says")
        return self

    def to_json(self) -> bytes:
        return self.model_dump_json(indent=1).encode()


def of_parts(step: int, phase: str, parts: dict[str, Part]) -> Manifest:
    """The manifest of parts that were written now, with the versions that wrote them."""
    unsigned = Manifest.model_construct(
        format=2,
        step=step,
        phase=phase,
        created_at=datetime.now(UTC),
        # From the metadata: a supervisor saves checkpoints of scripts and never imports torch.
        versions={name: metadata.version(name) for name in ("dovetail", "torch")},
        parts=parts,
    )
    return unsigned.model_copy(update={"sha256": unsigned.digest()})
