"""One attempt from launch to end, in a process of its own as under Ray."""

import signal
import subprocess
import sys
from pathlib import Path

import pytest

from dovetail_workers import keys
from dovetail_workers.launch import Launch
from dovetail_workers.reports import (
    CheckpointSaved,
    CheckpointSkipped,
    Ended,
    Metrics,
    Progress,
    Started,
)
from dovetail_workers.storage.local import LocalStorage
from helpers.attempts import (
    alive,
    ended,
    entries,
    log_text,
    run,
    script_launch,
    start,
    wait_for,
)


def pids_in(path: Path, count: int) -> list[int]:
    words = path.read_text().split() if path.exists() else []
    return [int(word) for word in words] if len(words) >= count else []


def stop(process: subprocess.Popen[bytes]) -> None:
    process.terminate()
    process.wait(30)


def test_a_script_that_ends_well_leaves_its_story_and_every_line(tmp_path: Path) -> None:
    launch = script_launch(tmp_path, "printf 'one\\ntwo\\nlast without newline'")
    assert run(launch, tmp_path) == Ended(
        outcome="succeeded", exit_code=0, message="ran to its end"
    )
    story = entries(launch)
    assert isinstance(story[0].report, Started)
    assert [entry.number for entry in story] == list(range(1, len(story) + 1))
    assert log_text(launch) == "one\ntwo\nlast without newline"


def test_a_script_that_exits_3_fails_with_its_last_words(tmp_path: Path) -> None:
    launch = script_launch(tmp_path, "echo reading; echo cannot read data >&2; exit 3")
    assert run(launch, tmp_path) == Ended(
        outcome="failed",
        exit_code=3,
        message="the script exited with code 3; its last line: cannot read data",
    )


def test_a_program_that_does_not_exist_is_a_failure_of_the_script(tmp_path: Path) -> None:
    launch = script_launch(tmp_path, "no-such-program --lr 1")
    assert run(launch, tmp_path).exit_code == 127
    assert "no-such-program: No such file or directory" in ended(launch).message


def test_a_killed_training_process_is_a_loss_and_not_a_failure(tmp_path: Path) -> None:
    launch = script_launch(tmp_path, "kill -9 $$")
    assert run(launch, tmp_path).outcome == "lost"
    assert ended(launch).exit_code == -9


def test_a_script_that_finds_no_memory_ended_for_want_of_it(tmp_path: Path) -> None:
    script = f"{sys.executable} -c 'held = bytearray(1 << 60)'"
    end = run(script_launch(tmp_path, script), tmp_path)
    assert (end.outcome, end.exit_code) == ("out_of_memory", 1)
    assert end.message == "out of memory: MemoryError"


def test_a_program_killed_within_a_shell_is_a_loss_too(tmp_path: Path) -> None:
    launch = script_launch(tmp_path, 'sh -c "kill -9 \\$\\$"; exit $?')
    assert run(launch, tmp_path).outcome == "lost"


def test_a_report_that_nobody_can_obey_stops_no_later_one(tmp_path: Path) -> None:
    odd = f'{{"step": 1, "checkpoint": "{"x" * 300}"}}'
    script = f"""printf '%s\\n' '{odd}' '{{"\\ud800": 1}}' '{{"step": 2}}' >> $DOVETAIL_REPORTS"""
    launch = script_launch(tmp_path, script)
    assert run(launch, tmp_path).outcome == "succeeded"
    told = [entry.report.step for entry in entries(launch) if isinstance(entry.report, Progress)]
    assert told[-1] == 2
    assert log_text(launch).count("was not understood") == 2


def test_a_plain_command_is_the_training_process_itself(tmp_path: Path) -> None:
    launch = script_launch(tmp_path, "sleep 1000")
    process = start(launch, tmp_path)
    (started,) = wait_for("start", lambda: [e.report for e in entries(launch)])
    assert isinstance(started, Started)
    command = Path(f"/proc/{started.pid}/cmdline")
    wait_for("exec", lambda: command.read_bytes() == b"sleep\x001000\x00")
    stop(process)
    assert ended(launch).outcome == "stopped"
    assert not alive(started.pid)


