"""What a user reads when a job's YAML is refused: each text, to the letter.

A case is `<case>.yaml` with `<case>.txt` in `tests/golden/errors`, and `<case>.set` for `--set`.
"""

from pathlib import Path

import pytest

from dovetail_jobs.errors import DovetailError, NotFound, SpecError
from dovetail_jobs.load import load_file, load_text

GOLDEN = Path(__file__).parent.parent / "golden" / "errors"
CASES = sorted(path.stem for path in GOLDEN.glob("*.yaml"))


def golden(case: str) -> str:
    return (GOLDEN / f"{case}.txt").read_text()


def said(error: DovetailError, folder: Path = GOLDEN) -> str:
    return f"{error}\n".replace(str(folder), "$FOLDER")


@pytest.mark.parametrize("case", CASES)
def test_refused_yaml_says_place_value_rule_and_way_out(case: str) -> None:
    path = GOLDEN / f"{case}.yaml"
    overrides = path.with_suffix(".set")
    settings = overrides.read_text().splitlines() if overrides.exists() else []
    with pytest.raises(SpecError) as caught:
        load_text(path.read_text(), file=path.name, base=path.parent, overrides=settings)
    assert said(caught.value) == golden(case)


@pytest.mark.parametrize("case", CASES)
def test_a_refusal_never_shows_a_secret(case: str) -> None:
    assert "hunter" not in golden(case)


def test_a_missing_file_is_named() -> None:
    with pytest.raises(NotFound) as caught:
        load_file(GOLDEN / "missing_file.yaml")
    assert said(caught.value) == golden("missing_file")


def test_a_folder_is_no_job() -> None:
    with pytest.raises(SpecError) as caught:
        load_file(GOLDEN / "no-images")
    assert said(caught.value) == golden("folder")


def test_twenty_megabytes_are_refused_unread(tmp_path: Path) -> None:
    with (tmp_path / "large.yaml").open("wb") as stream:
        stream.truncate(20 * 10**6)
    with pytest.raises(SpecError) as caught:
        load_file(tmp_path / "large.yaml")
    assert said(caught.value, tmp_path) == golden("large_file")


def test_a_file_of_another_encoding_is_refused_at_its_line(tmp_path: Path) -> None:
    (tmp_path / "latin.yaml").write_bytes("name: x\nscript: cafè\n".encode("latin-1"))
    with pytest.raises(SpecError) as caught:
        load_file(tmp_path / "latin.yaml")
    assert said(caught.value, tmp_path) == golden("encoding")
