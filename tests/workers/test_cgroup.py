"""A control group for each attempt, where the memory controller is ours to use."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from dovetail_workers import cgroup
from dovetail_workers.cgroup import Cgroup, delegated, name_of
from helpers.attempts import wait_for


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    """A hierarchy as systemd makes it for a user: `slice` hands memory down, `unit` is ours."""
    for name, controllers in (("", "cpu"), ("slice", "cpu memory"), ("slice/unit", "")):
        folder = tmp_path / "cgroup" / name
        folder.mkdir(parents=True)
        (folder / "cgroup.subtree_control").write_text(controllers)
        (folder / "cgroup.procs").write_text("")
    (tmp_path / "own").write_text("4:memory:/old\n0::/slice/unit\n")
    return tmp_path


def make(tree: Path) -> Cgroup | None:
    return Cgroup.make("a.1", tree / "cgroup", tree / "own")


def test_a_group_is_made_beside_our_own_and_limits_whoever_is_put_into_it(tree: Path) -> None:
    group = make(tree)
    assert group is not None
    folder = tree / "cgroup/slice" / name_of("a.1")
    assert (folder / "memory.oom.group").read_text() == "1"
    assert group.limit(1000)
    assert (folder / "memory.max").read_text() == "1000"
    assert group.take(4242)
    assert (folder / "cgroup.procs").read_text() == "4242"
    assert group.kills() == 0
    (folder / "memory.events").write_text("low 0\nmax 7\noom 1\noom_kill 2\noom_group_kill 1\n")
    (folder / "memory.peak").write_text("999\n")
    assert (group.kills(), group.peak_bytes()) == (2, 999)


def test_a_group_is_removed_when_it_is_empty_also_by_whoever_comes_later(tree: Path) -> None:
    folder = tree / "cgroup/slice" / name_of("a.1")
    for left in (lambda group: group.remove(), lambda _: None):
        group = make(tree)
        for file in folder.iterdir():
            file.unlink()  # a folder of the kernel's is empty when its group is
        left(group)
        cgroup.remove("a.1", tree / "cgroup", tree / "own")
        assert not folder.exists()
    cgroup.remove("a.1", tree / "cgroup", tree / "own")


def test_there_is_none_where_nobody_hands_the_controller_down(tree: Path) -> None:
    (tree / "cgroup/slice/cgroup.subtree_control").write_text("cpu")
    assert delegated(tree / "cgroup", tree / "own") is None
    assert make(tree) is None


@pytest.mark.parametrize("own", ["", "4:memory:/old\n", "0::/../elsewhere\n"])
def test_there_is_none_for_who_is_in_no_group_of_the_second_version(tree: Path, own: str) -> None:
    (tree / "own").write_text(own)
    (tree / "cgroup/slice/cgroup.subtree_control").write_text("cpu")
    assert make(tree) is None


def test_there_is_none_without_control_groups(tmp_path: Path) -> None:
    assert Cgroup.make("a.1", tmp_path, tmp_path / "own") is None
    cgroup.remove("a.1", tmp_path, tmp_path / "own")


@pytest.mark.skipif(delegated() is None, reason="no memory controller of cgroup v2 is ours here")
def test_the_kernel_ends_a_process_that_holds_more() -> None:
    group = Cgroup.make("test.1")
    assert group is not None
    try:
        assert group.limit(64 * 2**20)
        code = "import sys; sys.stdin.readline(); held = bytearray(b'x') * (256 << 20)"
        process = subprocess.Popen([sys.executable, "-c", code], stdin=subprocess.PIPE)
        assert group.take(process.pid)
        process.communicate(b"go\n")
        assert process.returncode == -9
        assert wait_for("the kernel's count", group.kills) == 1
    finally:
        group.remove()
    assert delegated() is not None
