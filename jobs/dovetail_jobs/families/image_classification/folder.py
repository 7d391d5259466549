"""Images in an ImageNet-style folder: `train/<class>/*` with `val/<class>/*`, or `<class>/*`."""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import torch
from PIL import Image, UnidentifiedImageError

from dovetail_jobs.errors import UserError
from dovetail_jobs.families.image_classification.images import (
    ImageBatch,
    ImageData,
    stratified_split,
)
from dovetail_jobs.families.image_classification.params import (
    Params,
    class_folders,
    image_files,
)
from dovetail_jobs.workload import Draw

# Of ImageNet, as everywhere since Krizhevsky 2012; per channel, of values from 0 to 1.
MEAN = (0.485, 0.456, 0.406)
STD = (0.229, 0.224, 0.225)
# Validation shows the centre 224 of a short side of 256.
CROP_RATIO = 224 / 256
AREA = (0.08, 1.0)
ASPECT = (3 / 4, 4 / 3)
CROP_TRIES = 10

Labelled = list[tuple[Path, int]]


def open_folder(params: Params, *, threads: int) -> ImageData:
    """The folder's own split, or one that is a function of its file names alone."""
    root = Path(params.dataset)
    assert params.image_size is not None
    if (root / "train").is_dir():
        names = [path.name for path in class_folders(root / "train")]
        train, validation = (_labelled(root / split, names) for split in ("train", "val"))
    else:
        names = [path.name for path in class_folders(root)]
        samples = _labelled(root, names)
        for_train, for_validation = stratified_split(
            [label for _, label in samples], params.validation_fraction
        )
        train = [samples[index] for index in for_train]
        validation = [samples[index] for index in for_validation]
    if not train or not validation:
        raise UserError(
            f"params.dataset: {root}  has {len(train)} images to train and {len(validation)} to "
            "validate on; both need some (params.validation_fraction, or a folder val/)"
        )
    size = params.image_size
    return ImageData(
        train=ImageFolder(train, image_size=size, augment=params.augment, threads=threads),
        validation=ImageFolder(validation, image_size=size, threads=threads),
        classes=len(names),
        channels=3,
        decodes=True,
    )


class ImageFolder:
    """Files with labels, decoded by `threads` threads as they are drawn.

    `augment` takes a random part of the image (area 8 to 100 %, aspect 3/4 to 4/3; Szegedy et al.
    2015) and mirrors every other one; else the centre is taken.
    """

    def __init__(
        self, samples: Labelled, *, image_size: int, threads: int, augment: bool = False
    ) -> None:
        self._samples = samples
        self._image_size = image_size
        self._augment = augment
        self._pool = ThreadPoolExecutor(threads, thread_name_prefix="decode")

    def __len__(self) -> int:
        return len(self._samples)

    def batch(self, draws: Sequence[Draw]) -> ImageBatch:
        pixels = np.stack(list(self._pool.map(self._pixels, draws)))
        images = torch.from_numpy(pixels).permute(0, 3, 1, 2).float().div(255)
        mean, std = (torch.tensor(value).view(1, 3, 1, 1) for value in (MEAN, STD))
        labels = torch.tensor([self._samples[draw.index][1] for draw in draws])
        return ImageBatch(images.sub_(mean).div_(std).contiguous(), labels)

    def _pixels(self, draw: Draw) -> np.ndarray[tuple[int, ...], np.dtype[np.uint8]]:
        """(size, size, 3) uint8."""
        file, _ = self._samples[draw.index]
        size = (self._image_size, self._image_size)
        try:
            with Image.open(file) as opened:
                image = opened.convert("RGB")
        except (UnidentifiedImageError, OSError, SyntaxError) as error:
            raise UserError(f"{file}: cannot be read as an image ({error}); remove it") from None
        if self._augment:
            generator = np.random.default_rng(draw.seed)
            box = _random_box(image.size, generator)
            mirrored = generator.random() < 0.5
        else:
            box, mirrored = _centre_box(image.size), False
        image = image.resize(size, Image.Resampling.BILINEAR, box=box)
        if mirrored:
            image = image.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
        return np.asarray(image)


def _labelled(root: Path, names: list[str]) -> Labelled:
    """All images of the classes below `root`; a label is the position of its class in `names`."""
    labels = {name: label for label, name in enumerate(names)}
    samples: Labelled = []
    for folder in class_folders(root):
        if folder.name not in labels:
            raise UserError(
                f"params.dataset: {folder} is of a class that the training folder does not have"
            )
        samples += [(file, labels[folder.name]) for file in sorted(image_files(folder))]
    return samples


def _centre_box(size: tuple[int, int]) -> tuple[float, float, float, float]:
    """left, top, right, bottom in pixels of the central square."""
    width, height = size
    side = min(size) * CROP_RATIO
    left, top = (width - side) / 2, (height - side) / 2
    return left, top, left + side, top + side


def _random_box(
    size: tuple[int, int], generator: np.random.Generator
) -> tuple[float, float, float, float]:
    """A part of random area and aspect; where none fits in ten tries, the centre."""
    width, height = size
    for _ in range(CROP_TRIES):
        area = width * height * generator.uniform(*AREA)
        aspect = np.exp(generator.uniform(*np.log(ASPECT)))
        across, down = float(np.sqrt(area * aspect)), float(np.sqrt(area / aspect))
        if across <= width and down <= height:
            left, top = generator.uniform(0, width - across), generator.uniform(0, height - down)
            return left, top, left + across, top + down
    return _centre_box(size)
