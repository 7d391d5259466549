"""Which files of a folder are a job's code, found out without reading any of them.

`.gitignore` files hold, also those above the folder up to the top of its git repository. `.git`,
`__pycache__` and `*.pyc` are always left out, and so are folders of the platform's own.
"""

from __future__ import annotations

import os
import stat
from collections import Counter
from collections.abc import Collection, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from dovetail_jobs.errors import UserError
from dovetail_jobs.snapshot.ignore import Ignored
from dovetail_jobs.snapshot.limits import ENTRY_LIMIT, LIMIT_BYTES, WAY_OUT
from dovetail_jobs.units import format_bytes

_SHOWN = 3
_SPECIAL = {
    stat.S_IFSOCK: "a socket",
    stat.S_IFIFO: "a pipe",
    stat.S_IFCHR: "a device",
    stat.S_IFBLK: "a device",
}


class WorkdirRefused(UserError):
    """A folder that cannot be a job's code; `rule` says why, and the way out."""

    def __init__(self, folder: str, rule: str) -> None:
        super().__init__(f"workdir: {folder}  {rule}")
        self.folder = folder
        self.rule = rule

    def __reduce__(self) -> tuple[type[WorkdirRefused], tuple[str, str]]:
        return (WorkdirRefused, (self.folder, self.rule))


@dataclass(frozen=True, slots=True, kw_only=True)
class Entry:
    """A file, a folder or a link; `name` is relative, with slashes, `target` what a link says."""

    name: str
    kind: Literal["file", "folder", "link"]
    bytes: int = 0
    target: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Survey:
    """The code of `folder`, by name. `left_out` names what no archive can hold, as sentences."""

    folder: Path
    entries: tuple[Entry, ...]
    left_out: tuple[str, ...]
    limit_bytes: int

    @property
    def bytes(self) -> int:
        return sum(entry.bytes for entry in self.entries)

    @property
    def files(self) -> int:
        return sum(entry.kind == "file" for entry in self.entries)


def survey(
    folder: Path, *, limit_bytes: int = LIMIT_BYTES, leave_out: Collection[Path] = ()
) -> Survey:
    """What of `folder` is code. Raises WorkdirRefused, as soon as the limit is passed.

    `leave_out` are folders that are never part of it. Refused are also links that lead out, names
    that are no UTF-8, and folders that cannot be read: all of them together.
    """
    walk = _Walk(folder, limit_bytes, frozenset(map(os.path.realpath, leave_out)))
    walk.run()
    if walk.problems:
        shown = "; ".join(walk.problems[:_SHOWN])
        more = len(walk.problems) - _SHOWN
        raise WorkdirRefused(str(folder), f"{shown}{f'; and {more} more' if more > 0 else ''}")
    return Survey(
        folder=folder,
        entries=tuple(sorted(walk.entries, key=lambda entry: entry.name)),
        left_out=tuple(walk.left_out),
        limit_bytes=limit_bytes,
    )


