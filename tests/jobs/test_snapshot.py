"""A folder comes out of its archive as it went in, under one name for one content."""

import gzip
import hashlib
import io
import os
import socket
import tarfile
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dovetail_jobs.snapshot.archive import Snapshot, SnapshotDamaged, pack, unpack, verify
from dovetail_jobs.snapshot.limits import ENTRY_LIMIT
from dovetail_jobs.snapshot.workdir import Survey, WorkdirRefused, survey
from helpers.trees import Tree, read_tree, trees, write_tree

NOBODY = 65534


def packed(folder: Path, **options: int) -> tuple[Snapshot, bytes]:
    with tempfile.TemporaryDirectory() as scratch:
        archive = Path(scratch, "archive")
        return pack(survey(folder, **options), archive), archive.read_bytes()


def refused(folder: Path, deed: Callable[[Path], object] = packed) -> str:
    with pytest.raises(WorkdirRefused) as caught:
        deed(folder)
    assert str(caught.value) == f"workdir: {folder}  {caught.value.rule}"
    return caught.value.rule


@settings(max_examples=50)
@given(trees(ignoring=False), st.sets(st.sampled_from(["empty", "a/empty", "b/empty/deep"])))
def test_a_folder_comes_out_as_it_went_in(tree: Tree, empty: set[str]) -> None:
    with tempfile.TemporaryDirectory() as scratch:
        folder, out = Path(scratch, "in"), Path(scratch, "out")
        folder.mkdir()
        write_tree(folder, tree)
        for name in empty:
            (folder / name).mkdir(parents=True, exist_ok=True)
        snapshot, archive = packed(folder)
        assert unpack(io.BytesIO(archive), snapshot.sha256, out) == snapshot
        assert read_tree(out) == read_tree(folder)
        assert snapshot == verify(io.BytesIO(archive), snapshot.sha256)
        assert (snapshot.files, snapshot.bytes) == (len(tree), sum(map(len, tree.values())))


@settings(max_examples=50)
@given(trees())
def test_what_comes_out_is_what_was_surveyed(tree: Tree) -> None:
    with tempfile.TemporaryDirectory() as scratch:
        folder, out = Path(scratch, "in"), Path(scratch, "out")
        folder.mkdir()
        write_tree(folder, tree)
        snapshot, archive = packed(folder)
        unpack(io.BytesIO(archive), snapshot.sha256, out)
        kept = {entry.name for entry in survey(folder).entries}
        before = read_tree(folder)
        assert read_tree(out) == {name: before[name] for name in kept}
        assert packed(out)[0].sha256 == snapshot.sha256  # what is left out once stays out


@settings(max_examples=50)
@given(trees(ignoring=False))
def test_equal_content_has_one_name_whenever_and_in_whatever_order_it_was_written(
    tree: Tree,
) -> None:
    with tempfile.TemporaryDirectory() as first, tempfile.TemporaryDirectory() as second:
        write_tree(Path(first), tree)
        write_tree(Path(second), {name: tree[name] for name in reversed(tree)})
        for name in tree:
            os.utime(Path(second, name), (1e9, 1e9))
            Path(second, name).chmod(0o600)
        assert packed(Path(first)) == packed(Path(second))


def test_other_content_another_name_or_the_right_to_execute_makes_another_snapshot(
    tmp_path: Path,
) -> None:
    file = tmp_path / "train.py"
    hashes = []
    file.write_text("1")
    hashes.append(packed(tmp_path)[0].sha256)
    file.write_text("2")
    hashes.append(packed(tmp_path)[0].sha256)
    file.chmod(0o755)
    hashes.append(packed(tmp_path)[0].sha256)
    file.rename(tmp_path / "trainer.py")
    hashes.append(packed(tmp_path)[0].sha256)
    assert len(set(hashes)) == 4


def test_an_empty_folder_is_code_too(tmp_path: Path) -> None:
    snapshot, archive = packed(tmp_path)
    assert (snapshot.bytes, snapshot.files) == (0, 0)
    unpack(io.BytesIO(archive), snapshot.sha256, tmp_path / "out")
    assert read_tree(tmp_path / "out") == {}


def test_links_stay_links_and_absolute_ones_into_the_folder_become_relative(tmp_path: Path) -> None:
    folder = tmp_path / "job"
    write_tree(folder, {"src/model.py": b"x", "run.sh": b"#!"})
    (folder / "src" / "up").symlink_to("../run.sh")
    (folder / "lib").symlink_to(folder / "src")
    (folder / "gone").symlink_to("not/here")
    (folder / "here").symlink_to(".")
    (folder / "run.sh").chmod(0o700)
    snapshot, archive = packed(folder)
    unpack(io.BytesIO(archive), snapshot.sha256, tmp_path / "out")
    out = read_tree(tmp_path / "out")
    assert {name: text for name, text in out.items() if str(text).startswith("->")} == {
        "src/up": "-> ../run.sh", "lib": "-> src", "gone": "-> not/here", "here": "-> .",
    }  # fmt: skip
    assert os.access(tmp_path / "out" / "src" / "up", os.X_OK)


