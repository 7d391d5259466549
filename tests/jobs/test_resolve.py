"""What resolving adds and what it refuses."""

from pathlib import Path

import pytest

from dovetail_jobs.errors import SpecError
from dovetail_jobs.load import load_data
from dovetail_jobs.resolve import NOT_YET, resolve
from helpers.job_text import JOB, load, refused

SCRIPT = "name: s\nscript: python train.py\n"


def test_a_script_runs_where_its_yaml_lies(tmp_path: Path) -> None:
    assert load(SCRIPT, base=tmp_path).workdir == str(tmp_path)


def test_a_relative_workdir_starts_where_the_yaml_lies(tmp_path: Path) -> None:
    (tmp_path / "code").mkdir()
    assert load(SCRIPT + "workdir: code\n", base=tmp_path).workdir == str(tmp_path / "code")


def test_a_built_in_family_needs_no_workdir(tmp_path: Path) -> None:
    assert load(JOB, base=tmp_path).workdir is None


def test_a_relative_dataset_starts_where_the_yaml_lies(tmp_path: Path) -> None:
    picture = tmp_path / "data" / "cat" / "1.JPG"
    picture.parent.mkdir(parents=True)
    picture.touch()
    spec = load(JOB.replace("digits,", "data,"), base=tmp_path)
    assert spec.params["dataset"] == str(tmp_path / "data")


def test_a_copy_of_the_code_stands_for_a_workdir_that_is_elsewhere(tmp_path: Path) -> None:
    (tmp_path / "copy").mkdir()
    (tmp_path / "copy" / "mine.py").write_text("def build(params, context): ...\n")
    there = {"name": "s", "family": "mine", "train": {"steps": 1}, "workdir": "/on/their/machine"}
    spec = resolve(load_data(there), base=tmp_path, code=tmp_path / "copy")
    assert spec.workdir == "/on/their/machine"
    with pytest.raises(SpecError, match="is no folder"):
        resolve(load_data(there), base=tmp_path)


def test_a_batch_is_split_evenly_over_accumulation() -> None:
    assert load(JOB, "train.accumulate=4").params["batch_size"] == 8
    assert "must be divisible by 3" in refused(JOB, "train.accumulate=3")
    assert refused(JOB, "train.accumulate=16").endswith("; use 16")


ASKED = {
    "sharding": "sharding={stage: 3}",
    "search": "search={metric: accuracy, mode: max, samples: 1, space: {}}",
    "resources.devices": "resources.devices=2",
    "env.VIRTUAL_ENV": "env.VIRTUAL_ENV=/opt/venv",
    "env.CONDA_PREFIX": "env.CONDA_PREFIX=/opt/conda",
    "env.CONDA_DEFAULT_ENV": "env.CONDA_DEFAULT_ENV=mine",
    "env.PYTHONHOME": "env.PYTHONHOME=/opt/python",
}


@pytest.mark.parametrize(("key", "rule"), [(key, rule) for key, _, rule in NOT_YET])
def test_what_is_not_yet_here_is_refused_by_its_key(key: str, rule: str) -> None:
    setting = ASKED[key]
    value = setting.partition("=")[2]
    assert refused(JOB, setting) == f"--set {setting}  {key}: {value}  {rule}"
    assert "not yet here" in rule
