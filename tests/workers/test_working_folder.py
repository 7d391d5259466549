"""An attempt runs the code of its snapshot, wherever the submitted folder has gone."""

from dataclasses import replace
from pathlib import Path

import pytest

from dovetail_jobs.snapshot.archive import pack
from dovetail_jobs.snapshot.workdir import survey
from dovetail_workers import keys
from dovetail_workers.launch import Launch
from dovetail_workers.storage.local import LocalStorage
from helpers.attempts import ended, log_text, run, script_launch
from helpers.trees import write_tree


@pytest.fixture
def storage(tmp_path: Path) -> Path:
    return tmp_path / "storage"


def launch_with_code(storage: Path, folder: Path, script: str, **spec: object) -> Launch:
    """A launch whose code, that of `folder` now, lies in `storage`."""
    archive = folder.with_suffix(".tar.gz")
    snapshot = pack(survey(folder), archive)
    LocalStorage(storage).put(keys.code_archive(snapshot.sha256), archive)
    archive.unlink()
    launch = script_launch(storage, script, workdir=str(folder), **spec)
    return replace(launch, code=snapshot.sha256)


def test_a_script_runs_the_code_as_it_was_packed(tmp_path: Path, storage: Path) -> None:
    folder = tmp_path / "job"
    write_tree(folder, {"main.py": b"import mine", "src/mine.py": b"print('as packed')"})
    launch = launch_with_code(storage, folder, "python main.py", env={"PYTHONPATH": "src"})
    (folder / "src" / "mine.py").write_text("print('edited')")
    assert run(launch, tmp_path).outcome == "succeeded"
    assert log_text(launch) == "as packed\n"


def test_a_script_knows_where_it_was_submitted(tmp_path: Path, storage: Path) -> None:
    folder = tmp_path / "job"
    write_tree(folder, {"a": b""})
    launch = launch_with_code(storage, folder, "echo $DOVETAIL_SUBMIT_DIR; pwd; ls")
    run(launch, tmp_path)
    submitted, here, listed = log_text(launch).splitlines()
    assert (submitted, listed) == (str(folder), "a")
    assert here == f"{Path(here).parent}/code"
    assert not Path(here).exists()


def test_an_attempt_begins_with_the_packed_files_only(tmp_path: Path, storage: Path) -> None:
    folder = tmp_path / "job"
    write_tree(folder, {"a": b""})
    launch = launch_with_code(storage, folder, "test ! -e left && touch left && echo changed > a")
    assert run(launch, tmp_path).outcome == "succeeded"
    second = replace(launch, attempt=2)
    assert run(second, tmp_path).outcome == "succeeded"
    assert (folder / "a").read_bytes() == b""


@pytest.mark.parametrize(
    ("script", "said"),
    [
        ("touch out", "1 new file in the working folder is not kept (out)"),
        (
            "mkdir d; touch a b c d/e",
            "4 new files in the working folder are not kept (a, b, c, …)",
        ),
        ("mkdir -p __pycache__; touch __pycache__/x.pyc", None),
        (
            "mkdir s; touch s/state; "
            """echo '{"step": 1, "checkpoint": "s"}' >> $DOVETAIL_REPORTS; touch out""",
            "1 new file in the working folder is not kept (out)",
        ),
    ],
)
def test_files_that_go_with_the_attempt_are_told_in_a_line(
    tmp_path: Path, storage: Path, script: str, said: str | None
) -> None:
    folder = tmp_path / "job"
    write_tree(folder, {"train.py": b""})
    launch = launch_with_code(storage, folder, f"{script}; printf 'the end'")
    assert run(launch, tmp_path).outcome == "succeeded"
    way_out = "write to an absolute path, or to $DOVETAIL_CHECKPOINTS and report it"
    told = f"\ndovetail: {said}; {way_out}\n" if said else ""
    assert log_text(launch) == f"the end{told}"


def test_a_new_file_whose_name_is_no_text_does_no_harm(tmp_path: Path, storage: Path) -> None:
    folder = tmp_path / "job"
    write_tree(folder, {"a": b""})
    script = "printf x > \"$(printf 'odd\\377')\"; echo last line"
    launch = launch_with_code(storage, folder, script)
    assert run(launch, tmp_path).outcome == "succeeded"
    assert "last line\ndovetail: 1 new file" in log_text(launch)


def test_a_script_that_fails_is_quoted_and_not_the_line_about_its_files(
    tmp_path: Path, storage: Path
) -> None:
    folder = tmp_path / "job"
    write_tree(folder, {"train.py": b""})
    launch = launch_with_code(storage, folder, "touch out; echo no data; exit 3")
    assert run(launch, tmp_path).message.endswith("its last line: no data")


def test_a_job_without_code_runs_in_its_workdir_and_leaves_its_files_there(
    tmp_path: Path, storage: Path
) -> None:
    folder = tmp_path / "job"
    folder.mkdir()
    launch = script_launch(storage, "touch out", workdir=str(folder))
    assert run(launch, tmp_path).outcome == "succeeded"
    assert (folder / "out").exists()
    assert log_text(launch) == ""


def test_code_that_is_gone_is_a_clear_failure(tmp_path: Path, storage: Path) -> None:
    launch = replace(script_launch(storage, "true", workdir=str(tmp_path)), code="ab" * 32)
    assert run(launch, tmp_path).outcome == "failed"
    place = LocalStorage(storage).uri(keys.code_archive("ab" * 32))
    said = f"code abababababab: is no longer at {place}; submit the job again"
    assert ended(launch).message == said


def test_code_with_a_flipped_byte_is_not_run(tmp_path: Path, storage: Path) -> None:
    folder = tmp_path / "job"
    write_tree(folder, {"train.sh": b"echo ran\n" * 30})
    launch = launch_with_code(storage, folder, "sh train.sh")
    assert launch.code is not None
    file = storage / keys.code_archive(launch.code)
    data = bytearray(file.read_bytes())
    data[len(data) // 2] ^= 0x10
    file.write_bytes(data)
    assert run(launch, tmp_path).outcome == "failed"
    assert ended(launch).message.startswith(f"code {launch.code[:12]}: is damaged: ")
    assert ended(launch).message.endswith("; submit the job again")
    assert log_text(launch) == ""


def test_code_that_cannot_be_read_for_now_is_a_loss(tmp_path: Path, storage: Path) -> None:
    launch = replace(script_launch(storage, "true", workdir=str(tmp_path)), code="ab" * 32)
    folder = storage / keys.code_archive("ab" * 32)
    folder.parent.mkdir(parents=True)
    folder.symlink_to(folder)  # a loop of links: reading fails, and not because nothing is there
    assert run(launch, tmp_path).outcome == "lost"
    assert "cannot read code/abab" in ended(launch).message