@pytest.mark.parametrize("target", ["/etc/hostname", "../other", "a/../../other", "way/../../x"])
def test_a_link_that_leads_out_is_refused_with_its_target(tmp_path: Path, target: str) -> None:
    folder = tmp_path / "job"
    write_tree(folder, {"a/x": b""})
    (tmp_path / "other").mkdir()
    (folder / "way").symlink_to("a")
    (folder / "data").symlink_to(target)
    assert refused(folder) == (
        f"data is a link to {target}, outside; copy it here, ignore it in .gitignore, "
        "or name its target by an absolute path"
    )
    (folder / ".gitignore").write_text("data\n")
    assert packed(folder)[0].files == 2


def test_a_link_that_leads_out_by_way_of_another_is_found(tmp_path: Path) -> None:
    folder = tmp_path / "job"
    folder.mkdir()
    (folder / "a").symlink_to("..")
    (folder / "b").symlink_to("a/secret")
    rule = refused(folder)
    assert "a is a link to .., outside" in rule
    assert "b is a link to a/secret, outside" in rule


def test_five_gigabytes_are_refused_within_milliseconds_with_what_is_large(tmp_path: Path) -> None:
    write_tree(tmp_path, {"train.py": b"x", "data/raw/one.bin": b""})
    with (tmp_path / "data" / "raw" / "one.bin").open("wb") as file:
        file.truncate(5 * 2**30)
    took_s = []
    for _ in range(5):
        begin_s = time.monotonic()
        rule = refused(tmp_path)
        took_s.append(time.monotonic() - begin_s)
    assert min(took_s) < 0.05
    assert rule == (
        "holds more than 100MiB (5GiB so far: data/raw/one.bin 5GiB, train.py 1B); "
        "add what is no code to .gitignore, or set workdir to a smaller folder"
    )
    (tmp_path / ".gitignore").write_text("data/\n")
    assert packed(tmp_path)[0].files == 2


def test_many_middling_files_are_named_by_their_folder(tmp_path: Path) -> None:
    write_tree(tmp_path, {f"runs/{number}/log": b"x" * 100 for number in range(30)})
    with pytest.raises(WorkdirRefused, match=r"holds more than 1000B \(1\.1KiB so far: runs/ "):
        packed(tmp_path, limit_bytes=1000)
    assert packed(tmp_path, limit_bytes=3000)[0].bytes == 3000


@pytest.mark.long
def test_more_files_than_any_code_has_are_refused(tmp_path: Path) -> None:
    (tmp_path / "images").mkdir()
    for number in range(ENTRY_LIMIT):
        os.mknod(tmp_path / "images" / str(number))
    assert refused(tmp_path) == (
        f"holds more than {ENTRY_LIMIT} files and folders (so far: images/ {ENTRY_LIMIT + 1} "
        "entries); add what is no code to .gitignore, or set workdir to a smaller folder"
    )


def test_the_whole_file_system_is_refused_soon() -> None:
    begin_s = time.monotonic()
    with pytest.raises(WorkdirRefused, match="holds more than"):
        survey(Path("/"))
    assert time.monotonic() - begin_s < 10


def test_sockets_and_pipes_are_left_out_with_a_word(tmp_path: Path) -> None:
    write_tree(tmp_path, {"train.py": b""})
    os.mkfifo(tmp_path / "pipe")
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(os.path.relpath(tmp_path / "sock"))
        found = survey(tmp_path)
    assert found.left_out == (
        "pipe is a pipe and is not part of the code",
        "sock is a socket and is not part of the code",
    )
    assert [entry.name for entry in found.entries] == ["train.py"]


def test_a_name_that_is_no_utf8_is_refused_readably(tmp_path: Path) -> None:
    Path(os.fsdecode(os.fsencode(tmp_path) + b"/caf\xe9.py")).touch()
    assert refused(tmp_path) == "caf\\xe9.py is a name that is no UTF-8; rename or ignore it"


@contextmanager
def as_nobody() -> Iterator[Path]:
    """A folder in which rights hold: for the super-user, in the shoes of somebody else."""
    with tempfile.TemporaryDirectory() as name:
        Path(name).chmod(0o755)
        folder = Path(name, "job")
        write_tree(folder, {"train.py": b"", "secret.key": b"", "closed/x": b""})
        mine = os.geteuid()
        if mine == 0:
            os.seteuid(NOBODY)
        try:
            yield folder
        finally:
            os.seteuid(mine)


def test_an_unreadable_file_or_folder_is_named() -> None:
    with as_nobody() as folder:
        mine = os.geteuid()
        os.seteuid(os.getuid())
        (folder / "secret.key").chmod(0)
        os.seteuid(mine)
        assert refused(folder) == (
            "secret.key cannot be read: Permission denied; make it readable or add it to .gitignore"
        )
        os.seteuid(os.getuid())
        (folder / "closed").chmod(0)
        os.seteuid(mine)
        assert refused(folder) == "closed cannot be read: Permission denied"
        os.seteuid(os.getuid())
        (folder / "closed").chmod(0o755)


