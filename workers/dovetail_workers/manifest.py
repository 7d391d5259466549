"""What a checkpoint says about itself: the one object that makes its parts a checkpoint."""

from __future__ import annotations

from datetime import UTC, datetime
from importlib import metadata
from typing import Annotated, Literal

from pydantic import AwareDatetime, BaseModel, ConfigDict, Field


class _Model(BaseModel):
    model_config = ConfigDict(frozen=True)


class Part(_Model):
    """One object of a checkpoint, as it was written."""

    bytes: Annotated[int, Field(ge=0)]
    sha256: Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]


class Manifest(_Model):
    """`parts` maps the name of a part, which may hold slashes, to what it must be."""

    format: Literal[1] = 1
    step: Annotated[int, Field(ge=0)]
    phase: str
    created_at: AwareDatetime
    versions: dict[str, str]
    parts: dict[str, Part]

    def to_json(self) -> bytes:
        return self.model_dump_json(indent=1).encode()


def of_parts(step: int, phase: str, parts: dict[str, Part]) -> Manifest:
    """The manifest of parts that were written now, with the versions that wrote them."""
    return Manifest(
        step=step,
        phase=phase,
        created_at=datetime.now(UTC),
        # From the metadata: a supervisor saves checkpoints of scripts and never imports torch.
        versions={name: metadata.version(name) for name in ("dovetail", "torch")},
        parts=parts,
    )
