"""What an image classification job may set."""

from pathlib import Path

import pytest
from pydantic import ValidationError

from dovetail_jobs.families.image_classification.params import Params
from dovetail_jobs.family_params import DataRefused


def picture(path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.touch()


def located(dataset: str, base: Path) -> str:
    return Params(dataset=dataset, batch_size=1).located(base).dataset


@pytest.mark.parametrize(
    ("backbone", "given", "size"),
    [
        ("swin_test", None, 32),
        ("swin_test", 16, 16),
        ("swin_tiny", None, 224),
        ("swin_base", 96, 96),
    ],
)
def test_an_image_size_fits_the_windows_or_is_the_usual_one(
    backbone: str, given: int | None, size: int
) -> None:
    params = Params.model_validate(
        {"backbone": backbone, "dataset": "digits", "batch_size": 1, "image_size": given}
    )
    assert params.image_size == size


@pytest.mark.parametrize(
    ("backbone", "size"), [("swin_test", 24), ("swin_large", 240), ("swin_test", 0)]
)
def test_an_image_size_that_does_not_fit_is_refused(backbone: str, size: int) -> None:
    with pytest.raises(ValidationError):
        Params.model_validate(
            {"backbone": backbone, "dataset": "digits", "batch_size": 1, "image_size": size}
        )


def test_a_folder_of_class_folders_is_a_dataset(tmp_path: Path) -> None:
    picture(tmp_path / "set" / "cat" / "a.png")
    (tmp_path / "set" / "dog").mkdir()
    assert located("set", tmp_path) == str(tmp_path / "set")


def test_train_and_val_make_a_dataset(tmp_path: Path) -> None:
    picture(tmp_path / "train" / "cat" / "a.jpg")
    picture(tmp_path / "train" / "dog" / "a.jpg")
    picture(tmp_path / "val" / "cat" / "b.jpg")
    assert located(str(tmp_path), Path("/")) == str(tmp_path)


@pytest.mark.parametrize(
    ("files", "said"),
    [
        ([], "no class folders"),
        (["a.jpg"], "no class folders"),
        (["cat/a.txt"], "no images"),
        (["train/cat/a.jpg"], "val does not exist"),
        (["train/cat/a.jpg", "val/a.jpg"], "no class folders"),
        (["train/cat/a.jpg", "val/dog/a.jpg"], "the class dog in val but not in train"),
        ([".git/a.jpg"], "no class folders"),
    ],
)
def test_a_folder_without_images_by_class_is_refused(
    tmp_path: Path, files: list[str], said: str
) -> None:
    for name in files:
        picture(tmp_path / name)
    with pytest.raises(DataRefused, match=said) as caught:
        located(".", tmp_path)
    assert caught.value.key == "dataset"


def test_a_folder_that_is_not_there_is_refused_with_where_it_was_looked_for(tmp_path: Path) -> None:
    with pytest.raises(DataRefused, match=f"looked for {tmp_path}/a/b"):
        located("a/b", tmp_path)
    with pytest.raises(DataRefused, match="no such folder"):
        located("~no-such-user/data", tmp_path)
    with pytest.raises(DataRefused, match="no such folder"):
        located("x" * 5000, tmp_path)


def test_a_broken_link_beside_the_classes_is_no_class(tmp_path: Path) -> None:
    picture(tmp_path / "a" / "1.jpg")
    (tmp_path / "b").symlink_to(tmp_path / "loop")
    (tmp_path / "loop").symlink_to(tmp_path / "b")
    assert located(".", tmp_path) == str(tmp_path)