@dataclass(slots=True)
class _Walk:
    folder: Path
    limit_bytes: int
    never: frozenset[str]
    entries: list[Entry] = field(default_factory=list)
    left_out: list[str] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)
    bytes: int = 0

    def run(self) -> None:
        """Level by level within a folder, its files before the folders in it."""
        waiting = [("", _above(self.folder))]
        while waiting:
            name, ignored = waiting.pop()
            below = sorted(self._folder(name, ignored), key=lambda item: item[0], reverse=True)
            waiting += below

    def _folder(self, name: str, ignored: Ignored) -> Iterator[tuple[str, Ignored]]:
        """Note what lies in the folder `name`; gives the folders in it."""
        path = self.folder / name
        depth = len(name) + 1 if name else 0
        try:
            rules = ignored.within(path, depth=depth)
            found = sorted(os.scandir(path), key=lambda item: item.name)
        except OSError as error:
            self.problems.append(f"{name or '.'} cannot be read: {error.strerror}")
            return
        except UserError as error:
            self.problems.append(error.message)
            return
        for item in found:
            inner = f"{name}/{item.name}" if name else item.name
            is_folder = item.is_dir(follow_symlinks=False)
            if _always_left_out(item.name) or rules.hides(inner, is_folder):
                continue
            if is_folder and os.path.realpath(item.path) in self.never:
                continue
            entry = self._entry(item, inner)
            if entry is None:
                continue
            self._count(entry)
            if is_folder:
                yield inner, rules

    def _entry(self, item: os.DirEntry[str], name: str) -> Entry | None:
        """None, and a word about it, for what cannot be packed."""
        try:
            name.encode()
        except UnicodeEncodeError:
            shown = os.fsencode(name).decode("utf-8", "backslashreplace")
            self.problems.append(f"{shown} is a name that is no UTF-8; rename or ignore it")
            return None
        try:
            status = item.stat(follow_symlinks=False)
            if stat.S_ISLNK(status.st_mode):
                return self._link(name)
        except OSError as error:
            self.problems.append(f"{name} cannot be read: {error.strerror}")
            return None
        if stat.S_ISDIR(status.st_mode):
            return Entry(name=name, kind="folder")
        if stat.S_ISREG(status.st_mode):
            return Entry(name=name, kind="file", bytes=status.st_size)
        kind = _SPECIAL.get(stat.S_IFMT(status.st_mode), "no file")
        self.left_out.append(f"{name} is {kind} and is not part of the code")
        return None

    def _link(self, name: str) -> Entry | None:
        """A link with a relative target; one that leads out is a problem."""
        path = self.folder / name
        target, top = os.readlink(path), os.path.realpath(self.folder)
        above = os.path.dirname(name)
        if os.path.isabs(target):
            for root in (str(self.folder), top):
                if _is_within(target, root):
                    target = os.path.relpath(target, os.path.join(root, above))
                    break
        plain = os.path.normpath(os.path.join(above, target))
        inside = not os.path.isabs(plain) and plain.partition("/")[0] != ".."
        if not inside or not _is_within(os.path.realpath(path), top):
            self.problems.append(
                f"{name} is a link to {os.readlink(path)}, outside; copy it here, ignore it in "
                ".gitignore, or name its target by an absolute path"
            )
            return None
        return Entry(name=name, kind="link", target=target)

    def _count(self, entry: Entry) -> None:
        self.entries.append(entry)
        self.bytes += entry.bytes
        if self.bytes > self.limit_bytes:
            raise WorkdirRefused(
                str(self.folder),
                f"holds more than {format_bytes(self.limit_bytes)} "
                f"({format_bytes(self.bytes)} so far: {_largest(self.entries)}); {WAY_OUT}",
            )
        if len(self.entries) > ENTRY_LIMIT:
            raise WorkdirRefused(
                str(self.folder),
                f"holds more than {ENTRY_LIMIT} files and folders "
                f"(so far: {_largest(self.entries, counted=True)}); {WAY_OUT}",
            )


def _always_left_out(name: str) -> bool:
    return name in (".git", "__pycache__") or name.endswith(".pyc")


def _above(folder: Path) -> Ignored:
    """The rules of the folders above, from the top of the git repository that holds `folder`."""
    top = Path(os.path.realpath(folder))
    repository = next((at for at in (top, *top.parents) if os.path.exists(at / ".git")), top)
    ignored = Ignored()
    for above in reversed(top.parents):
        if above.is_relative_to(repository):
            way_down = top.relative_to(above).as_posix()
            ignored = ignored.within(above, prefix=f"{way_down}/")
    return ignored


def _is_within(path: str, folder: str) -> bool:
    path = os.path.normpath(path)
    return path == folder or path.startswith(folder.rstrip("/") + "/")


def _largest(entries: Collection[Entry], *, counted: bool = False) -> str:
    """The three largest, each as deep as one thing in it is nearly all: `data/train.bin 5GiB`."""
    sizes: Counter[str] = Counter()
    below: dict[str, set[str]] = {}
    folders = {entry.name for entry in entries if entry.kind == "folder"}
    for entry in entries:
        name, size = entry.name, 1 if counted else entry.bytes
        while name:
            sizes[name] += size
            parent = name.rpartition("/")[0]
            below.setdefault(parent, set()).add(name)
            name = parent
    found = []
    for top in sorted(below[""], key=lambda name: (-sizes[name], name))[:_SHOWN]:
        name = top
        while name in below:
            deeper = max(below[name], key=lambda item: (sizes[item], item))
            if sizes[deeper] < 0.9 * sizes[name]:
                break
            name = deeper
        shown = f"{sizes[name]} entries" if counted else format_bytes(sizes[name])
        if sizes[name]:
            found.append(f"{name}{'/' if name in folders else ''} {shown}")
    return ", ".join(found)
