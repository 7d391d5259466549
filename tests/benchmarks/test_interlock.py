"""The looks of `benchmarks/interlock.py`: which count, and whether they are enough."""

from __future__ import annotations

from interlock import AT_ONCE_S, LOOKS_A_STEP, Looks, by_interlocking


def test_a_look_that_was_interrupted_is_counted_as_that_and_adds_up_nothing() -> None:
    looks = Looks()
    looks.take((5, 1), 0.0)
    looks.take((2, 3), 0.0)
    looks.take((50, 50), AT_ONCE_S)
    assert looks == Looks(counted=2, interrupted=1, sum_bytes=6, peaks_bytes=(5, 3))


def test_too_few_looks_are_no_measurement() -> None:
    looks = Looks(interrupted=7)
    assert looks.complaint(2) == (
        "0 looks at 2 steps counted and 7 were interrupted; 10 a step are needed: use a machine "
        "that does less beside"
    )
    looks.counted = 2 * LOOKS_A_STEP - 1
    assert looks.complaint(2) is not None
    looks.counted += 1
    assert looks.complaint(2) is None


def test_bytes_that_left_are_not_passed_over() -> None:
    assert by_interlocking([0.0, 0]).startswith("without swapping: ")
    assert by_interlocking([0.0, 3.5, 1.0]).startswith("in 2 of 3 repeats bytes left the device")
