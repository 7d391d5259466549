"""What `.gitignore` files leave out, as git reads them (gitignore(5)).

pathspec translates each pattern; which pattern decides is said here, since a walk asks for one
entry after the other: the last matching pattern of the deepest file, and never a pattern that
only matches a folder above, because an ignored folder is not entered at all.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from pathspec.patterns.gitignore.spec import GitIgnoreSpecPattern

from dovetail_jobs.errors import UserError

GITIGNORE = ".gitignore"
LARGEST_BYTES = 2**20


@dataclass(frozen=True, slots=True, kw_only=True)
class Rule:
    """One line: `hides` is False for a negation, `everywhere` for what matches at any depth."""

    pattern: re.Pattern[str]
    hides: bool
    only_folders: bool
    everywhere: bool

    def matches(self, name: str, is_folder: bool) -> bool:
        """Whether it names this very entry; `name` is relative to the rule's file."""
        if self.only_folders and not is_folder:
            return False
        found = self.pattern.search if self.everywhere else self.pattern.fullmatch
        return found(name) is not None


@dataclass(frozen=True, slots=True, kw_only=True)
class Ignored:
    """The rules that hold in a folder: those of its own file, last line first, and those above.

    Names are relative to the top of a walk. For rules of a folder below the top, `depth` counts the
    characters before what they see; for one above it, `prefix` leads down to the top.
    """

    rules: tuple[Rule, ...] = ()
    depth: int = 0
    prefix: str = ""
    above: Ignored | None = None

    def hides(self, name: str, is_folder: bool) -> bool:
        """Whether the entry `name`, relative to the top, is left out."""
        level: Ignored | None = self
        while level is not None:
            seen = level.prefix + name[level.depth :]
            for rule in level.rules:
                if rule.matches(seen, is_folder):
                    return rule.hides
            level = level.above
        return False

    def within(self, folder: Path, *, depth: int = 0, prefix: str = "") -> Ignored:
        """The rules of `folder`, which lies below. Raises UserError if its file cannot be read."""
        rules = tuple(_rules(folder / GITIGNORE))[::-1]
        return Ignored(rules=rules, depth=depth, prefix=prefix, above=self) if rules else self


def _rules(file: Path) -> Iterator[Rule]:
    """The patterns of a file, first line first; like git it follows no link to one."""
    if os.path.islink(file) or not os.path.isfile(file):
        return
    try:
        if file.stat().st_size > LARGEST_BYTES:
            raise UserError(f"{file}  is larger than 1 MiB; name folders instead of files in it")
        text = file.read_bytes().decode("utf-8", "surrogateescape").removeprefix("\ufeff")
    except OSError as error:
        raise UserError(f"{file}  cannot be read: {error.strerror}") from None
    for line in text.split("\n"):
        rule = _rule(line.removesuffix("\r"))
        if rule is not None:
            yield rule


def _rule(line: str) -> Rule | None:
    """None for a blank line, a comment, and what git does not understand either."""
    if not line.endswith("\\ "):
        line = line.rstrip(" ")
    hides, only_folders = not line.startswith("!"), line.endswith("/")
    try:
        pattern = GitIgnoreSpecPattern(line.removesuffix("/"))
    except ValueError:
        return None
    if pattern.include is None or pattern.regex is None:
        return None
    # `*` becomes a bare dot and a trailing `/**` a bare slash: they match whatever lies below.
    everywhere = pattern.regex.pattern == "." or pattern.regex.pattern.endswith("/")
    return Rule(
        pattern=pattern.regex, hides=hides, only_folders=only_folders, everywhere=everywhere
    )
