"""What an image classification job may set; torch-free, the control plane reads it."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Literal, Self

from pydantic import Field, ValidationInfo, field_validator

from dovetail_jobs.family_params import DataRefused, FamilyParams, absolute

IMAGE_SUFFIXES = (".jpg", ".jpeg", ".png", ".bmp", ".webp", ".ppm")

Backbone = Literal["swin_test", "swin_tiny", "swin_small", "swin_base", "swin_large"]


class Params(FamilyParams):
    """`image_size` None becomes the backbone's own: 32 for swin_test, 224 for the others."""

    backbone: Backbone = "swin_tiny"
    dataset: Annotated[
        str,
        Field(
            min_length=1,
            description="digits (the handwritten digits of scikit-learn), or a folder: "
            "train/<class>/*.jpg with val/<class>/*.jpg, or <class>/*.jpg alone",
        ),
    ]
    image_size: Annotated[
        int | None,
        Field(
            ge=1, validate_default=True, description="side in pixels; null for the backbone's own"
        ),
    ] = None
    validation_fraction: Annotated[
        float, Field(gt=0, lt=1, description="held out of a dataset that has no split of its own")
    ] = 0.2
    augment: bool = False
    label_smoothing: Annotated[float, Field(ge=0, lt=1)] = 0.0
    drop_path: Annotated[float, Field(ge=0, lt=1)] = 0.0

    @field_validator("image_size", mode="after")
    @classmethod
    def _divisible(cls, image_size: int | None, info: ValidationInfo) -> int | None:
        backbone = info.data.get("backbone")
        if backbone is None:
            return image_size
        usual, multiple, reason = _SIZES["swin_test" if backbone == "swin_test" else "swin"]
        if image_size is None:
            return usual
        if image_size % multiple:
            rule = f"must be a multiple of {multiple} for {backbone} ({reason})"
            lower, upper = image_size // multiple * multiple, -(-image_size // multiple) * multiple
            raise ValueError(f"{rule}; use {f'{lower} or ' if lower else ''}{upper}")
        return image_size

    def located(self, base: Path) -> Self:
        """With an absolute dataset folder. Raises DataRefused when it has no images by class."""
        if self.dataset == "digits":
            return self
        folder = absolute(self.dataset, base)
        if not os.path.isdir(folder):
            near = "" if folder.name != "digits" else "; the built-in one is digits"
            raise DataRefused("dataset", f"no such folder (looked for {folder}){near}")
        if os.path.isdir(folder / "train"):
            known = _check_classes(folder / "train", "train/<class>/*.jpg")
            for name in _check_classes(folder / "val", "val/<class>/*.jpg"):
                if name not in known:
                    rule = f"has the class {name} in val but not in train; remove or rename it"
                    raise DataRefused("dataset", rule)
        else:
            _check_classes(folder, "<class>/*.jpg, or train/<class>/*.jpg with val/<class>/*.jpg")
        return self.model_copy(update={"dataset": str(folder)})


# The usual side, what a side must be a multiple of, and why.
_SIZES: dict[str, tuple[int, int, str]] = {
    "swin_test": (32, 16, "patches of 2, two halvings, windows of 4"),
    "swin": (224, 32, "patches of 4, three halvings"),
}


def class_folders(folder: Path) -> list[Path]:
    """The folders of the classes, by name; a class's label is its position."""
    return sorted(path for path in folder.iterdir() if path.is_dir() and path.name[0] != ".")


def image_files(folder: Path) -> Iterator[Path]:
    """The images right in a class's folder, in no order, found as they are asked for."""
    with os.scandir(folder) as entries:
        for entry in entries:
            if entry.name.lower().endswith(IMAGE_SUFFIXES) and entry.is_file():
                yield Path(entry.path)


def _check_classes(folder: Path, layout: str) -> set[str]:
    """The names of the classes; at least one of them has an image, and no more is looked for."""
    try:
        classes = class_folders(folder)
        if not classes:
            raise DataRefused("dataset", f"{folder} has no class folders; it needs {layout}")
        if not any(_has_image(path) for path in classes):
            raise DataRefused("dataset", f"{folder} has no images; it needs {layout}")
        return {path.name for path in classes}
    except FileNotFoundError:
        raise DataRefused("dataset", f"{folder} does not exist; it needs {layout}") from None
    except OSError as error:
        path = error.filename or folder
        raise DataRefused("dataset", f"cannot read {path}: {error.strerror}") from None


def _has_image(folder: Path) -> bool:
    return next(image_files(folder), None) is not None
