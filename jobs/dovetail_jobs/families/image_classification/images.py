"""Labelled images as training and validation read them, and how one set becomes the two."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import torch

from dovetail_jobs.workload import Source

SPLIT_SEED = 0


class ImageBatch(NamedTuple):
    """images (B, C, H, W) float32, normalised; labels (B,) int64. In host memory."""

    images: torch.Tensor
    labels: torch.Tensor


@dataclass(frozen=True, slots=True, kw_only=True)
class ImageData:
    """`decodes`: samples come from files, so that preparing them beside the training pays."""

    train: Source
    validation: Source
    classes: int
    channels: int
    decodes: bool


def stratified_split(
    labels: Sequence[int] | npt.NDArray[np.int64], fraction: float
) -> tuple[list[int], list[int]]:
    """Indices for training and for validation, `fraction` of every class (rounded) for the latter.

    A function of its arguments alone: every run of every seed validates on the same samples.
    """
    of_class = np.asarray(labels)
    generator = np.random.default_rng(SPLIT_SEED)
    train: list[int] = []
    validation: list[int] = []
    for label in np.unique(of_class):
        members = generator.permutation(np.flatnonzero(of_class == label))
        held_out = round(len(members) * fraction)
        validation += members[:held_out].tolist()
        train += members[held_out:].tolist()
    return sorted(train), sorted(validation)
