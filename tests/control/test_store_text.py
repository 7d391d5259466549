"""What a program says is kept by both databases alike, however odd; one report stops no reading."""

from __future__ import annotations

import math
from collections.abc import Iterator

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dovetail.store.store import Store
from dovetail.store.text import NAME_LENGTH, dumps, name, storable
from dovetail_jobs.errors import NotFound
from dovetail_jobs.lifecycle import LaunchFailed, Placed
from dovetail_workers.reports import Metrics, Progress, Refused, Report
from helpers.build import at, spec_json

ODD = "a\x00b\ud800c"
KEPT = "a\ufffdb\ufffdc"


@pytest.fixture
def store(database_url: str) -> Iterator[Store]:
    with Store(database_url) as opened:
        yield opened


def placed(store: Store) -> str:
    job, _ = store.submit(spec_json(), user="ada", key=None, now=at())
    started = Placed(attempt=1, node="n1", device="cpu:0")
    assert store.apply(job.id, job.version, started, at(), node_id="id-n1", cpus=1.0)
    return job.id


def record(store: Store, job_id: str, *reports: Report, segment: int = 1) -> None:
    assert store.record(
        job_id, 1, cursor_from=segment - 1, cursor_to=segment, reports=reports, now=at()
    )


def test_characters_that_a_database_refuses_are_replaced_everywhere(store: Store) -> None:
    job, _ = store.submit(
        spec_json(labels={"team": ODD}), user=ODD, key=f"key {ODD}", now=at(), code=None
    )
    again, created = store.submit(
        spec_json(labels={"team": ODD}), user=ODD, key=f"key {ODD}", now=at()
    )
    assert (again.id, created) == (job.id, False)
    assert (again.user, again.labels, again.spec["labels"]) == (KEPT, {"team": KEPT}, again.labels)
    with pytest.raises(NotFound):
        store.job(ODD)


def test_a_cause_with_odd_characters_is_told(store: Store) -> None:
    job_id = placed(store)
    job = store.job(job_id)
    failed = LaunchFailed(attempt=1, cause=f"ActorDiedError: {ODD}")
    assert store.apply(job_id, job.version, failed, at())
    assert f"ActorDiedError: {KEPT}" in store.events(job_id)[-1].message
    assert f"ActorDiedError: {KEPT}" in store.job(job_id).attempts[0].message


def test_reports_with_odd_text_and_numbers_are_recorded(store: Store) -> None:
    job_id = placed(store)
    record(
        store,
        job_id,
        Metrics(step=1, values={ODD: 1.0, "loss": math.nan, "perplexity": math.inf}),
        Progress(phase=ODD, step=1, steps_per_s=math.inf),
        Refused(message=ODD),
    )
    job = store.job(job_id)
    assert job.metrics == {KEPT: 1.0, "loss": None, "perplexity": None}
    assert job.progress is not None
    assert (job.progress.phase, job.progress.steps_per_s) == (KEPT, None)
    assert job.attempts[0].refusal == KEPT
    assert {point.metric for point in store.metric_points(job_id)} == {*job.metrics}


def test_long_names_stay_distinct_and_are_found_again(store: Store) -> None:
    job_id = placed(store)
    one, two = "m" * 300 + "1", "m" * 300 + "2"
    record(store, job_id, Metrics(step=1, values={one: 1.0, two: 2.0}))
    record(store, job_id, Metrics(step=2, values={one: 3.0}), segment=2)
    assert [(point.step, point.value) for point in store.metric_points(job_id, one)] == [
        (1, 1.0), (2, 3.0),
    ]  # fmt: skip
    assert [point.value for point in store.metric_points(job_id, two)] == [2.0]


def test_the_beginning_of_an_id_is_found_in_either_case_and_with_no_wildcards(
    store: Store,
) -> None:
    job, _ = store.submit(spec_json(name="Named"), user="ada", key=None, now=at())
    assert store.job(job.id[:5].upper()).id == job.id
    assert store.job("Named").id == job.id
    for ref in ("named", "____", "%%%%", job.id + "x" * 100):
        with pytest.raises(NotFound):
            store.job(ref)


@given(st.text(st.characters(), max_size=600))
def test_every_text_becomes_one_that_can_be_stored(text: str) -> None:
    kept = storable(text)
    assert kept.encode().decode() == kept
    assert "\x00" not in kept
    assert storable(kept) == kept
    assert len(kept) == len(text)
    assert len(name(text)) <= NAME_LENGTH
    assert name(name(text)) == name(text)


@given(st.floats())
def test_every_number_becomes_json(value: float) -> None:
    assert (dumps(value) == "null") is (not math.isfinite(value))
