"""From text to a job: what was written is what runs, however it was written."""

import json
import pickle
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dovetail_jobs.errors import Problem, SpecError
from dovetail_jobs.load import load_data, load_file
from dovetail_jobs.resolve import resolve
from dovetail_jobs.spec import JobSpec
from helpers.job_text import HERE, JOB, load, refused
from helpers.specs import jobs, to_yaml


@given(job=jobs, flow=st.booleans())
def test_every_job_survives_yaml_and_json_unchanged(job: dict[str, Any], flow: bool) -> None:
    spec = load(to_yaml(job, flow=flow))
    as_json = json.loads(json.dumps(spec.to_json()))
    assert JobSpec.model_validate(as_json) == spec
    assert load_data(as_json) == spec
    assert load(to_yaml(as_json)) == spec
    assert load(json.dumps(as_json)) == spec


@given(job=jobs)
def test_resolving_twice_changes_nothing(job: dict[str, Any]) -> None:
    spec = load(to_yaml(job))
    assert resolve(spec, base=HERE.parent) == spec


@given(job=jobs)
def test_what_was_written_is_kept(job: dict[str, Any]) -> None:
    spec = load(to_yaml(job)).to_json()
    assert spec["name"] == job["name"]
    assert spec["labels"] == job.get("labels", {})
    assert spec["env"] == job.get("env", {})
    for key, value in job.get("params", {}).items():
        assert spec["params"][key] == value
    for key, value in job.get("train", {}).get("optimizer", {}).items():
        assert spec["train"]["optimizer"][key] == value


def test_the_defaults_of_the_family_are_visible() -> None:
    assert load(JOB).params == {
        "backbone": "swin_test",
        "dataset": "digits",
        "batch_size": 8,
        "image_size": 32,
        "validation_fraction": 0.2,
        "augment": False,
        "label_smoothing": 0.0,
        "drop_path": 0.0,
    }


def test_numbers_and_words_are_read_by_yaml_1_2() -> None:
    spec = load(
        JOB.replace("steps: 10", "steps: 10, optimizer: {lr: 1e-3, weight_decay: 1}, seed: 0x10")
        + "labels: {on: yes, time: 12:30, version: 1_0, date: 2024-01-01}\n"
    )
    assert spec.train is not None
    assert spec.train.optimizer.lr == 1e-3
    assert spec.train.optimizer.weight_decay == 1.0
    assert spec.train.seed == 16
    assert spec.labels == {"on": "yes", "time": "12:30", "version": "1_0", "date": "2024-01-01"}


def test_an_alias_stands_for_its_value() -> None:
    spec = load("name: &name swin\nscript: python train.py\nlabels: {a: *name, b: *name}\n")
    assert spec.labels == {"a": "swin", "b": "swin"}


def test_a_byte_order_mark_is_no_part_of_the_job(tmp_path: Path) -> None:
    (tmp_path / "job.yaml").write_text(JOB, encoding="utf-8-sig")
    assert load_file(tmp_path / "job.yaml").name == "digits"


def test_problems_of_params_are_told_beside_those_of_other_keys() -> None:
    text = JOB.replace("backbone", "backbon").replace("steps", "stepz")
    assert refused(text).splitlines() == [
        "job.yaml:3  params.backbon: swin_test  no key of params; did you mean params.backbone?",
        "job.yaml:4  train.stepz: 10  no key of train; did you mean train.steps?",
    ]


def test_a_problem_carries_its_place_apart_and_survives_pickling() -> None:
    with pytest.raises(SpecError) as caught:
        load(JOB.replace("steps: 10", "steps: 0"))
    problem = pickle.loads(pickle.dumps(caught.value)).problems[0]
    assert (problem.file, problem.line, problem.key, problem.value, problem.rule) == (
        "job.yaml",
        4,
        "train.steps",
        "0",
        "must be at least 1",
    )


def test_json_is_checked_as_strictly_as_yaml() -> None:
    with pytest.raises(SpecError) as caught:
        load_data({"name": 1, "script": "x", "priority": "50", "stepz": 3, "version": True})
    assert str(caught.value).splitlines() == [
        "version: true  must be a whole number",
        'name: 1  must be text; write "1"',
        "priority: 50  must be a whole number",
        "stepz: 3  no key of a job; did you mean train.steps?",
    ]


@pytest.mark.parametrize("text", ["a\0b", "\ud800"])
def test_text_that_no_process_or_database_can_carry_is_refused_in_json_too(text: str) -> None:
    with pytest.raises(SpecError):
        load_data({"name": "x", "script": text})


@given(st.text(max_size=200) | st.binary(max_size=200).map(lambda data: data.decode("latin-1")))
def test_any_text_is_a_job_or_is_refused_with_a_line(text: str) -> None:
    problems: list[Problem] | None = None
    try:
        load(text)
    except SpecError as error:
        problems = error.problems
    assert problems is None or all(problem.file and problem.line for problem in problems)
    assert problems != []


def test_loading_imports_neither_torch_nor_ray() -> None:
    program = (
        "import sys; from pathlib import Path\n"
        "from dovetail_jobs.load import load_file; from dovetail_jobs.schema import json_schema\n"
        "load_file(Path(sys.argv[1])); json_schema()\n"
        "heavy = {'torch', 'ray', 'numpy', 'timm', 'sqlalchemy'} & set(sys.modules)\n"
        "sys.exit(', '.join(heavy) or 0)\n"
    )
    example = HERE.parent.parent / "jobs" / "examples" / "swin-digits.yaml"
    done = subprocess.run([sys.executable, "-c", program, example], stderr=subprocess.PIPE)
    assert done.stderr == b""
