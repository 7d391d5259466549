"""The JSON Schema says what `load` says, as far as a schema can."""

from typing import Any

import jsonschema
import pytest
from hypothesis import given

from dovetail_jobs.catalog import FAMILIES
from dovetail_jobs.load import load_data
from dovetail_jobs.schema import DIALECT, json_schema
from helpers.specs import jobs

SCHEMA = json_schema()
VALIDATOR = jsonschema.Draft202012Validator(SCHEMA)
JOB: dict[str, Any] = {
    "name": "digits",
    "family": "image_classification",
    "params": {"dataset": "digits", "batch_size": 8},
    "train": {"steps": 10},
}


def test_the_schema_is_one() -> None:
    jsonschema.Draft202012Validator.check_schema(SCHEMA)
    assert SCHEMA["$schema"] == DIALECT
    assert SCHEMA["$id"] == "urn:dovetail:job:1"


@given(jobs)
def test_the_schema_accepts_every_job(job: dict[str, Any]) -> None:
    VALIDATOR.validate(job)
    VALIDATOR.validate(load_data(job).to_json())


@pytest.mark.parametrize(
    "change",
    [
        {"name": None},
        {"name": "-x"},
        {"nam": "x"},
        {"version": 2},
        {"script": "python train.py"},
        {"family": None},
        {"train": None},
        {"train": {}},
        {"train": {"steps": 1, "epochs": 1}},
        {"train": {"steps": 0}},
        {"train": {"steps": 1, "precision": "fp8"}},
        {"train": {"stepz": 1}},
        {"params": {"dataset": "digits"}},
        {"params": {"dataset": "digits", "batch_size": 8, "backbon": "x"}},
        {"params": {"dataset": "digits", "batch_size": "8"}},
        {"resources": {"devices": -1}},
        {"resources": {"memory": True}},
        {"secrets": {"A": "hunter2"}},
        {"env": {"1A": "x"}},
        {"labels": {"a": 1}},
        {"priority": 101},
        {"setup": "x"},
    ],
)
def test_the_schema_refuses_what_load_refuses(change: dict[str, Any]) -> None:
    job = {**JOB, **change}
    assert VALIDATOR.is_valid(JOB)
    assert not VALIDATOR.is_valid(job)


def test_every_family_is_offered_by_name() -> None:
    offered = [option.get("const") for option in SCHEMA["properties"]["family"]["anyOf"]]
    assert set(FAMILIES) <= set(offered)
