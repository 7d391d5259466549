"""What a job's spec and forecast make of its place among others."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from dovetail.service.outlooks import Foreseen, corrected, foreseen, sharing, warnings
from dovetail_jobs.spec import JobSpec
from helpers.build import MIB, profile, spec
from tensile.coordinator import declared

LADDER = profile((200 * MIB, 1.0), (120 * MIB, 1.2), (50 * MIB, 2.0))
KNOWN = Foreseen(job_id="a", peak_bytes=200 * MIB, profile=LADDER)
UNKNOWN = Foreseen(job_id="a", cause="its step reads a file")


def family(resources: dict[str, Any] | None = None, **memory: Any) -> JobSpec:
    return JobSpec.model_validate(
        {
            "name": "a",
            "family": "swin",
            "train": {"steps": 1},
            "memory": {"policy": "tensile", **memory},
            "resources": resources or {},
        }
    )


def test_a_managed_job_offers_its_ladder() -> None:
    offered = sharing(family({"min_speed": 0.7}), KNOWN)
    assert (offered.share, offered.profile, offered.min_speed) == ("auto", LADDER, 0.7)
    assert (offered.priority, offered.alone) == (50, None)


@pytest.mark.parametrize(
    ("kept", "of_attempts", "busy"),
    [(None, (), 1.0), (0.3, (), 0.3), (None, (None, 0.4), 0.4), (0.3, (0.4,), 0.4), (0.0, (), 0.0)],
)
def test_a_job_is_as_busy_as_the_most_that_was_measured_and_before_it_is_busy(
    kept: float | None, of_attempts: tuple[float | None, ...], busy: float
) -> None:
    assert sharing(family(), replace(KNOWN, busy=kept), of_attempts).busy == busy
    assert sharing(family(), None).busy == 1.0


@pytest.mark.parametrize(
    ("resources", "memory", "rungs"),
    [
        ({"memory": 130 * MIB}, {}, 2),
        ({}, {"budget": "60%"}, 2),
        ({}, {"budget": 60 * MIB}, 1),
        ({"memory": 130 * MIB}, {"budget": 60 * MIB}, 1),
        ({"memory": MIB}, {}, 1),
    ],
)
def test_what_a_job_may_not_use_is_not_in_its_ladder(
    resources: dict[str, Any], memory: dict[str, Any], rungs: int
) -> None:
    offered = sharing(family(resources, **memory), KNOWN).profile
    assert offered is not None
    assert offered.rungs == LADDER.rungs[-rungs:]


@pytest.mark.parametrize(
    ("job", "found", "why"),
    [
        (family(), None, "its memory is not foreseen yet"),
        (family(), UNKNOWN, "its memory cannot be foreseen (its step reads a file)"),
        (family({"share": False}), None, None),
        (family(policy="none"), UNKNOWN, None),
        (spec(), None, None),
    ],
)
def test_who_has_no_profile_needs_a_device_of_its_own_and_says_why(
    job: JobSpec, found: Foreseen | None, why: str | None
) -> None:
    offered = sharing(job, found)
    assert (offered.profile, offered.alone) == (None, why)


def test_a_script_shares_what_it_declares_and_nothing_else() -> None:
    assert sharing(spec(resources={"memory": "1MiB"}), None).profile == declared(MIB)
    assert sharing(spec(resources={"memory": "1MiB"}), None).share == "auto"
    assert sharing(spec(resources={"memory": 0}), None).share is False
    assert sharing(spec(), None).share is False


def test_a_declared_memory_stands_for_a_forecast_that_cannot_be_had() -> None:
    job = family({"memory": "1MiB"})
    assert sharing(job, UNKNOWN).profile == declared(MIB)
    assert warnings(job, UNKNOWN) == ()


@pytest.mark.parametrize(
    ("job", "found", "said"),
    [
        (family({"memory": "300MiB"}), KNOWN, None),
        (
            family({"memory": "100MiB"}),
            KNOWN,
            "resources.memory: 100MiB is below the forecast peak of 200MiB; the job is kept to it "
            "and pays with time",
        ),
        (
            family({"memory": "10MiB"}),
            KNOWN,
            "resources.memory: 10MiB is below the forecast peak of 200MiB, and below 50MiB, the "
            "least that a plan of it keeps",
        ),
        (
            family({"memory": "100MiB"}, policy="none"),
            KNOWN,
            "resources.memory: 100MiB is below the forecast peak of 200MiB, and the job is ended "
            "where it takes more; reserve more, or use memory.policy: tensile",
        ),
        (family({"memory": "300MiB"}, budget="300MiB"), KNOWN, None),
        (
            family({"memory": "300MiB"}, budget="2GiB"),
            KNOWN,
            "memory.budget: 2GiB is above resources.memory of 300MiB, which a job never exceeds, "
            "so that is its budget; reserve more, or ask for less",
        ),
        (
            family(),
            UNKNOWN,
            "its memory cannot be foreseen (its step reads a file), so it waits for a device of "
            "its own",
        ),
    ],
)
def test_the_user_is_warned_of_what_will_cost_them(
    job: JobSpec, found: Foreseen, said: str | None
) -> None:
    assert warnings(job, found) == (() if said is None else (said,))


def test_a_share_of_the_forecast_that_is_more_than_reserved_is_told_in_bytes() -> None:
    job = family({"memory": "100MiB"}, budget="60%")
    said = "memory.budget: 60% of the forecast peak, 120MiB, is above resources.memory of 100MiB"
    assert any(each.startswith(said) for each in warnings(job, KNOWN))
    of_the_trace = replace(KNOWN, peak_bytes=300 * MIB, traced_bytes=150 * MIB)
    assert not any("memory.budget" in each for each in warnings(job, of_the_trace))


def test_a_higher_peak_that_was_measured_corrects_every_rung() -> None:
    answer = {"forecast": {"peak_bytes": 190 * MIB}, "profile": LADDER.to_json()}
    as_traced = replace(KNOWN, peak_bytes=190 * MIB)
    assert foreseen("a", answer) == as_traced
    assert foreseen("a", {**answer, "measured_bytes": 200 * MIB}) == as_traced
    corrected = foreseen("a", {**answer, "measured_bytes": 300 * MIB})
    assert warnings(family(), corrected) == (
        "a job of this configuration took 300MiB, more than the 200MiB that were foreseen; that is "
        "what is counted with",
    )
    assert warnings(family(policy="none"), corrected) == ()  # nothing is decided by it
    a_little = foreseen("a", {**answer, "measured_bytes": 215 * MIB})
    assert a_little.peak_bytes == 215 * MIB
    assert warnings(family(), a_little) == ()
    assert corrected.profile is not None
    assert [rung.bytes for rung in corrected.profile.rungs] == [300 * MIB, 180 * MIB, 75 * MIB]


def sizes(found: Foreseen) -> list[int]:
    assert found.profile is not None
    return [rung.bytes // MIB for rung in found.profile.rungs]


def test_an_overrun_under_any_limit_raises_every_rung_and_is_counted_once() -> None:
    fenced = corrected(KNOWN, 180 * MIB, 1.5)  # it held 180 under 120, which is below its peak
    assert sizes(fenced) == [300, 180, 75]
    assert (fenced.provenance, fenced.peak_bytes, fenced.traced_bytes) == (
        "measured",
        300 * MIB,
        200 * MIB,
    )
    assert corrected(fenced, 180 * MIB, 1.5) == fenced
    assert sizes(corrected(fenced, 400 * MIB, 1.5)) == [400, 240, 100]
    answer = {"forecast": {"peak_bytes": 200 * MIB}, "profile": LADDER.to_json()}
    assert foreseen("a", {**answer, "measured_overrun": 1.5}) == replace(
        corrected(KNOWN, None, 1.5)
    )


def test_a_script_counts_as_what_its_command_took_where_that_is_more_than_it_declares() -> None:
    took = foreseen("a", {"measured_bytes": 900 * MIB})
    less, enough = spec(resources={"memory": "400MiB"}), spec(resources={"memory": "1GiB"})
    assert sharing(less, took).profile == declared(900 * MIB)
    assert warnings(less, took) == (
        "resources.memory: 400MiB is less than the 900MiB that the same command took before, which "
        "is what is counted with; write resources.memory: 900MiB or more",
    )
    assert sharing(enough, took).profile == declared(1024 * MIB)
    assert warnings(enough, took) == ()
    assert sharing(spec(), took).profile is None
