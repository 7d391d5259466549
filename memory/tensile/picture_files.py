"""Where a picture is written: found out before the work that it shows."""

from __future__ import annotations

import os
from pathlib import Path

SUFFIXES = (".png", ".svg")


class PictureError(ValueError):
    """A file that no picture can be written to; the message says why and what could be written."""


def picture_files(file: Path) -> tuple[Path, ...]:
    """`file` with each of the suffixes; it may have one of them, or none. Raises PictureError."""
    if file.suffix not in ("", *SUFFIXES):
        raise PictureError(f"{file}  must end in {' or '.join(SUFFIXES)}; both are written")
    files = tuple(file.with_suffix(suffix) for suffix in SUFFIXES) if file.name else ()
    folder = file.parent
    if not files or any(each.is_dir() for each in (file, *files)):
        raise PictureError(f"{file}  is a folder; name a file in it")
    if not folder.is_dir():
        raise PictureError(f"{file}  there is no folder {folder}; make it first")
    for place in (folder, *filter(Path.exists, files)):
        if not os.access(place, os.W_OK):
            raise PictureError(f"{file}  {place} may not be written; choose another place")
    return files