def later(folder: Path, change: Callable[[], object]) -> Snapshot:
    """Pack after something has happened since the survey."""
    found: Survey = survey(folder, limit_bytes=100)
    change()
    with tempfile.TemporaryDirectory() as scratch:
        return pack(found, Path(scratch, "archive"))


def test_what_happens_between_survey_and_reading_is_seen(tmp_path: Path) -> None:
    file = tmp_path / "a.py"
    file.write_text("before")
    assert later(tmp_path, lambda: file.write_text("after!!")).bytes == 7
    assert "has grown over the limit" in refused(
        tmp_path, lambda folder: later(folder, lambda: file.write_text("x" * 101))
    )
    file.write_text("before")
    assert "cannot be read: No such file" in refused(
        tmp_path, lambda folder: later(folder, file.unlink)
    )
    file.write_text("before")

    def replace() -> None:
        file.unlink()
        os.mkfifo(file)

    assert "is no file any more" in refused(tmp_path, lambda folder: later(folder, replace))


def test_a_file_that_changes_all_the_time_is_refused() -> None:
    """The kernel's own folder of random numbers: files of size 0 that never read the same."""
    assert refused(Path("/proc/sys/kernel/random")).partition(" ")[2] == (
        "changes while it is read; add it to .gitignore, or submit when nobody writes it"
    )


def test_folders_of_the_platform_are_never_code(tmp_path: Path) -> None:
    write_tree(tmp_path, {"train.py": b"", ".demo/token": b"secret"})
    found = survey(tmp_path, leave_out=[tmp_path / "." / ".demo"])
    assert [entry.name for entry in found.entries] == ["train.py"]


def damaged(archive: bytes, sha256: str, out: Path) -> str:
    with pytest.raises(SnapshotDamaged) as caught:
        unpack(io.BytesIO(archive), sha256, out)
    with pytest.raises(SnapshotDamaged):
        verify(io.BytesIO(archive), sha256)
    assert str(caught.value).startswith(f"code {sha256[:12]}: ")
    return str(caught.value)


def test_no_flipped_byte_and_no_cut_goes_unseen(tmp_path: Path) -> None:
    write_tree(tmp_path / "job", {"train.py": b"print('x' * 1000)" * 20})
    snapshot, archive = packed(tmp_path / "job")
    content = gzip.decompress(archive)
    for place in range(0, len(content), 397):
        flipped = bytearray(content)
        flipped[place] ^= 1
        said = damaged(gzip.compress(flipped), snapshot.sha256, tmp_path / "out")
        assert "its content has the sha256" in said
    for place in range(10, len(archive), 17):  # behind the header, which says nothing of content
        damaged(archive[:place], snapshot.sha256, tmp_path / "out")
    damaged(b"no archive at all", snapshot.sha256, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_an_archive_that_grows_without_end_is_not_unpacked(tmp_path: Path) -> None:
    bomb = gzip.compress(bytes(200 * 2**20), 1)
    with pytest.raises(SnapshotDamaged, match="holds more than 10MiB"):
        verify(io.BytesIO(bomb), "0" * 64, limit_bytes=10 * 2**20)


def member(name: str, kind: bytes = tarfile.REGTYPE, target: str = "") -> tarfile.TarInfo:
    made = tarfile.TarInfo(name)
    made.type, made.linkname = kind, target
    return made


@pytest.mark.parametrize(
    "members",
    [
        [member("/etc/passwd")],
        [member("../x")],
        [member("a", tarfile.DIRTYPE), member("a/../../x")],
        [member("a//b")],
        [member("a/b")],
        [member("a"), member("a/b")],
        [member("a"), member("a")],
        [member("a", tarfile.SYMTYPE, "/etc")],
        [member("a", tarfile.SYMTYPE, "../..")],
        [member("a", tarfile.SYMTYPE, "b"), member("a/x")],
        [member("a", tarfile.DIRTYPE), member("a/b", tarfile.SYMTYPE, "."),
         member("c", tarfile.SYMTYPE, "a/b/../..")],
        [member("a", tarfile.LNKTYPE, "/etc/passwd")],
        [member("a", tarfile.CHRTYPE)],
        [member("a", tarfile.FIFOTYPE)],
    ],
    ids=lambda members: " ".join(f"{one.name}>{one.linkname}" for one in members),
)  # fmt: skip
def test_an_archive_of_somebody_else_cannot_reach_outside(
    tmp_path: Path, members: list[tarfile.TarInfo]
) -> None:
    content = io.BytesIO()
    with tarfile.open(mode="w", fileobj=content) as tar:
        for one in members:
            tar.addfile(one)
    sha256 = hashlib.sha256(content.getvalue()).hexdigest()
    (tmp_path / "in").mkdir()
    with pytest.raises(SnapshotDamaged):
        unpack(io.BytesIO(gzip.compress(content.getvalue())), sha256, tmp_path / "in" / "out")
    assert [path.name for path in tmp_path.iterdir()] == ["in"]
