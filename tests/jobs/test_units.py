"""Text to numbers and back."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dovetail_jobs.units import at_least, format_bytes, format_seconds, parse_bytes, parse_seconds


@pytest.mark.parametrize(
    ("text", "count"),
    [
        ("4GiB", 4 * 2**30),
        ("500 MB", 500 * 10**6),
        ("1.5kib", 1536),
        ("1048576", 2**20),
        (0, 0),
        ("9007199254740993B", 9007199254740993),
    ],
)
def test_sizes(text: str | int, count: int) -> None:
    assert parse_bytes(text) == count


@pytest.mark.parametrize(
    "text", ["", "4 apples", "-1GiB", -1, True, 1.5, None, [], "1e3", "GiB", "1.5", "1.5B"]
)
def test_what_is_no_size_is_refused(text: object) -> None:
    with pytest.raises(ValueError, match="must"):
        parse_bytes(text)


@given(st.integers(0, 1023), st.sampled_from(["B", "KiB", "MiB", "GiB", "TiB"]))
def test_a_whole_size_reads_back(count: int, unit: str) -> None:
    size = parse_bytes(f"{count}{unit}")
    assert parse_bytes(format_bytes(size)) == size


@given(st.integers(0, 2**45))
def test_a_size_that_is_said_to_be_enough_is_enough(count: int) -> None:
    assert count <= parse_bytes(at_least(count)) <= 1.1 * count + 1


@pytest.mark.parametrize(
    ("text", "seconds"),
    [
        ("2h", 7200.0),
        ("1h 30m", 5400.0),
        ("45s", 45.0),
        ("1d", 86400.0),
        (0.5, 0.5),
        ("2min", 120.0),
    ],
)
def test_durations(text: str | float, seconds: float) -> None:
    assert parse_seconds(text) == seconds


@pytest.mark.parametrize(
    "text", ["", "h", "2 weeks", 0, -1, "0s", True, None, float("nan"), float("inf"), 10**400, "5"]
)
def test_what_is_no_duration_is_refused(text: object) -> None:
    with pytest.raises(ValueError, match="must"):
        parse_seconds(text)


@pytest.mark.parametrize(("seconds", "text"), [(45, "45s"), (185, "3m05s"), (7620, "2h07m")])
def test_durations_are_shown_in_two_units(seconds: float, text: str) -> None:
    assert format_seconds(seconds) == text
