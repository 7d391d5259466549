"""`--set`: typed by the spec, checked with the rest, and named as its own place."""

from typing import Any

import pytest
from hypothesis import given

from helpers.job_text import JOB, load, refused
from helpers.specs import texts, to_yaml, values

SCRIPT = "name: s\nscript: python train.py\nenv: {A: a}\n"


@pytest.mark.parametrize(
    ("setting", "path", "value"),
    [
        ("train.steps=20", "train.steps", 20),
        ("train.optimizer.lr=1e-4", "train.optimizer.lr", 1e-4),
        ("train.optimizer.betas=[0.8, 0.9]", "train.optimizer.betas", [0.8, 0.9]),
        ("train.optimizer={name: sgd, momentum: 0.9}", "train.optimizer.momentum", 0.9),
        ("train.validate.every=5", "train.validate.every", 5),
        ("train.clip_norm=null", "train.clip_norm", None),
        ("resources.memory=4GiB", "resources.memory", 4 * 2**30),
        ("resources.memory=auto", "resources.memory", "auto"),
        ("max_duration=1h30m", "max_duration", 5400.0),
        ("name=123", "name", "123"),
        ("name=true", "name", "true"),
        ("project=a", "project", "a"),
        ("workdir=null", "workdir", None),
        ("labels.team=7", "labels", {"team": "7"}),
        ("labels.team.size=a=b", "labels", {"team.size": "a=b"}),
        ("labels={a: b}", "labels", {"a": "b"}),
        ("env.PATH=[x", "env", {"PATH": "[x"}),
        ("params.augment=true", "params.augment", True),
        ("params.dataset=digits", "params.dataset", "digits"),
    ],
)
def test_a_setting_is_read_as_its_key_wants_it(setting: str, path: str, value: Any) -> None:
    found: Any = load(JOB, setting).to_json()
    for step in path.split("."):
        found = found[step]
    assert found == value


def test_later_settings_win_and_see_earlier_ones() -> None:
    spec = load(JOB, "train.steps=20", "train.steps=null", "train.epochs=2", "params.batch_size=16")
    assert spec.train is not None
    assert (spec.train.steps, spec.train.epochs, spec.params["batch_size"]) == (None, 2, 16)


def test_a_setting_mends_what_the_file_has_wrong() -> None:
    assert load(JOB.replace("steps: 10", "steps: ten"), "train.steps=10") == load(JOB)


@given(text=texts)
def test_text_is_taken_as_it_stands(text: str) -> None:
    assert load(SCRIPT, f"env.A={text}").env == {"A": text}


@given(value=values)
def test_free_params_take_any_value(value: Any) -> None:
    text = to_yaml(value, flow=True)
    said = refused(SCRIPT, f"params.x={text}")
    assert "belongs to a family" in said


@pytest.mark.parametrize(
    ("setting", "said"),
    [
        ("train.stepz=10", "--set train.stepz=10  train.stepz: 10  no key of train; "),
        ("lr=3", "did you mean train.optimizer.lr?"),
        (
            "train.steps.x=1",
            "train.steps  is no mapping, so it has no key x; set train.steps as a whole",
        ),
        ("train.steps='5'", "must be a whole number"),
        ("params.batch_size=[", "is not valid YAML"),
        ("=3", "must be KEY=VALUE"),
        ("train..steps=3", "must be KEY=VALUE"),
        ("train", "must be KEY=VALUE"),
        ("name=a\0b", "must not hold a NUL character"),
        ("name=\udcff", "must be valid Unicode text"),
    ],
)
def test_a_setting_that_does_not_fit_is_refused_at_its_own_place(setting: str, said: str) -> None:
    text = refused(JOB, setting)
    assert text.startswith("--set ")
    assert said in text


def test_a_secret_given_in_the_open_is_refused_without_showing_it() -> None:
    assert "hunter2" not in refused(SCRIPT, "secrets.TOKEN=hunter2")
    assert "hunter2" not in refused(SCRIPT, "secrets={TOKEN: hunter2}")
