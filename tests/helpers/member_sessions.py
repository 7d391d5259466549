"""A session on a device that others use too."""

from __future__ import annotations

from pathlib import Path

from helpers.small_trainings import Training
from tensile import Membership, Session


def member_of(
    training: Training, place: Path, folder: Path, job: str = "mine", **options: object
) -> Session:
    """Of the broker at `place`; `options` are the session's."""
    return Session(
        training.model,
        training.optimizer,
        folder=folder,
        lease=Membership(path=place, job=job),
        smallest_bytes=0,
        **options,  # type: ignore[arg-type]
    )