@pytest.mark.parametrize(
    "script",
    [
        pytest.param("trap '' TERM; {0} & {0} & wait", marks=pytest.mark.long),
        "setsid {0} & setsid setsid {0} & sleep 1000",
        "(setsid {0} &); (env -i setsid {0} &); sleep 1000",
    ],
    ids=["deaf to SIGTERM", "groups of their own", "orphans, one without environment"],
)
def test_a_stop_ends_the_whole_tree(tmp_path: Path, script: str) -> None:
    noted = tmp_path / "pids"
    child = f"sh -c 'echo $$ >> {noted}; exec sleep 1000'"
    launch = script_launch(tmp_path, script.format(child))
    process = start(launch, tmp_path)
    pids = wait_for("the children", lambda: pids_in(noted, 2))
    assert all(alive(pid) for pid in pids)
    stop(process)
    assert ended(launch).outcome == "stopped"
    assert [pid for pid in pids if alive(pid)] == []


def test_what_a_finished_script_left_running_ends_with_it(tmp_path: Path) -> None:
    noted = tmp_path / "pids"
    launch = script_launch(tmp_path, f"(setsid sleep 1000 & echo $! > {noted}); exit 0")
    assert run(launch, tmp_path).outcome == "succeeded"
    (pid,) = pids_in(noted, 1)
    assert not alive(pid)


def test_the_training_process_dies_with_its_supervisor(tmp_path: Path) -> None:
    launch = script_launch(tmp_path, "sleep 1000")
    process = start(launch, tmp_path)
    (started,) = wait_for("start", lambda: [e.report for e in entries(launch)])
    process.send_signal(signal.SIGKILL)
    process.wait(10)
    wait_for("its death", lambda: not alive(started.pid), deadline_s=10)


def test_reports_become_metrics_and_a_bad_line_is_named_in_the_log(tmp_path: Path) -> None:
    lines = '{"step": 1, "metrics": {"loss": 0.5}}', "nonsense", '{"step": -1}', '{"stepp": 1}'
    script = "; ".join(f"echo '{line}' >> $DOVETAIL_REPORTS" for line in lines)
    launch = script_launch(tmp_path, script)
    assert run(launch, tmp_path).outcome == "succeeded"
    found = [e.report for e in entries(launch) if isinstance(e.report, Metrics)]
    assert found == [Metrics(step=1, values={"loss": 0.5})]
    assert log_text(launch).count("dovetail: this report line was not understood") == 3
    assert "unknown key stepp" in log_text(launch)


def test_a_script_finds_its_newest_checkpoint_again(tmp_path: Path) -> None:
    save = (
        "for s in 1 2 3; do d=$DOVETAIL_CHECKPOINTS/$s; mkdir -p $d/deep; "
        "echo state $s > $d/deep/a; "
        'echo "{\\"step\\": $s, \\"checkpoint\\": \\"$d\\"}" >> $DOVETAIL_REPORTS; done; '
        "kill -9 $$"
    )
    first = script_launch(tmp_path, save)
    assert run(first, tmp_path).outcome == "lost"
    saved = [e.report for e in entries(first) if isinstance(e.report, CheckpointSaved)]
    assert [report.step for report in saved] == [1, 2, 3]

    second = script_launch(tmp_path, "cat $DOVETAIL_RESUME/deep/a", attempt=2)
    assert run(second, tmp_path).outcome == "succeeded"
    assert log_text(second) == "state 3\n"
    started = entries(second)[0].report
    assert isinstance(started, Started)
    assert started.resumed_from_step == 3


def test_a_secret_reaches_the_program_and_never_the_log(tmp_path: Path) -> None:
    (tmp_path / "key").write_text("hunter2-hunter2\n")
    launch = script_launch(
        tmp_path,
        "echo $KEY-$OTHER; test $KEY = hunter2-hunter2",
        secrets={"KEY": f"file:{tmp_path / 'key'}", "OTHER": "env:FROM_NODE"},
    )
    assert run(launch, tmp_path, FROM_NODE="swordfish").outcome == "succeeded"
    assert log_text(launch) == "[secret]-[secret]\n"


def test_a_secret_that_is_not_there_is_refused_by_its_reference(tmp_path: Path) -> None:
    launch = script_launch(tmp_path, "true", secrets={"KEY": "env:NOT_SET_ANYWHERE"})
    assert run(launch, tmp_path).outcome == "failed"
    assert ended(launch).message == (
        "secrets.KEY: env:NOT_SET_ANYWHERE  "
        "the worker's environment on n1 has no NOT_SET_ANYWHERE; "
        "set it where Ray is started, or use file:PATH"
    )


