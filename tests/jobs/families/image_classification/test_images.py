"""Images arrive as stored, split the same way for every run, and augmented by their own draw."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from dovetail_jobs.errors import UserError
from dovetail_jobs.families.image_classification import images
from dovetail_jobs.families.image_classification.digits import load_digits, open_digits
from dovetail_jobs.families.image_classification.folder import MEAN, STD, open_folder
from dovetail_jobs.families.image_classification.params import Params
from dovetail_jobs.workload import Draw, Source


def opened(**params: Any) -> images.ImageData:
    given_ = {"backbone": "swin_test", "dataset": "digits", "batch_size": 4, **params}
    params = Params.model_validate(given_)
    return open_digits(params) if params.dataset == "digits" else open_folder(params, threads=2)


def batch(source: Source, *indices: int, epoch: int = 0) -> images.ImageBatch:
    draws = [Draw(index=index, epoch=epoch, stream_seed=5) for index in indices]
    found = source.batch(draws)
    assert isinstance(found, images.ImageBatch)
    return found


@given(
    labels=st.lists(st.integers(0, 4), min_size=1, max_size=80),
    fraction=st.floats(0.05, 0.95),
)
def test_a_split_takes_its_share_of_every_class_and_loses_nothing(
    labels: list[int], fraction: float
) -> None:
    train, validation = images.stratified_split(labels, fraction)
    assert sorted(train + validation) == list(range(len(labels)))
    for label in set(labels):
        held_out = sum(labels[index] == label for index in validation)
        assert held_out == round(labels.count(label) * fraction)
    assert images.stratified_split(labels, fraction) == (train, validation)


def test_the_digits_are_those_of_scikit_learn() -> None:
    from sklearn.datasets import load_digits as sklearns

    theirs = sklearns()
    images, labels = load_digits()
    assert images.dtype == torch.uint8
    assert np.array_equal(images.numpy(), theirs.images)
    assert np.array_equal(labels.numpy(), theirs.target)


def test_digits_are_resized_and_normalised_per_batch() -> None:
    digits = opened(image_size=64)
    assert (digits.classes, digits.channels) == (10, 1)
    assert len(digits.train) + len(digits.validation) == 1797
    assert abs(len(digits.validation) - 1797 * 0.2) < 10
    images, labels = batch(digits.train, 0, 5, 9)
    assert images.shape == (3, 1, 64, 64)
    assert images.dtype == torch.float32
    assert -1 <= float(images.min()) < float(images.max()) <= 1
    assert labels.dtype == torch.int64


def test_a_resized_digit_is_the_stored_one_as_pillow_resizes_it() -> None:
    digits = opened(image_size=32)
    stored, labels = load_digits()
    train, validation = images.stratified_split(labels.tolist(), 0.2)
    for source, indices in ((digits.train, train), (digits.validation, validation)):
        shown, label = batch(source, 7)
        pixels = Image.fromarray(stored[indices[7]].numpy().astype(np.float32))
        resized = np.asarray(pixels.resize((32, 32), Image.Resampling.BILINEAR))
        np.testing.assert_allclose(shown[0, 0].numpy(), resized / 8 - 1, atol=1e-5)
        assert label.tolist() == [labels[indices[7]]]


def test_an_augmented_digit_is_moved_by_its_own_draw_and_only_in_training() -> None:
    digits, plain = opened(augment=True, image_size=16), opened(image_size=16)
    first = batch(digits.train, 3, 4, 5).images
    assert torch.equal(first, batch(digits.train, 3, 4, 5).images)
    assert torch.equal(first[1:2], batch(digits.train, 4).images)
    epochs = [batch(digits.train, 3, epoch=epoch).images for epoch in range(20)]
    assert any(not torch.equal(epochs[0], other) for other in epochs[1:])
    assert any(torch.equal(batch(plain.train, 3).images, other) for other in epochs)
    assert torch.equal(batch(digits.validation, 3).images, batch(plain.validation, 3).images)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """48 x 64 pixels in two classes, `dark` from brightness 10 up and `light` from 200 up."""
    for name, brightness in (("dark", 10), ("light", 200)):
        (tmp_path / name).mkdir()
        for number in range(10):
            pixels = np.full((48, 64, 3), brightness + number, np.uint8)
            pixels[:, 32:] = brightness + number + 40
            Image.fromarray(pixels).save(tmp_path / name / f"{number}.png")
    (tmp_path / "light" / "notes.txt").write_text("not an image")
    return tmp_path


def brightness(images: torch.Tensor) -> torch.Tensor:
    """Back to 0 to 255."""
    mean, std = (torch.tensor(value).view(3, 1, 1) for value in (MEAN, STD))
    return (images * std + mean) * 255


def test_a_folder_of_classes_is_split_and_labelled_by_name(folder: Path) -> None:
    images = opened(dataset=str(folder), image_size=32, validation_fraction=0.3)
    assert (images.classes, images.channels, images.decodes) == (2, 3, True)
    assert (len(images.train), len(images.validation)) == (14, 6)
    shown, labels = batch(images.train, *range(14))
    assert shown.shape == (14, 3, 32, 32)
    assert labels.tolist() == [0] * 7 + [1] * 7
    seen = brightness(shown)
    assert (seen[:7] < 70).all()
    assert (seen[7:] > 190).all()


def test_without_augmentation_the_centre_is_shown(folder: Path) -> None:
    images = opened(dataset=str(folder), image_size=32)
    shown = brightness(batch(images.validation, 0).images)[0, 0]
    left, right = float(shown[16, 0]), float(shown[16, 31])
    assert right - left == pytest.approx(40, abs=0.01)
    # The step in brightness lies in the middle of the file, so in the middle of what is shown.
    assert float(shown[16, 14]) == pytest.approx(left, abs=0.01)
    assert float(shown[16, 17]) == pytest.approx(right, abs=0.01)


def test_augmentation_crops_and_mirrors_by_the_draw_whatever_the_threads(folder: Path) -> None:
    params = {"dataset": str(folder), "image_size": 32, "augment": True}
    images = opened(**params)
    several = batch(images.train, *range(16)).images
    for index in range(16):
        assert torch.equal(several[index : index + 1], batch(images.train, index).images)
    epochs = [
        brightness(batch(images.train, 0, epoch=epoch).images)[0, 0, 16] for epoch in range(30)
    ]
    mirrored = sum(float(row[0] - row[31]) > 20 for row in epochs)
    upright = sum(float(row[31] - row[0]) > 20 for row in epochs)
    assert mirrored > 3
    assert upright > 3
    assert torch.equal(
        batch(images.validation, 0).images, batch(images.validation, 0, epoch=1).images
    )


def test_a_folder_with_its_own_validation_keeps_it(folder: Path, tmp_path: Path) -> None:
    root = tmp_path / "both"
    for split, numbers in (("train", range(10)), ("val", range(3))):
        for name in ("dark", "light"):
            (root / split / name).mkdir(parents=True)
            for number in numbers:
                file = root / split / name / f"{number}.png"
                file.symlink_to(folder / name / f"{number}.png")
    images = opened(dataset=str(root), image_size=32)
    assert (len(images.train), len(images.validation)) == (20, 6)
    (root / "val" / "purple").mkdir()
    with pytest.raises(UserError, match="purple is of a class that the training folder"):
        opened(dataset=str(root), image_size=32)


def test_grey_and_transparent_images_become_three_channels(tmp_path: Path) -> None:
    for name, mode in (("grey", "L"), ("clear", "RGBA"), ("few", "P")):
        (tmp_path / name).mkdir()
        for number in range(2):
            Image.new(mode, (40, 40), 100 if mode != "RGBA" else (100, 100, 100, 9)).save(
                tmp_path / name / f"{number}.png"
            )
    images = opened(dataset=str(tmp_path), image_size=16, validation_fraction=0.5)
    assert batch(images.train, 0, 1, 2).images.shape == (3, 3, 16, 16)


def test_a_file_that_is_no_image_is_named(folder: Path) -> None:
    (folder / "dark" / "3.png").write_bytes(b"\x89PNG\r\n\x1a\n but then nothing")
    images = opened(dataset=str(folder), image_size=32, validation_fraction=0.1)
    with pytest.raises(UserError, match=r"dark/3\.png: cannot be read as an image"):
        batch(images.train, *range(len(images.train))), batch(images.validation, 0, 1)


def test_a_split_that_leaves_one_side_empty_is_refused(folder: Path) -> None:
    with pytest.raises(UserError, match=r"20 images to train and 0 to validate on"):
        opened(dataset=str(folder), image_size=32, validation_fraction=0.01)
