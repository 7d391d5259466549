"""The job files that a command was given: a folder stands for all YAML files in it."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from dovetail_jobs.errors import UserError

SUFFIXES = (".yaml", ".yml")


def job_files(given: Sequence[Path]) -> list[Path]:
    """In the given order, those of a folder by name; folders in it are left out. Raises UserError
    for a folder without any.
    """
    return [file for path in given for file in (_inside(path) if path.is_dir() else [path])]


def _inside(folder: Path) -> list[Path]:
    found = sorted(file for file in folder.iterdir() if file.suffix in SUFFIXES and file.is_file())
    if not found:
        raise UserError(f"{folder}  has no {' or '.join(SUFFIXES)} file; name the files themselves")
    return found
