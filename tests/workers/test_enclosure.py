"""What stands around an attempt: a control group where there is one, a watch, and their reports."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from dovetail_workers.cgroup import Cgroup
from dovetail_workers.enclosure import Enclosure
from dovetail_workers.launch import Launch
from dovetail_workers.library_memory import BARE_BYTES, MOST_BYTES
from dovetail_workers.memory_limit import BESIDE_BYTES
from dovetail_workers.reports import MemoryUsed, Progress, Report
from helpers.attempts import script_launch

MIB = 2**20


def family(folder: Path, *, memory: str | int, share: bool = False) -> Launch:
    launch = script_launch(folder, "true", resources={"memory": memory})
    spec = {**launch.spec, "script": None, "family": "swin", "memory": {"policy": "tensile"}}
    return replace(launch, spec=spec, share=share)


class Enclosed:
    """An enclosure in a hierarchy of control groups that is a folder of files."""

    def __init__(self, folder: Path, launch: Launch, *, grouped: bool = True) -> None:
        self.folder = folder / "group"
        self.told: list[Report] = []
        self.ended: list[str] = []
        make: Callable[[str], Cgroup | None] = self._make if grouped else lambda _: None
        self.kills = {"oom_kill of /proc/vmstat": 7}
        self.enclosure = Enclosure(
            launch, {}, self.ended.append, self.told.append, make, lambda: dict(self.kills)
        )
        self.enclosure.begin(os.getpid())

    def _make(self, attempt_id: str) -> Cgroup:
        self.folder.mkdir()
        return Cgroup(self.folder)

    def kept_to(self) -> int | None:
        file = self.folder / "memory.max"
        return int(file.read_text()) if file.exists() else None

    def end(self, **files: str) -> str | None:
        for name, text in files.items():
            (self.folder / name.replace("_", ".", 1)).write_text(text)
        self.told.clear()
        return self.enclosure.end()


def test_a_job_that_has_its_device_alone_is_kept_to_its_limit_by_the_kernel(
    tmp_path: Path,
) -> None:
    enclosed = Enclosed(tmp_path, family(tmp_path, memory=100 * MIB))
    assert enclosed.kept_to() is None  # what its bare process takes is not known yet
    heard = enclosed.enclosure.heard(MemoryUsed(base_bytes=300 * MIB))
    assert heard == MemoryUsed(base_bytes=300 * MIB, fence="cgroup")
    assert enclosed.kept_to() == 410 * MIB + BESIDE_BYTES
    assert enclosed.enclosure.heard(Progress(step=1)) == Progress(step=1)
    assert enclosed.end() is None
    assert enclosed.told == []


def test_who_was_ended_by_the_kernel_says_what_it_held(tmp_path: Path) -> None:
    enclosed = Enclosed(tmp_path, script_launch(tmp_path, "true", resources={"memory": "100MiB"}))
    assert enclosed.told == [MemoryUsed(budget_bytes=100 * MIB, fence="cgroup")]
    assert enclosed.kept_to() == MOST_BYTES + 110 * MIB + BESIDE_BYTES
    said = enclosed.end(memory_events="oom_kill 1\n", memory_peak=str(430 * MIB + BARE_BYTES))
    assert said == (
        "out of memory: it held 430MiB beside its libraries, and might hold 100MiB of the device "
        "(resources.memory); write resources.memory: 430MiB or more"
    )
    (used,) = enclosed.told
    assert isinstance(used, MemoryUsed)
    assert (used.peak_bytes, used.budget_bytes) == (430 * MIB, 100 * MIB)


def test_a_kill_that_the_kernel_counts_meanwhile_is_taken_to_be_its_own(tmp_path: Path) -> None:
    enclosed = Enclosed(tmp_path, script_launch(tmp_path, "true"), grouped=False)
    assert enclosed.enclosure.end(was_killed=True) is None
    assert enclosed.enclosure.kernel_kill is None
    enclosed.kills["oom_kill of /proc/vmstat"] += 1
    assert enclosed.enclosure.end() is None
    assert enclosed.enclosure.kernel_kill is None  # it was not killed
    enclosed.enclosure.end(was_killed=True)
    assert enclosed.enclosure.kernel_kill == "oom_kill of /proc/vmstat"


def test_what_a_fenced_script_took_is_told_however_it_ended(tmp_path: Path) -> None:
    launch = script_launch(tmp_path, "true", resources={"memory": "100MiB"})
    enclosed = Enclosed(tmp_path, launch, grouped=False)
    enclosed.end()
    (used,) = enclosed.told
    assert isinstance(used, MemoryUsed)
    assert (used.budget_bytes, used.fence, used.overrun) == (100 * MIB, "watched", None)
    assert used.peak_bytes is not None


def test_how_wrong_a_plan_was_is_the_supervisors_word(tmp_path: Path) -> None:
    launch = replace(family(tmp_path, memory=100 * MIB), overrun=1.5)
    enclosed = Enclosed(tmp_path, launch)
    heard = enclosed.enclosure.heard(MemoryUsed(base_bytes=0, overrun=9.0))
    assert heard == MemoryUsed(base_bytes=0, fence="cgroup")
    enclosed.end(memory_events="oom_kill 1\n", memory_peak=str(140 * MIB))
    (used,) = enclosed.told
    assert isinstance(used, MemoryUsed)
    assert used.overrun == pytest.approx(1.5 * 1.4)


def test_one_that_shares_is_kept_to_the_device_by_the_kernel_and_to_its_lease_by_the_watch(
    tmp_path: Path,
) -> None:
    launch = family(tmp_path, memory="auto", share=True)
    enclosed = Enclosed(tmp_path, launch)
    heard = enclosed.enclosure.heard(MemoryUsed(base_bytes=MIB))
    assert heard == MemoryUsed(base_bytes=MIB, fence="watched")
    assert enclosed.kept_to() == MIB + launch.device_bytes + launch.device_bytes // 20
    enclosed.end()


@pytest.mark.parametrize(
    ("device", "memory", "kind"),
    [("cpu:0", 100 * MIB, "watched"), ("cpu:0", "auto", None), ("cuda:0", "auto", None),
     ("cuda:0", 100 * MIB, "cuda fraction")],
)  # fmt: skip
def test_without_groups_there_is_the_watch_and_on_cuda_the_allocator(
    device: str, memory: str | int, kind: str | None, tmp_path: Path
) -> None:
    launch = replace(family(tmp_path, memory=memory), device=device)
    enclosed = Enclosed(tmp_path, launch, grouped=False)
    heard = enclosed.enclosure.heard(MemoryUsed(base_bytes=1))
    assert heard == MemoryUsed(base_bytes=1, fence=kind)
    assert enclosed.enclosure.end() is None
