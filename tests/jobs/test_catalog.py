"""Families by name, and how a user's own module is looked at without importing it here."""

import sys
import time
from pathlib import Path

import pytest

from dovetail_jobs import catalog
from dovetail_jobs.errors import NotFound, SpecError
from dovetail_jobs.family_params import FamilyParams
from dovetail_jobs.family_probe import probe
from helpers.job_text import load, refused

OWN = "name: own\nfamily: mine\nparams: {batch_size: 8, width: 3}\ntrain: {steps: 1}\n"
BUILD = "def build(params, context):\n    return params\n"


def write(folder: Path, text: str, name: str = "mine") -> None:
    (folder / f"{name}.py").write_text(text)


@pytest.mark.parametrize("family", catalog.FAMILIES)
def test_each_built_in_family_has_a_description_and_typed_params(family: str) -> None:
    assert catalog.DESCRIPTIONS[family]
    assert issubclass(catalog.params_model(family), FamilyParams)
    assert "params.batch_size" in catalog.known_keys(family)


@pytest.mark.parametrize("name", ["image_clasification", "no such", "1st", "a..b", ".", "résumé!"])
def test_an_unknown_family_is_refused_with_the_nearest(name: str) -> None:
    with pytest.raises(NotFound, match="did you mean image_classification"):
        catalog.find(name)


def test_a_module_of_the_workdir_is_a_family(tmp_path: Path) -> None:
    write(tmp_path, BUILD)
    assert catalog.find("mine", workdir=tmp_path).own
    with pytest.raises(NotFound):
        catalog.find("mine", workdir=tmp_path.parent)


def test_a_module_without_params_takes_any(tmp_path: Path) -> None:
    write(tmp_path, BUILD)
    spec = load(OWN, base=tmp_path)
    assert spec.params == {"batch_size": 8, "width": 3}
    assert spec.workdir == str(tmp_path)
    assert catalog.FreeParams(**spec.params).width == 3  # type: ignore[attr-defined]


def test_a_module_with_params_shows_its_defaults(tmp_path: Path) -> None:
    write(
        tmp_path,
        "from pydantic import BaseModel\n"
        "class Params(BaseModel):\n    batch_size: int\n    width: int\n    depth: int = 5\n"
        + BUILD,
    )
    assert load(OWN, base=tmp_path).params == {"batch_size": 8, "width": 3, "depth": 5}


def test_a_worker_gets_the_module_s_own_build_and_params(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write(tmp_path, BUILD, "worker_side_family")
    monkeypatch.syspath_prepend(str(tmp_path))
    assert catalog.params_model("worker_side_family") is catalog.FreeParams
    params = catalog.FreeParams()
    assert catalog.build("worker_side_family")(params, None) is params


def test_looking_at_a_module_does_not_import_it_here(tmp_path: Path) -> None:
    write(tmp_path, "print('noise'); import sys; print('more', file=sys.stderr)\n" + BUILD)
    load(OWN, base=tmp_path)
    assert "mine" not in sys.modules


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("import nowhere_at_all\n", "raised ModuleNotFoundError at import: No module named"),
        ("x = 1\ny = x / 0\n", "raised ZeroDivisionError at import: division by zero (mine.py:2)"),
        ("def f(:\n", "raised SyntaxError at import: invalid syntax (mine.py:1)"),
        ("raise SystemExit(3)\n", "raised SystemExit at import: 3 (mine.py:1)"),
        ("raise KeyboardInterrupt\n", "raised KeyboardInterrupt at import (mine.py:1)"),
        ("import os\nos._exit(7)\n", "ended its process at import (exit code 7)"),
        ("import os\nos.kill(os.getpid(), 9)\n", "ended its process at import (signal SIGKILL)"),
        ("x = 1\n", "has no build(params, context); define that function"),
        ("build = 3\n", "has no build(params, context); define that function"),
        ("class Params: pass\n" + BUILD, "has a Params that is no pydantic model"),
    ],
)
def test_a_module_that_cannot_be_a_family_says_why(tmp_path: Path, text: str, said: str) -> None:
    write(tmp_path, text)
    assert f"job.yaml:2  family: mine  {said}" in refused(OWN, base=tmp_path)


def test_params_that_raise_are_told_as_the_module_s_own(tmp_path: Path) -> None:
    write(
        tmp_path,
        "from dovetail_jobs.family_params import FamilyParams\n"
        "class Params(FamilyParams):\n    width: int\n"
        "    def located(self, base):\n        return {}['x']\n" + BUILD,
    )
    said = refused(OWN, base=tmp_path)
    assert (
        "job.yaml:3  params: {batch_size: 8, width: 3}  raised KeyError in its Params: 'x'" in said
    )
    assert "(mine.py:5)" in said


@pytest.mark.long
def test_a_module_that_hangs_is_ended_with_all_it_started(tmp_path: Path) -> None:
    write(
        tmp_path,
        "import os, subprocess, sys, threading\n"
        "child = subprocess.Popen([sys.executable, '-c', 'input()'], stdin=subprocess.PIPE)\n"
        "open(os.path.join(os.path.dirname(__file__), 'pid'), 'w').write(str(child.pid))\n"
        "threading.Event().wait()\n",
    )
    with pytest.raises(SpecError, match="did not finish its import within 3 s; try it with"):
        probe("mine", {}, workdir=tmp_path, base=tmp_path, limit_s=3)
    pid = int((tmp_path / "pid").read_text())
    ended_by_s = time.monotonic() + 10
    while _runs(pid):
        assert time.monotonic() < ended_by_s


def test_a_thread_that_never_ends_does_not_keep_the_probe(tmp_path: Path) -> None:
    write(
        tmp_path,
        "import threading\nthreading.Thread(target=threading.Event().wait).start()\n" + BUILD,
    )
    assert probe("mine", {"a": 1}, workdir=tmp_path, base=tmp_path, limit_s=20) == {"a": 1}


def _runs(pid: int) -> bool:
    try:
        with open(f"/proc/{pid}/stat") as stat:
            return stat.read().rpartition(")")[2].split()[0] not in ("Z", "X")
    except (FileNotFoundError, ProcessLookupError):
        return False
