"""What a job took is remembered: how one comes back that ran out, and what its like is told."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from dovetail.service.code import CodeShelf
from dovetail.service.forecasts import Forecasts
from dovetail.service.foresight import Foresight, Measured
from dovetail.store.records import JobRecord
from dovetail_jobs.lifecycle import Reason, State
from dovetail_jobs.spec import JobSpec
from dovetail_workers.reports import Busy, Ended, MemoryUsed
from dovetail_workers.storage.local import LocalStorage
from helpers.build import MIB
from helpers.room import Room

SHORT = "out of memory: a step found none"


def run_out(room: Room, attempt_id: str, limit_bytes: int, peak_bytes: int) -> None:
    """The attempt ends for want of memory, having said what it might hold and what it held."""
    room.cluster.begin(attempt_id)
    used = MemoryUsed(base_bytes=1, peak_bytes=peak_bytes, budget_bytes=limit_bytes)
    room.cluster.report(attempt_id, used)
    room.cluster.end(attempt_id, Ended(outcome="out_of_memory", exit_code=2, message=SHORT))
    room.turn()


def fenced(room: Room, attempt_id: str, limit_bytes: int, held_bytes: int) -> None:
    """The attempt is ended since it holds more than it may."""
    room.cluster.begin(attempt_id)
    overrun = room.cluster.launched[attempt_id].overrun * held_bytes / limit_bytes
    used = MemoryUsed(base_bytes=1, peak_bytes=held_bytes, budget_bytes=limit_bytes)
    room.cluster.report(attempt_id, replace(used, overrun=overrun))
    room.cluster.end(attempt_id, Ended(outcome="out_of_memory", exit_code=-9, message=SHORT))
    room.turn()


def remembering(folder: Path) -> Room:
    """What was measured is kept in `folder`."""
    shelf = CodeShelf(LocalStorage(folder / "code"), 1)
    return Room(folder, cpus=4.0, foresight=lambda put: Foresight(Forecasts(folder), shelf, put))


def test_a_script_that_ran_out_is_counted_with_what_it_took_at_the_next_submit(
    tmp_path: Path,
) -> None:
    room = remembering(tmp_path)
    hungry = room.submit("hungry", resources={"memory": "300MiB"})
    run_out(room, f"{hungry}.1", 300 * MIB, 450 * MIB)
    assert room.cluster.launched[f"{hungry}.2"].cap_bytes == 2**30
    run_of = f"{hungry}.2"
    room.cluster.begin(run_of)
    room.cluster.report(run_of, MemoryUsed(peak_bytes=700 * MIB, budget_bytes=2**30))
    room.cluster.finish(run_of)
    room.turn()
    other = room.submit("other", env={"A": "b"}, resources={"memory": "300MiB"})
    assert story(room, other, "Warned") == []
    again = room.submit("again", resources={"memory": "300MiB"})
    (said,) = story(room, again, "Warned")
    assert said == (
        "resources.memory: 300MiB is less than the 700MiB that the same command took before, which "
        "is what is counted with; write resources.memory: 700MiB or more"
    )
    assert room.cluster.launched[f"{again}.1"].cap_bytes == 700 * MIB
    third = room.submit("third", resources={"memory": "300MiB"})
    assert "and this job needs 700MiB at least" in room.job(third).message
    room.store.close()


def test_what_a_script_with_a_session_took_is_no_need_of_the_next_one(tmp_path: Path) -> None:
    """It took what was free, and does with less; unless it ran out of memory."""
    room = remembering(tmp_path)
    took = MemoryUsed(peak_bytes=700 * MIB, budget_bytes=2**30, swapped_out_bytes=0)
    elastic = room.submit("elastic", resources={"memory": "300MiB"})
    room.cluster.begin(f"{elastic}.1")
    room.cluster.report(f"{elastic}.1", took)
    room.cluster.finish(f"{elastic}.1")
    room.turn()
    again = room.submit("again", resources={"memory": "300MiB"})
    assert story(room, again, "Warned") == []
    room.cluster.begin(f"{again}.1")
    room.cluster.report(f"{again}.1", replace(took, peak_bytes=400 * MIB))
    room.cluster.end(f"{again}.1", Ended(outcome="out_of_memory", exit_code=2, message=SHORT))
    room.turn()
    third = room.submit("third", resources={"memory": "300MiB"})
    (said,) = story(room, third, "Warned")
    assert "less than the 400MiB that the same command took before" in said
    room.store.close()


def test_a_script_whose_command_took_more_than_a_device_has_one_alone(tmp_path: Path) -> None:
    room = remembering(tmp_path)
    first = room.submit("first", resources={"memory": "300MiB"})
    run_out(room, f"{first}.1", 300 * MIB, 1100 * MIB)
    room.finish_attempt(f"{first}.2")
    other = room.submit("other", env={"A": "b"}, resources={"memory": "100MiB"})
    again = room.submit("again", resources={"memory": "300MiB"})
    assert room.job(again).message.startswith(
        "waits for a device of its own, since its command took more than a device has before: "
    )
    room.finish(other)
    assert room.cluster.launched[f"{again}.1"].cap_bytes == 2**30
    last = room.submit("last", env={"A": "b"}, resources={"memory": "100MiB"})
    assert "of its 1GiB they own 1GiB as their least" in room.job(last).message
    room.store.close()


def test_a_job_that_held_more_than_it_might_comes_back_with_room_for_it(tmp_path: Path) -> None:
    room = Room(tmp_path, cpus=4.0)
    first, second = (room.managed(name, share=True) for name in "ab")
    room.foresee(first, second)
    fenced(room, f"{first}.1", limit_bytes=300 * MIB, held_bytes=430 * MIB)
    launch = room.cluster.launched[f"{first}.2"]
    assert (launch.cap_bytes, round(launch.overrun, 2)) == (430 * MIB, 1.43)
    fenced(room, f"{first}.2", limit_bytes=430 * MIB, held_bytes=500 * MIB)
    room.finish(second)
    third = room.cluster.launched[f"{first}.3"]
    assert (third.cap_bytes, round(third.overrun, 2)) == (500 * MIB, 1.67)
    fenced(room, f"{first}.3", limit_bytes=500 * MIB, held_bytes=600 * MIB)
    assert room.cluster.launched[f"{first}.4"].cap_bytes == 2**30
    fenced(room, f"{first}.4", limit_bytes=2**30, held_bytes=2**31)
    assert room.job(first).state is State.FAILED  # bounded, whatever was learnt
    room.store.close()


def story(room: Room, job_id: str, kind: str) -> list[str]:
    return [event.message for event in room.store.events(job_id) if event.kind == kind]


def test_a_job_that_ran_out_of_memory_comes_back_with_less_then_with_fewer_then_alone(
    tmp_path: Path,
) -> None:
    room = Room(tmp_path, cpus=4.0)
    first, second = (room.managed(name, share=True) for name in "ab")
    room.foresee(first, second)
    run_out(room, f"{first}.1", limit_bytes=600 * MIB, peak_bytes=610 * MIB)
    assert room.job(first).attempts[0].reason is Reason.OUT_OF_MEMORY
    (told,) = story(room, first, "MemoryRanOut")
    assert told == (
        f"attempt 1 ended: {SHORT}; attempt 2 resumes from the newest checkpoint and has memory on "
        "other terms, try 1 of 3"
    )
    # its ladder is taken to be as much higher as was measured: 610, 305 and 204 MiB
    assert story(room, first, "Readmitted") == [
        "attempt 2 comes back: attempt 1 ran out of memory on cpu:0 beside 1 other job, where it "
        "might hold 600MiB and held 610MiB at most; it is kept to 305MiB now, one rung lower"
    ]
    assert room.cluster.launched[f"{first}.2"].cap_bytes == 305 * MIB
    run_out(room, f"{first}.2", limit_bytes=305 * MIB, peak_bytes=300 * MIB)
    waiting = room.job(first)
    assert waiting.state is State.QUEUED
    assert "joins fewer than 1 there, and 1 is there now" in waiting.message
    room.finish(second)
    third = room.cluster.launched[f"{first}.3"]
    assert third.cap_bytes is not None
    assert third.cap_bytes < 305 * MIB
    (_, said) = story(room, first, "Readmitted")
    assert said.endswith("one rung lower, beside fewer jobs or on another device")
    run_out(room, f"{first}.3", limit_bytes=204 * MIB, peak_bytes=204 * MIB)
    assert room.cluster.launched[f"{first}.4"].cap_bytes == 2**30
    newcomer = room.managed("c", share=True)
    room.foresee(newcomer)
    assert "cannot share it: it ran out of memory before" in room.job(newcomer).message
    run_out(room, f"{first}.4", limit_bytes=2**30, peak_bytes=2**30)
    ended = room.job(first)
    assert (ended.state, ended.reason) == (State.FAILED, Reason.OUT_OF_MEMORY)
    room.store.close()


def test_what_a_job_comes_back_with_is_asked_for_again_by_the_next_server(tmp_path: Path) -> None:
    room = Room(tmp_path, cpus=4.0)
    job_id = room.managed("a", share=True)
    room.foresee(job_id)
    run_out(room, f"{job_id}.1", limit_bytes=600 * MIB, peak_bytes=600 * MIB)
    assert room.cluster.launched[f"{job_id}.2"].cap_bytes == 300 * MIB
    room.daemon = room.new_daemon()
    room.turn()
    assert room.cluster.launched[f"{job_id}.2"].cap_bytes == 300 * MIB
    room.store.close()


def test_a_script_that_took_more_than_it_declares_comes_back_with_a_whole_device(
    tmp_path: Path,
) -> None:
    room = Room(tmp_path, cpus=4.0)
    hungry, other = (room.submit(name, resources={"memory": "400MiB"}) for name in "ab")
    run_out(room, f"{hungry}.1", limit_bytes=400 * MIB, peak_bytes=500 * MIB)
    assert room.job(hungry).message.startswith(
        "waits for a device of its own, since it ran out of memory before: cpu:0 on n1 is held by"
    )
    room.finish(other)
    assert room.cluster.launched[f"{hungry}.2"].cap_bytes == 2**30
    (said,) = story(room, hungry, "Readmitted")
    assert said.endswith("it has no lower rung, so it has a device of its own, and all of it")
    room.store.close()


def test_a_family_that_nobody_manages_comes_back_alone_and_hears_what_would_help(
    tmp_path: Path,
) -> None:
    room = Room(tmp_path)
    spec = JobSpec.model_validate({"name": "a", "family": "swin", "train": {"steps": 1}})
    job_id = room.store.submit(spec.to_json(), user="u", key=None, now=room.now)[0].id
    room.turn()
    for attempt in range(1, 5):
        run_out(room, f"{job_id}.{attempt}", 2**30, 2**30)
    assert room.cluster.launched[f"{job_id}.2"].cap_bytes == 2**30
    said = story(room, job_id, "Readmitted")
    assert len(said) == 3
    assert said[0].endswith(
        "nobody moves its memory (with memory: {policy: tensile} it would run under less), so it "
        "has a device of its own, and all of it"
    )
    ended = room.job(job_id)
    assert (ended.state, ended.reason) == (State.FAILED, Reason.OUT_OF_MEMORY)
    room.store.close()


def test_a_declared_memory_below_the_forecast_is_told_in_the_story(tmp_path: Path) -> None:
    room = Room(tmp_path)
    job_id = room.managed("a", memory="250MiB")
    room.foresee(job_id)
    (warned,) = (event for event in room.store.events(job_id) if event.kind == "Warned")
    assert warned.message.startswith(
        "resources.memory: 250MiB is below the forecast peak of 600MiB"
    )
    room.store.close()


@pytest.mark.parametrize(
    ("peak_bytes", "busy", "learnt"),
    [
        (700 * MIB, None, [Measured(peak_bytes=700 * MIB)]),
        (500 * MIB, None, []),
        (500 * MIB, 0.3, [Measured(busy=0.3)]),
        (700 * MIB, 0.3, [Measured(peak_bytes=700 * MIB, busy=0.3)]),
    ],
)
def test_an_attempt_that_took_more_than_was_foreseen_or_was_busy_is_learnt_from(
    tmp_path: Path, peak_bytes: int, busy: float | None, learnt: list[Measured]
) -> None:
    heard: list[Measured] = []

    class Pupil(Foresight):
        def ask(self, job: JobRecord) -> None:
            """Told by the test."""

        def learn(self, job: JobRecord, measured: Measured) -> None:
            heard.append(measured)

    code = CodeShelf(LocalStorage(tmp_path / "code"), 1)
    room = Room(tmp_path, foresight=lambda put: Pupil(Forecasts(tmp_path), code, put))
    job_id = room.managed("a")
    room.foresee(job_id)
    room.cluster.begin(f"{job_id}.1")
    room.cluster.report(f"{job_id}.1", MemoryUsed(base_bytes=1, peak_bytes=peak_bytes))
    if busy is not None:
        room.cluster.report(f"{job_id}.1", Busy(share=busy))
    room.turn()
    assert heard == []
    room.cluster.lose(f"{job_id}.1")
    room.turn()
    assert list(dict.fromkeys(heard)) == learnt
    room.store.close()
