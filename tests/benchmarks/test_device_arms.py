"""What the figures of an arm are computed from."""

from device_arms import Arm, Run, ratios
from summed_bytes import Moment


def finished(begun_s: float, ends_s: list[float], **more: object) -> dict[str, object]:
    return {"begun_s": begun_s, "ends_s": ends_s, **more}


def run(**found: dict[str, object]) -> Run:
    moments = tuple(
        Moment(at_s=at_s, resident_bytes={"a": a, "b": b})
        for at_s, a, b in ((0.0, 5, 1), (1.0, 3, 4), (2.0, 1, 5))
    )
    return Run(arm=Arm(label="any"), begin_s=0.0, end_s=8.0, found=found, moments=moments)


SERIAL = run(a=finished(0, [1, 2]), b=finished(2, [4, 6]))  # steps of 1 s and of 2 s


def test_the_peak_is_that_of_the_sum_at_one_moment():
    assert SERIAL.peak_bytes == 7


def test_half_speed_each_is_as_much_as_serial():
    shared = run(a=finished(0, [2, 4]), b=finished(0, [4, 8]))
    assert shared.speed(SERIAL) == 1.0


def test_speed_counts_only_while_all_train():
    shared = run(a=finished(0, [1, 2, 3, 4]), b=finished(2, [4, 6]))
    assert shared.speed(SERIAL) == 2.0


def test_jobs_that_never_train_at_once_have_no_speed_together():
    assert SERIAL.speed(SERIAL) is None


def test_a_job_that_failed_leaves_no_speed():
    failed = run(a=finished(0, [2, 4]), b={"failed": "out of memory"})
    assert failed.failed == ["b"]
    assert failed.speed(SERIAL) is None


def test_a_total_takes_what_a_job_does_not_say_as_none():
    assert run(a=finished(0, [1], stall_s=0.5), b=finished(0, [1])).total("stall_s") == 0.5


def test_ratios_are_within_a_repeat():
    twice = run(a=finished(0, [1, 2]), b=finished(2, [4, 6]))
    assert ratios([SERIAL], [twice], lambda one: one.makespan_s) == [1.0]
