"""Small trees of files, written to disk and read back, for proofs about code snapshots."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path

from hypothesis import strategies as st

Tree = Mapping[str, bytes]

FOLDERS = ("a", "b", "ab", "build", "a.d")
FILES = ("x", "xy", "a.py", "b.log", "build", "é 1", "#c", "!d", "[e]", "f ", "\\g", ".h")
# The pieces that gitignore patterns are made of, those with a meaning of their own more often.
PIECES = ("a", "b", "x", "ab", "build", "*", "**", "*.log", "?", "[ab]*", "[!a]", ".*", "a*", "é*")

paths = st.builds(
    lambda above, name: "/".join([*above, name]),
    st.lists(st.sampled_from(FOLDERS), max_size=3),
    st.sampled_from(FILES),
)
contents = st.binary(max_size=20)
patterns = st.builds(
    lambda sign, begin, pieces, end: f"{sign}{begin}{'/'.join(pieces)}{end}",
    st.sampled_from(["", "", "", "!"]),
    st.sampled_from(["", "", "/"]),
    st.lists(st.sampled_from(PIECES), min_size=1, max_size=3),
    st.sampled_from(["", "", "/", " ", "\\ ", "\r"]),
)
odd_lines = st.sampled_from(
    [
        "",
        "# a comment",
        "\\#c",
        "\\!d",
        "\\[e\\]",
        "[",
        "/",
        "!",
        "f\\ ",
        "\\\\g",
        "**/",
        "/**",
        "//",
    ]
)
ignore_files = st.dictionaries(
    st.lists(st.sampled_from(FOLDERS), max_size=2).map("/".join),
    st.lists(patterns | odd_lines, min_size=1, max_size=5).map("\n".join),
    max_size=3,
)


@st.composite
def trees(draw: st.DrawFn, *, ignoring: bool = True) -> dict[str, bytes]:
    """Path → content of files that can lie side by side, with `.gitignore` files if asked."""
    found = draw(st.dictionaries(paths, contents, max_size=12))
    if ignoring:
        for folder, text in draw(ignore_files).items():
            found[f"{folder}/.gitignore" if folder else ".gitignore"] = text.encode()
    for path in list(found):  # `a` cannot be a file where `a/x` is one
        if any(other.startswith(f"{path}/") for other in found):
            del found[path]
    return found


def write_tree(folder: Path, tree: Tree) -> None:
    for name, content in tree.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)


def read_tree(folder: Path) -> dict[str, bytes | str]:
    """Content by file, target by link (`-> x`), and `/` for each folder."""
    found: dict[str, bytes | str] = {}
    for above, folders, names in os.walk(folder):
        for name in (*folders, *names):
            path = Path(above, name)
            key = path.relative_to(folder).as_posix()
            if path.is_symlink():
                found[key] = f"-> {os.readlink(path)}"
            else:
                found[key] = "/" if path.is_dir() else path.read_bytes()
    return found
