"""Several jobs on one device, through the daemon's loop: who starts, who waits and what is said."""

from __future__ import annotations

from pathlib import Path

from dovetail.service.devices import Devices
from dovetail.service.outlooks import Foreseen
from dovetail.service.views import job_view
from dovetail_jobs.lifecycle import Reason, State
from dovetail_workers.reports import Busy
from helpers.build import MIB
from helpers.room import LADDER, Room


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
