"""Several jobs on one device, through the daemon's loop: who starts, who waits and what is said."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from dovetail.service.code import CodeShelf
from dovetail.service.devices import Devices
from dovetail.service.forecasts import Forecasts
from dovetail.service.foresight import Foresight, Measured
from dovetail.service.outlooks import Foreseen
from dovetail.service.views import job_view
from dovetail.store.records import JobRecord
from dovetail_jobs.lifecycle import Reason, State
from dovetail_jobs.spec import JobSpec
from dovetail_workers.reports import Busy, Ended, MemoryUsed
from dovetail_workers.storage.local import LocalStorage
from helpers.bench import Bench
from helpers.build import MIB, profile

SHORT = "out of memory: a step found none"
LADDER = profile((600 * MIB, 1.0), (300 * MIB, 1.2), (200 * MIB, 2.0))


class Room(Bench):
    """Jobs of one device of 1 GiB, whose forecasts come when they are told."""

    def managed(self, name: str, **resources: Any) -> str:
        spec = JobSpec.model_validate(
            {
                "name": name,
                "family": "swin",
                "train": {"steps": 1},
                "memory": {"policy": "tensile"},
                "resources": resources,
            }
        )
        job, _ = self.store.submit(spec.to_json(), user="u", key=None, now=self.now)
        self.turn()
        return job.id

    def foresee(self, *job_ids: str) -> None:
        for job_id in job_ids:
            found = Foreseen(job_id=job_id, peak_bytes=LADDER.peak_bytes, profile=LADDER)
            self.daemon.step([found])
        self.turn()

    def finish(self, job_id: str) -> None:
        self.finish_attempt(f"{job_id}.1")

    def finish_attempt(self, attempt_id: str) -> None:
        self.cluster.begin(attempt_id)
        self.cluster.finish(attempt_id)
        self.turn()


def test_three_jobs_that_share_run_at_once(tmp_path: Path) -> None:
    room = Room(tmp_path, cpus=4.0)
    jobs = [room.managed(name, share=True) for name in "abc"]
    waiting = room.job(jobs[1])
    assert waiting.reason is Reason.WAITING_FOR_DEVICE
    assert waiting.message.startswith(
        "waits for a device of its own, since its memory is not foreseen yet: cpu:0 on n1 is held"
    )
    room.foresee(*jobs)
    assert [room.job(job_id).state for job_id in jobs] == [State.STARTING] * 3
    launches = [room.cluster.launched[f"{job_id}.1"] for job_id in jobs]
    assert {(launch.device, launch.share, launch.priority) for launch in launches} == {
        ("cpu:0", True, 50)
    }
    room.store.close()


def leases(room: Room) -> list[int | None]:
    (device,) = Devices(room.state, room.store).now()
    assert sum(use.lease_bytes or 0 for use in device.jobs) + (device.free_bytes or 0) <= 2**30
    return [use.lease_bytes for use in device.jobs]


def test_their_leases_follow_who_comes_and_who_goes(tmp_path: Path) -> None:
    """As the coordinator of a real broker gives them, at the daemon's end of it."""
    room = Room(tmp_path, cpus=4.0)
    first = room.managed("a", share=True)
    room.foresee(first)
    assert leases(room) == [None]  # its process has not begun, and was not foreseen before
    room.cluster.begin(f"{first}.1")
    room.turn()
    assert leases(room) == [600 * MIB]
    second, third = room.managed("b", share=True), room.managed("c", share=True)
    room.foresee(second)
    assert leases(room) == [512 * MIB] * 2
    room.foresee(third)
    assert leases(room) == [2**30 // 3] * 3
    room.cluster.lose(f"{second}.1")
    room.turn()
    assert leases(room) == [2**30 // 3] * 3  # its second attempt came at once
    room.finish(third)
    assert leases(room) == [512 * MIB] * 2
    room.cluster.finish(f"{first}.1")
    room.turn()
    assert leases(room) == [600 * MIB]
    room.store.close()


def test_two_jobs_that_keep_the_device_busy_run_one_after_the_other(tmp_path: Path) -> None:
    room = Room(tmp_path, cpus=1.0)
    first, second = room.managed("a", cpus=0.5), room.managed("b", cpus=0.5)
    room.foresee(first, second)
    waiting = room.job(second)
    assert (waiting.state, waiting.reason) == (State.QUEUED, Reason.WAITING_FOR_DEVICE)
    assert "instead of 1.00, since they keep it busy" in waiting.message
    room.finish(first)
    assert room.job(second).state is State.STARTING
    room.store.close()


def test_jobs_that_were_measured_to_leave_the_device_idle_join_by_themselves(
    tmp_path: Path,
) -> None:
    room = Room(tmp_path, cpus=1.0)
    first, second, third = (room.managed(name, cpus=0.3) for name in "abc")
    room.foresee(first, second, third)
    assert "since they keep it busy" in room.job(second).message
    room.cluster.begin(f"{first}.1")
    room.cluster.report(f"{first}.1", Busy(share=0.3))
    room.turn()
    # the running one is known to leave room, the other is taken to want all it can get
    assert room.job(second).state is State.STARTING
    assert "since they keep it busy" in room.job(third).message
    room.daemon.step([Foreseen(job_id=third, peak_bytes=1, profile=LADDER, busy=0.3)])
    room.cluster.begin(f"{second}.1")
    room.cluster.report(f"{second}.1", Busy(share=0.3))
    room.turn()
    assert room.job(third).state is State.STARTING
    room.store.close()


def test_jobs_that_were_measured_to_be_busy_wait_and_say_so(tmp_path: Path) -> None:
    room = Room(tmp_path, cpus=1.0)
    jobs = [room.managed(name, cpus=0.3) for name in "ab"]
    room.foresee(jobs[0])
    room.cluster.begin(f"{jobs[0]}.1")
    room.cluster.report(f"{jobs[0]}.1", Busy(share=0.97))
    room.turn()
    found = Foreseen(job_id=jobs[1], peak_bytes=1, profile=LADDER, busy=0.97)
    room.daemon.step([found])
    room.turn()
    waiting = room.job(jobs[1])
    assert waiting.state is State.QUEUED
    assert "would do 1.03 jobs' work at a time instead of 1.00, since they keep it busy" in (
        waiting.message
    )
    room.store.close()


def test_two_jobs_that_leave_the_device_idle_run_together(tmp_path: Path) -> None:
    room = Room(tmp_path, cpus=2.0)
    jobs = [room.managed(name) for name in "ab"]
    room.foresee(*jobs)
    assert [room.job(job_id).state for job_id in jobs] == [State.STARTING] * 2
    room.store.close()


def test_a_job_whose_forecast_cannot_be_had_waits_for_a_device_of_its_own(tmp_path: Path) -> None:
    room = Room(tmp_path, cpus=4.0)
    first, second = room.managed("a", share=True), room.managed("b", share=True)
    room.foresee(first)
    room.daemon.step([Foreseen(job_id=second, cause="its step cannot be traced")])
    room.turn()
    said = "its memory cannot be foreseen (its step cannot be traced)"
    waiting = room.job(second)
    assert waiting.message.startswith(f"waits for a device of its own, since {said}")
    (warned,) = (event for event in room.store.events(second) if event.kind == "Warned")
    assert warned.message == f"{said}, so it waits for a device of its own"
    room.daemon.step([Foreseen(job_id=second, cause="its step cannot be traced")])  # and only once
    assert [event.kind for event in room.store.events(second)].count("Warned") == 1
    room.finish(first)
    assert room.job(second).state is State.STARTING
    room.store.close()


def test_a_script_shares_only_what_it_declares(tmp_path: Path) -> None:
    room = Room(tmp_path, cpus=4.0)
    small = [room.submit(name, resources={"memory": "400MiB"}) for name in "ab"]
    assert [room.job(job_id).state for job_id in small] == [State.STARTING] * 2
    third = room.submit("c", resources={"memory": "400MiB"})
    assert "leaves 224MiB, and this job needs 400MiB at least" in room.job(third).message
    whole = room.submit("d")
    assert room.job(whole).state is State.QUEUED
    assert [room.cluster.launched[f"{job_id}.1"].share for job_id in small] == [True, True]
    room.store.close()


def test_how_it_is_known_what_a_job_takes_is_shown(tmp_path: Path) -> None:
    room = Room(tmp_path, cpus=4.0)

    def shown(job_id: str) -> tuple[str | None, int | None]:
        memory = job_view(room.job(job_id), room.storage).memory
        return memory.provenance, memory.forecast_bytes

    assert shown(room.submit("a", resources={"memory": "100MiB"})) == ("declared", None)
    assert shown(room.submit("b")) == (None, None)
    family = room.managed("c")
    assert shown(family) == (None, None)
    room.foresee(family)
    assert shown(family) == ("traced", 600 * MIB)
    again = room.managed("d")
    room.daemon.step([Foreseen(job_id=again, peak_bytes=700 * MIB, provenance="measured")])
    assert shown(again) == ("measured", 700 * MIB)
    room.store.close()


def test_a_new_server_leaves_holders_alone_until_they_are_foreseen_again(tmp_path: Path) -> None:
    room = Room(tmp_path, cpus=4.0)
    first = room.managed("a", share=True)
    room.foresee(first)
    room.cluster.begin(f"{first}.1")
    room.turn()
    live = room.cluster.live
    room.daemon = room.new_daemon()
    room.cluster.live |= live
    room.turn()
    second = room.managed("b", share=True)
    room.foresee(second)
    assert "cannot share it: its memory is not foreseen yet" in room.job(second).message
    room.foresee(first)
    assert room.job(second).state is State.STARTING
    assert room.job(first).state is State.RUNNING
    room.store.close()


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
