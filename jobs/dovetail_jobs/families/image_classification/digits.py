"""The handwritten digits that scikit-learn ships: 1797 images of 8 x 8 (Alpaydin & Kaynak 1998)."""

from __future__ import annotations

import gzip
from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import torch
from torch.nn.functional import interpolate

from dovetail_jobs.errors import UserError
from dovetail_jobs.families.image_classification.images import (
    ImageBatch,
    ImageData,
    stratified_split,
)
from dovetail_jobs.families.image_classification.params import Params
from dovetail_jobs.workload import Draw

SIDE = 8
BRIGHTEST = 16
SHIFT = 1


def open_digits(params: Params) -> ImageData:
    images, labels = load_digits()
    train, validation = stratified_split(labels.tolist(), params.validation_fraction)
    if not train or not validation:
        raise UserError(
            f"params.validation_fraction: {params.validation_fraction} leaves {len(train)} digits "
            f"to train and {len(validation)} to validate on; use a value such as 0.2"
        )
    assert params.image_size is not None
    size = params.image_size
    return ImageData(
        train=Digits(images[train], labels[train], image_size=size, augment=params.augment),
        validation=Digits(images[validation], labels[validation], image_size=size),
        classes=10,
        channels=1,
        decodes=False,
    )


def load_digits() -> tuple[torch.Tensor, torch.Tensor]:
    """images (1797, 8, 8) uint8 from 0 to 16, labels (1797,) int64, as sklearn.datasets gives them.

    Read from the file itself: importing sklearn.datasets takes longer than a hundred steps.
    """
    package = find_spec("sklearn")
    if package is None or package.origin is None:
        raise UserError("params.dataset: digits come with scikit-learn; pip install scikit-learn")
    file = Path(package.origin).parent / "datasets" / "data" / "digits.csv.gz"
    with gzip.open(file, "rt") as text:
        table = np.loadtxt(text, delimiter=",", dtype=np.uint8)
    images = torch.from_numpy(table[:, :-1].reshape(-1, SIDE, SIDE).copy())
    return images, torch.from_numpy(table[:, -1].astype(np.int64))


class Digits:
    """images (N, 8, 8) uint8 and labels (N,); a batch is resized bilinearly to `image_size`.

    `augment` moves each drawn digit by up to one stored pixel each way; a mirrored digit would be
    another sign, so nothing is flipped.
    """

    def __init__(
        self, images: torch.Tensor, labels: torch.Tensor, *, image_size: int, augment: bool = False
    ) -> None:
        self._images, self._labels = images, labels
        self._image_size = image_size
        self._augment = augment

    def __len__(self) -> int:
        return len(self._labels)

    def batch(self, draws: Sequence[Draw]) -> ImageBatch:
        chosen = torch.tensor([draw.index for draw in draws])
        images = self._images[chosen]
        if self._augment:
            images = torch.stack([_shifted(*pair) for pair in zip(images, draws, strict=True)])
        small = images.unsqueeze(1).float().div(BRIGHTEST / 2).sub(1)
        size = (self._image_size, self._image_size)
        return ImageBatch(interpolate(small, size, mode="bilinear"), self._labels[chosen])


def _shifted(image: torch.Tensor, draw: Draw) -> torch.Tensor:
    down, right = (draw.seed >> shift & 0xFFFF for shift in (0, 16))
    choices = 2 * SHIFT + 1
    padded = torch.nn.functional.pad(image, (SHIFT,) * 4)
    top, left = down % choices, right % choices
    return padded[top : top + SIDE, left : left + SIDE]
