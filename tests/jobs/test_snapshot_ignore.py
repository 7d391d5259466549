"""Which files are code: exactly those that git would track or offer to track."""

import os
import subprocess
import tempfile
from pathlib import Path

import pytest
from hypothesis import example, given, settings

from dovetail_jobs.errors import UserError
from dovetail_jobs.snapshot.workdir import Survey, survey
from helpers.trees import Tree, trees, write_tree

pytestmark = pytest.mark.long

NO_CONFIG = {"GIT_CONFIG_GLOBAL": os.devnull, "GIT_CONFIG_SYSTEM": os.devnull, "HOME": "/nowhere"}


def git(folder: Path, *arguments: str) -> bytes:
    return subprocess.run(
        ["git", "-C", str(folder), *arguments],
        env={**os.environ, **NO_CONFIG},
        capture_output=True,
        check=True,
    ).stdout


def files(found: Survey) -> set[str]:
    return {entry.name for entry in found.entries if entry.kind == "file"}


def by_git(folder: Path) -> set[str]:
    listed = git(folder, "ls-files", "-zco", "--exclude-standard").decode()
    return set(filter(None, listed.split("\0")))


@settings(max_examples=100)
@given(trees())
@example({"a/x": b"", "a/b.log": b"", ".gitignore": b"*.log\n!a/"})
@example({"a/x": b"", "a/xy": b"", ".gitignore": b"a/**\n!a/xy"})
@example({"a/x": b"", "a/xy": b"", ".gitignore": b"/*\n!/a\n/a/*\n!/a/xy"})
@example({"a/build/x": b"", ".gitignore": b"build", "a/.gitignore": b"!build/"})
def test_what_git_would_add_is_code_and_nothing_else(tree: Tree) -> None:
    with tempfile.TemporaryDirectory() as folder:
        write_tree(Path(folder), tree)
        git(Path(folder), "init", "-q")
        assert files(survey(Path(folder))) == by_git(Path(folder))


@given(trees())
@settings(max_examples=30)
def test_a_folder_of_a_repository_obeys_the_files_above_it(tree: Tree) -> None:
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        write_tree(folder, {"a/a.py": b"", **tree})
        git(folder, "init", "-q")
        listed = {path.removeprefix("a/") for path in by_git(folder) if path.startswith("a/")}
        hidden = git(folder, "ls-files", "-zoi", "--directory", "--exclude-standard").split(b"\0")
        # Who names a folder that git ignores as a whole means what lies in it.
        assert files(survey(folder / "a")) == listed or b"a/" in hidden


def test_files_above_a_folder_that_is_no_repository_mean_nothing(tmp_path: Path) -> None:
    write_tree(tmp_path, {".gitignore": b"*", "job/train.py": b""})
    assert files(survey(tmp_path / "job")) == {"train.py"}


def test_git_itself_and_compiled_python_are_never_code(tmp_path: Path) -> None:
    write_tree(
        tmp_path,
        {
            ".git/HEAD": b"", "a/.git": b"gitdir: elsewhere", "a/__pycache__/x.py": b"",
            "b.pyc": b"", "b.py": b"", ".venv/lib.py": b"",
        },
    )  # fmt: skip
    assert files(survey(tmp_path)) == {"b.py", ".venv/lib.py"}


def test_a_gitignore_that_is_a_link_or_a_folder_is_no_gitignore(tmp_path: Path) -> None:
    write_tree(tmp_path, {"rules": b"*.py", "a/x.py": b"", "b/.gitignore/x": b"", "b/x.py": b""})
    (tmp_path / "a" / ".gitignore").symlink_to("../rules")
    assert files(survey(tmp_path)) == {"rules", "a/x.py", "b/.gitignore/x", "b/x.py"}


def test_a_gitignore_of_a_gigabyte_is_refused_unread(tmp_path: Path) -> None:
    with (tmp_path / ".gitignore").open("wb") as file:
        file.truncate(2**30)
    with pytest.raises(UserError, match=r"\.gitignore  is larger than 1 MiB"):
        survey(tmp_path)