def test_the_program_is_told_its_place_and_its_threads(tmp_path: Path) -> None:
    names = ["JOB", "ATTEMPT", "RANK", "WORLD_SIZE", "DEVICE", "DEVICE_MEMORY"]
    script = "; ".join(f"echo $DOVETAIL_{name}" for name in names) + "; echo $OMP_NUM_THREADS $A"
    launch = script_launch(
        tmp_path, script, resources={"cpus": 3.5}, env={"A": "b c"}, workdir=str(tmp_path)
    )
    run(launch, tmp_path, RAY_SECRET="x")
    assert log_text(launch).splitlines() == [
        "abc123", "1", "0", "1", "cpu", str(2**30), "3 b c",
    ]  # fmt: skip


def test_a_workdir_that_is_gone_is_a_clear_refusal(tmp_path: Path) -> None:
    launch = script_launch(tmp_path, "true", workdir=str(tmp_path / "gone"))
    assert run(launch, tmp_path).outcome == "failed"
    assert ended(launch).message == f"workdir: {tmp_path}/gone  No such file or directory"


def test_two_workers_of_one_attempt_cannot_both_speak(tmp_path: Path) -> None:
    launch: Launch = script_launch(tmp_path, "true")
    assert run(launch, tmp_path).outcome == "succeeded"
    before = entries(launch)
    second = start(launch, tmp_path)
    assert second.wait(30) != 0
    assert entries(launch) == before


def test_a_python_script_may_use_the_reporter(tmp_path: Path) -> None:
    (tmp_path / "program.py").write_text(
        "from dovetail_workers import reporter\n"
        "before = reporter.resume_folder()\n"
        "print(before and (before / 'state').read_text())\n"
        "reporter.report(step=3, steps=9, metrics={'loss': 0.5}, samples_per_s=7.0)\n"
        "folder = reporter.new_folder('three')\n"
        "(folder / 'state').write_text('at three')\n"
        "reporter.checkpoint(step=3, folder=folder)\n"
    )
    first = script_launch(tmp_path, "python program.py", workdir=str(tmp_path))
    assert run(first, tmp_path).outcome == "succeeded"
    said = [entry.report for entry in entries(first)]
    assert Progress(step=3, steps=9, samples_per_s=7.0) in said
    assert Metrics(step=3, values={"loss": 0.5}) in said
    assert [report.step for report in said if isinstance(report, CheckpointSaved)] == [3]
    second = script_launch(tmp_path, "python program.py", attempt=2, workdir=str(tmp_path))
    assert run(second, tmp_path).outcome == "succeeded"
    assert (log_text(first), log_text(second)) == ("None\n", "at three\n")


def test_a_damaged_checkpoint_of_a_script_is_named_and_the_one_before_serves(
    tmp_path: Path,
) -> None:
    save = (
        "for s in 1 2; do d=$DOVETAIL_CHECKPOINTS/$s; mkdir $d; echo state $s > $d/a; "
        'echo "{\\"step\\": $s, \\"checkpoint\\": \\"$d\\"}" >> $DOVETAIL_REPORTS; done; '
        "kill -9 $$"
    )
    first = script_launch(tmp_path, save)
    assert run(first, tmp_path).outcome == "lost"
    storage, newest = LocalStorage(tmp_path), keys.checkpoint_prefix("abc123", 2, 1)
    storage.put(newest + "parts/a", b"state 3\n")
    second = script_launch(tmp_path, "cat $DOVETAIL_RESUME/a", attempt=2)
    assert run(second, tmp_path).outcome == "succeeded"
    assert log_text(second) == "state 1\n"
    skipped, started, *_ = (entry.report for entry in entries(second))
    assert isinstance(skipped, CheckpointSkipped)
    assert (skipped.key, skipped.instead_step) == (newest, 1)
    assert isinstance(started, Started)
    assert started.resumed_from_step == 1


def test_what_only_the_supervisor_may_say_is_not_taken_from_a_program(tmp_path: Path) -> None:
    forged = (
        '{"type": "ended", "outcome": "succeeded", "exit_code": 0, "message": "x"}',
        '{"type": "started", "pid": 1, "node": "n", "device": "d"}',
        '{"type": "journal_damaged", "segment": 1, "whole": 0, "cause": "x"}',
        '{"type": "metrics", "step": 1, "values": {"loss": "low"}}',
        '{"step": 1, "phase": ["train"]}',
        '{"step": 1, "metrics": {"loss": 1' + "0" * 400 + "}}",
    )
    script = "; ".join(f"echo '{line}' >> $DOVETAIL_REPORTS" for line in forged) + "; exit 3"
    launch = script_launch(tmp_path, script)
    assert run(launch, tmp_path).outcome == "failed"
    assert [type(entry.report) for entry in entries(launch)] == [Started, Ended]
    assert log_text(launch).count("dovetail: this report line was not understood") == len(forged)
