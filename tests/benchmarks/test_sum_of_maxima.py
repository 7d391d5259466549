"""The paper's rule for several jobs: budgets for good whose sum fits."""

from hypothesis import given
from hypothesis import strategies as st
from sum_of_maxima import static_budgets

from tensile.coordinator.profile import Profile, Rung

MIB = 2**20


def job(*rungs: tuple[int, float]) -> Profile:
    """Of (MiB, seconds of a step), the highest first."""
    return Profile(rungs=tuple(Rung.flat(size * MIB, step_s) for size, step_s in rungs))


def test_jobs_that_fit_have_all_they_want():
    profiles = {"a": job((100, 1), (20, 2)), "b": job((50, 1), (10, 2))}
    assert static_budgets(profiles, 150 * MIB) == {"a": 100 * MIB, "b": 50 * MIB}


def test_the_bytes_go_to_the_job_that_is_slowest_without_them():
    profiles = {"patient": job((100, 1), (20, 1.1)), "hungry": job((100, 1), (20, 5))}
    assert static_budgets(profiles, 120 * MIB) == {"patient": 20 * MIB, "hungry": 100 * MIB}


def test_where_speeds_are_equal_nobody_is_left_short():
    profiles = {"a": job((100, 1), (50, 1), (10, 1)), "b": job((100, 1), (50, 1), (10, 1))}
    assert static_budgets(profiles, 100 * MIB) == {"a": 50 * MIB, "b": 50 * MIB}


def test_what_is_over_goes_where_bytes_are_missing():
    profiles = {"a": job((100, 1), (40, 2)), "b": job((100, 1), (40, 2))}
    assert static_budgets(profiles, 90 * MIB) == {"a": 45 * MIB, "b": 45 * MIB}


def test_minima_that_do_not_fit_have_no_budgets():
    assert static_budgets({"a": job((100, 1), (60, 2)), "b": job((60, 1))}, 110 * MIB) is None


@st.composite
def profiles(draw):
    found = {}
    for name in "abc"[: draw(st.integers(1, 3))]:
        sizes = draw(st.lists(st.integers(1, 200), min_size=1, max_size=5, unique=True))
        times = draw(st.lists(st.floats(0.1, 10), min_size=len(sizes), max_size=len(sizes)))
        found[name] = job(*zip(sorted(sizes, reverse=True), sorted(times), strict=True))
    return found


@given(profiles(), st.integers(1, 700))
def test_budgets_fit_and_lie_between_minimum_and_peak(of_jobs, device_mib):
    found = static_budgets(of_jobs, device_mib * MIB)
    if found is None:
        assert sum(profile.minimum_bytes for profile in of_jobs.values()) > device_mib * MIB
        return
    assert sum(found.values()) <= device_mib * MIB
    for name, profile in of_jobs.items():
        assert profile.minimum_bytes <= found[name] <= profile.peak_bytes
