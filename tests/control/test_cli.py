"""The commands against the real app on a real socket: texts, JSON and exit codes."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

import helpers.fake_server
from dovetail.cli.main import COMMANDS, main
from dovetail.cli.options import complete_job
from dovetail.local_server import ensure_server, wait_until_gone
from dovetail.service.contract import (
    EventView,
    ServerOptions,
)
from dovetail.settings import Settings
from dovetail_jobs.lifecycle import State
from helpers.commands import Run, Said, golden
from helpers.fake_service import (
    SUBMITTED,
    FakeService,
    attempt_view,
    job_view,
    running_changes,
    succeeded_changes,
)

REPOSITORY = Path(__file__).parents[2]


@pytest.fixture
def yaml(tmp_path: Path) -> Path:
    file = tmp_path / "hello.yaml"
    file.write_text("name: hello\nscript: python train.py\n")
    return file


def several_jobs(service: FakeService) -> None:
    """One of each kind that `ps` shows differently, submitted an hour apart."""
    now = datetime.now(UTC)
    kinds: list[dict[str, Any]] = [
        {"id": "old000", **succeeded_changes(), "name": "older"},
        {"id": "k3f9qz", **running_changes(), "name": "swin-digits"},
        {"id": "m7w2ab", "name": "waiting"},
        {"id": "p4x8cd", "state": State.FAILED, "reason": "PROGRAM_FAILED", "name": "broken"},
    ]
    for hours, kind in zip((4, 3, 2, 1), kinds, strict=True):
        service.put(job_view(created_at=now - timedelta(hours=hours), **kind))


def test_ps_lists_newest_first(dovetail: Run, service: FakeService, tmp_path: Path) -> None:
    several_jobs(service)
    said = dovetail("ps")
    assert (said.code, said.err) == (0, "")
    golden("ps.txt", said.out, service, tmp_path)


def test_ps_shows_the_last_few_finished_jobs_and_all_on_request(
    dovetail: Run, service: FakeService
) -> None:
    for number in range(8):
        service.put(
            job_view(
                id=f"done{number}",
                state=State.SUCCEEDED,
                created_at=SUBMITTED + timedelta(minutes=number),
            )
        )
    service.put(job_view(id="first", created_at=SUBMITTED - timedelta(days=1)))
    listed = [job["id"] for job in dovetail("ps", "--json").json]
    assert listed == ["done7", "done6", "done5", "done4", "done3", "first"]
    assert len(dovetail("ps", "--all", "--json").json) == 9
    assert [job["id"] for job in dovetail("ps", "--state", "queued", "--json").json] == ["first"]
    assert dovetail("ps", "--project", "other", "--json").json == []


def test_ps_without_jobs_is_a_header(dovetail: Run) -> None:
    assert dovetail("ps").out == "ID  NAME  STATE  REASON  DEVICE  PROGRESS  AGE\n"


def test_ps_refuses_a_state_that_there_is_not(dovetail: Run) -> None:
    said = dovetail("ps", "--state", "sleeping")
    assert said.code == 2
    assert "sleeping is not one of QUEUED" in said.err


def test_events_tell_the_story(dovetail: Run, service: FakeService, tmp_path: Path) -> None:
    service.put(job_view())
    told = ("QUEUED", "SUBMITTED", "was submitted"), ("STARTING", "PLACED", "goes to n1/cpu:0")
    service.stories["k3f9qz"] = [
        EventView(
            id=number,
            at=SUBMITTED + timedelta(seconds=number),
            attempt=number - 1 or None,
            kind=reason,
            state=state,
            reason=reason,
            message=message,
        )
        for number, (state, reason, message) in enumerate(told, 1)
    ]
    golden("events.txt", dovetail("events", "k3f9qz").out, service, tmp_path)
    assert [event["id"] for event in dovetail("events", "k3f9qz", "--json").json] == [1, 2]


def test_submit_prints_the_id_for_the_program_and_a_sentence_for_the_person(
    dovetail: Run, yaml: Path
) -> None:
    said = dovetail("submit", str(yaml))
    assert said == Said(0, "job0\n", "submitted hello as job0\n")


def test_submit_json_is_one_object_for_one_file_and_a_list_for_several(
    dovetail: Run, yaml: Path
) -> None:
    one = dovetail("submit", str(yaml), "--json").json
    two = dovetail("submit", str(yaml), str(yaml), "--json").json
    assert one["state"] == "QUEUED"
    assert [job["id"] for job in two] == ["job1", "job2"]


def test_a_folder_is_all_the_job_files_in_it(dovetail: Run, yaml: Path) -> None:
    (yaml.parent / "again.yml").write_text(yaml.read_text().replace("hello", "again"))
    (yaml.parent / "notes.md").write_text("no job")
    (yaml.parent / "empty").mkdir()
    said = dovetail("submit", str(yaml.parent))
    assert said.out == "job0\njob1\n"
    assert said.err.startswith("submitted again as job0\n")
    verdicts = dovetail("validate", str(yaml.parent), "--json").json
    assert [Path(one["file"]).name for one in verdicts] == ["again.yml", "hello.yaml"]
    refused = dovetail("submit", str(yaml.parent / "empty"))
    assert (refused.code, "has no .yaml or .yml file" in refused.err) == (2, True)


def test_submit_overrides_keys(dovetail: Run, yaml: Path) -> None:
    said = dovetail("submit", str(yaml), "--json", "--set", "priority=7", "--set", "name=other")
    assert (said.json["spec"]["priority"], said.json["name"]) == (7, "other")


def test_submit_under_a_key_twice_makes_one_job(
    dovetail: Run, service: FakeService, yaml: Path
) -> None:
    first = dovetail("submit", str(yaml), "--key", "monday")
    again = dovetail("submit", str(yaml), "--key", "monday")
    assert first.out == again.out
    assert "before" in again.err
    assert len(service.records) == 1
    other = dovetail("submit", str(yaml), "--key", "monday", "--set", "priority=1")
    assert other.code == 6


def test_one_refused_file_submits_none(
    dovetail: Run, service: FakeService, yaml: Path, tmp_path: Path
) -> None:
    bad = tmp_path / "bad.yaml"
    bad.write_text("name: hello\nscript: true\npriorty: 3\n")
    said = dovetail("submit", str(yaml), str(bad))
    assert (said.code, said.out) == (2, "")
    assert all(line.startswith("error: ") for line in said.err.splitlines())
    assert "bad.yaml:3  priorty" in said.err
    assert service.records == {}


@pytest.mark.parametrize(
    "arguments",
    [("--follow", "--wait"), ("--wait", "--dry-run"), ("--follow", "FILE"), ("--key", "a", "FILE")],
)
def test_submit_refuses_options_that_do_not_go_together(
    dovetail: Run, service: FakeService, yaml: Path, arguments: tuple[str, ...]
) -> None:
    given = [str(yaml) if argument == "FILE" else argument for argument in arguments]
    assert dovetail("submit", str(yaml), *given).code == 2
    assert service.records == {}


def test_a_dry_run_shows_spec_and_place_and_submits_nothing(
    dovetail: Run, service: FakeService, yaml: Path
) -> None:
    said = dovetail("submit", str(yaml), "--dry-run", "--json")
    assert said.json["placement"] == {"node": "n1", "device": "cpu:0"}
    assert said.json["spec"]["resources"]["devices"] == 1
    text = dovetail("submit", str(yaml), "--dry-run").out
    place, code, *spec = text.splitlines()
    assert place == "# would run on n1/cpu:0: cpu:0 on n1 is free"
    assert code.startswith("# code: 1 file, 36B, sha256 ")
    assert spec[:2] == ["version: 1", "name: hello"]
    assert service.records == {}


def test_a_dry_run_warns_below_the_place(dovetail: Run, service: FakeService, yaml: Path) -> None:
    service.warnings = ("resources.memory: 1MiB is little", "and another thing")
    assert dovetail("submit", str(yaml), "--dry-run").out.splitlines()[1:3] == [
        "# warning: resources.memory: 1MiB is little",
        "# warning: and another thing",
    ]


def life(service: FakeService, end: dict[str, Any]) -> None:
    """The next submitted job waits, trains, prints, and ends so."""
    service.script = [
        lambda: service.change("job0", **running_changes(1)),
        lambda: service.print("job0", "step 1\n"),
        lambda: service.print("job0", "step 2\nlast line"),
        lambda: service.change("job0", **end),
    ]


def test_following_shows_log_states_and_result(
    dovetail: Run, service: FakeService, yaml: Path, tmp_path: Path
) -> None:
    life(service, succeeded_changes())
    said = dovetail("submit", str(yaml), "--follow")
    assert said.code == 0
    golden("follow.out", said.out, service, tmp_path)
    golden("follow.err", said.err, service, tmp_path)


def test_following_reads_every_attempt_once(
    dovetail: Run, service: FakeService, yaml: Path
) -> None:
    first = attempt_view(state="FAILED", reason="WORKER_LOST", ended_at=SUBMITTED)
    second = attempt_view(number=2, resumed_from_step=100)
    service.script = [
        lambda: service.change("job0", **running_changes(1)),
        lambda: service.print("job0", "from attempt 1\n"),
        lambda: service.change("job0", state=State.QUEUED, attempts=(first,)),
        lambda: service.print("job0", "from attempt 2\n", attempt=2),
        lambda: service.change("job0", **{**running_changes(101), "attempts": (first, second)}),
        lambda: service.change(
            "job0",
            **{
                **succeeded_changes(),
                "attempts": (first, second.model_copy(update={"ended_at": SUBMITTED})),
            },
        ),
    ]
    said = dovetail("submit", str(yaml), "--follow")
    assert said.out.startswith("from attempt 1\nfrom attempt 2\n")
    assert said.out.count("from attempt") == 2


def test_following_with_json_keeps_stdout_for_one_object(
    dovetail: Run, service: FakeService, yaml: Path
) -> None:
    life(service, succeeded_changes())
    said = dovetail("submit", str(yaml), "--follow", "--json")
    assert said.json["state"] == "SUCCEEDED"
    assert "step 2\nlast line" in said.err


@pytest.mark.parametrize("how", ["--follow", "--wait"])
def test_a_job_that_failed_gives_exit_code_1(
    dovetail: Run, service: FakeService, yaml: Path, how: str
) -> None:
    ended = attempt_view(state="FAILED", exit_code=3, ended_at=SUBMITTED)
    life(service, {"state": State.FAILED, "message": "exit code 3", "attempts": (ended,)})
    said = dovetail("submit", str(yaml), how)
    assert said.code == 1
    assert "job0 hello FAILED: exit code 3" in said.out


def test_waiting_is_quiet_until_the_end(dovetail: Run, service: FakeService, yaml: Path) -> None:
    life(service, succeeded_changes())
    said = dovetail("submit", str(yaml), "--wait")
    assert (said.code, said.err) == (0, "submitted hello as job0\n")
    assert "step 1" not in said.out
    assert "accuracy    0.9722" in said.out


def test_logs_prints_the_newest_attempt_or_the_wanted_one(
    dovetail: Run, service: FakeService
) -> None:
    over = attempt_view(ended_at=SUBMITTED)
    service.put(job_view(attempts=(over, attempt_view(number=2))))
    service.print("k3f9qz", "first\n")
    service.print("k3f9qz", "second\n", attempt=2)
    assert dovetail("logs", "k3f9qz").out == "second\n"
    assert dovetail("logs", "k3f9qz", "--attempt", "1").out == "first\n"
    piece = dovetail("logs", "k3f9qz", "--json").json
    assert (piece["attempt"], piece["data"]) == (2, "second\n")


def test_logs_of_a_job_that_has_not_run_are_empty(dovetail: Run, service: FakeService) -> None:
    service.put(job_view())
    assert dovetail("logs", "k3f9qz") == Said(0, "", "")


def test_following_logs_waits_for_the_job_and_goes_to_its_end(
    dovetail: Run, service: FakeService
) -> None:
    service.put(job_view(id="job0"))
    life(service, {"state": State.FAILED, "attempts": (attempt_view(ended_at=SUBMITTED),)})
    said = dovetail("logs", "-f", "job0")
    assert said == Said(0, "step 1\nstep 2\nlast line", "")
    assert dovetail("logs", "-f", "--attempt", "1", "job0").code == 2


def test_cancel_says_the_state_and_waits_on_request(dovetail: Run, service: FakeService) -> None:
    service.put(job_view(**running_changes()))
    assert dovetail("cancel", "k3f9qz").out == "k3f9qz  STOPPING  is being stopped\n"
    service.script = [
        lambda: service.change("k3f9qz", state=State.CANCELLED, message="was cancelled by ada")
    ]
    said = dovetail("cancel", "k3f9qz", "--wait")
    assert said == Said(0, "k3f9qz  CANCELLED  was cancelled by ada\n", "")
    assert dovetail("cancel", "k3f9qz", "--json").json["state"] == "CANCELLED"


def test_retry_makes_a_new_job_from_the_old_one(dovetail: Run, service: FakeService) -> None:
    service.put(job_view(state=State.FAILED))
    assert dovetail("retry", "k3f9qz").out == "job1\n"
    assert service.records["job1"].origin == "k3f9qz"
    assert dovetail("retry", "k3f9qz", "--from-scratch", "--json").json["origin"] is None
    assert dovetail("retry", "job1").code == 6


@pytest.mark.parametrize("command", ["show", "logs", "events", "cancel", "retry"])
def test_a_job_that_there_is_not_gives_exit_code_3(dovetail: Run, command: str) -> None:
    said = dovetail(command, "nothing")
    assert said == Said(3, "", "error: no job nothing; `dovetail ps --all` lists them\n")


def test_a_refused_token_gives_exit_code_4(
    dovetail: Run, service: FakeService, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("DOVETAIL_TOKEN", "wrong")
    said = dovetail("ps")
    assert (said.code, said.out) == (4, "")
    golden("token-refused.err", said.err, service, tmp_path)


def test_a_server_that_does_not_answer_gives_exit_code_5(
    dovetail: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    with helpers.fake_server.listener() as bound:
        port = bound.getsockname()[1]
    monkeypatch.setenv("DOVETAIL_URL", f"http://127.0.0.1:{port}")
    said = dovetail("ps")
    assert said.code == 5
    assert said.err.startswith(f"error: the server at http://127.0.0.1:{port} does not answer")


@pytest.mark.parametrize(
    ("arguments", "rule"),
    [
        (["ps", "--nonsense"], "No such option: --nonsense; `dovetail ps --help` shows the usage"),
        (["fly"], "No such command 'fly'; `dovetail --help` shows the usage"),
        (["up", "--cpu-devices", "0"], "--cpu-devices"),
        (["up", "--device-memory", "4 apples"], "--device-memory 4 apples  must be a size"),
        (["submit"], "FILE..."),
    ],
)
def test_wrong_usage_gives_exit_code_2(dovetail: Run, arguments: list[str], rule: str) -> None:
    said = dovetail(*arguments)
    assert (said.code, said.out) == (2, "")
    assert said.err.startswith("error: ")
    assert rule in said.err


def test_an_unexpected_failure_is_one_line_and_keeps_its_traceback(
    dovetail: Run, service: FakeService, tmp_path: Path
) -> None:
    service.put(job_view(created_at="0001-01-01T00:00:00Z"))
    service.records["k3f9qz"] = service.records["k3f9qz"].model_construct(id="k3f9qz", name="a")
    said = dovetail("show", "k3f9qz")
    log = tmp_path / "home" / "cli-errors.log"
    assert said.code == 70
    assert len(said.err.splitlines()) == 1
    assert said.err.endswith(f"(the traceback is in {log})\n")
    assert "Traceback" in log.read_text()


def test_families_and_schema_need_no_server(dovetail: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DOVETAIL_URL", "http://127.0.0.1:9")
    assert "image_classification" in dovetail("families").out
    assert {"name", "description"} == set(dovetail("families", "--json").json[0])
    assert dovetail("schema").json["$schema"].endswith("2020-12/schema")
    assert dovetail("schema", "--json") == dovetail("schema")


def test_validate_says_all_that_is_wrong(dovetail: Run, yaml: Path, tmp_path: Path) -> None:
    bad = tmp_path / "bad.yaml"
    bad.write_text("name: hello\nscript: true\npriority: 101\nlables: {}\n")
    assert dovetail("validate", str(yaml)) == Said(0, f"{yaml}: ok\n", "")
    said = dovetail("validate", str(yaml), str(bad))
    assert (said.code, said.out) == (2, f"{yaml}: ok\n")
    assert "bad.yaml:3  priority: 101" in said.err
    assert "bad.yaml:4  lables" in said.err
    verdicts = dovetail("validate", str(yaml), str(bad), "--json").json
    assert [verdict["ok"] for verdict in verdicts] == [True, False]
    assert {problem["line"] for problem in verdicts[1]["problems"]} >= {3, 4}
    assert dovetail("validate", str(tmp_path / "none.yaml")).code == 3


def test_version_and_help_are_data(dovetail: Run) -> None:
    assert re.fullmatch(r"dovetail \d+\.\d+\.\d+\n", dovetail("--version").out)
    said = dovetail("--help")
    assert (said.code, said.err) == (0, "")
    assert all(f"\n  {name} " in said.out for name in COMMANDS)
    assert dovetail().code == 2


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_takes_json_and_is_documented(dovetail: Run, command: str) -> None:
    assert "--json" in dovetail(command, "--help").out
    assert f"## dovetail {command}\n" in (REPOSITORY / "docs" / "cli.md").read_text()


@pytest.mark.parametrize("command", COMMANDS)
def test_every_option_is_documented(dovetail: Run, command: str) -> None:
    _, _, about = (REPOSITORY / "docs" / "cli.md").read_text().partition(f"## dovetail {command}\n")
    section = about.partition("\n## ")[0]
    options = set(re.findall(r"--[a-z-]+", dovetail(command, "--help").out)) - {"--help", "--json"}
    assert {option for option in options if f"`{option}" not in section} == set()


@pytest.mark.parametrize("command", ["list", "add", "rm"])
def test_the_commands_for_nodes_are_documented_too(dovetail: Run, command: str) -> None:
    usage = dovetail("node", command, "--help").out
    assert "--json" in usage
    _, _, section = (REPOSITORY / "docs" / "cli.md").read_text().partition("## dovetail node\n")
    section = section.partition("\n## ")[0]
    assert f"`dovetail node {command}" in section
    options = set(re.findall(r"--[a-z-]+", usage)) - {"--help", "--json"}
    assert {option for option in options if f"`{option}" not in section} == set()


def test_nodes_come_and_go_and_the_command_waits_for_ray_to_notice(
    dovetail: Run, service: FakeService
) -> None:
    added = dovetail("node", "add", "--count", "2")
    assert (added.code, added.err) == (0, "added n2, n3\n")
    assert [line.split()[0] for line in added.out.splitlines()] == ["NODE", "n2", "n3"]
    assert [node["name"] for node in dovetail("node", "list", "--json").json] == ["n1", "n2", "n3"]
    left = dovetail("node", "rm", "n2", "--json")
    assert [node["name"] for node in left.json] == ["n1", "n3"]
    assert dovetail("node", "rm", "n2").code == 3


def test_a_node_with_a_job_is_removed_only_by_force(dovetail: Run, service: FakeService) -> None:
    service.nodes.append("n2")
    service.put(job_view(state=State.RUNNING, attempts=(attempt_view(node="n2"),)))
    refused = dovetail("node", "rm", "n2")
    assert (refused.code, refused.err) == (6, "error: node n2 runs k3f9qz\n")
    assert dovetail("node", "rm", "n2", "--force").code == 0


def test_up_brings_the_machine_to_that_many_nodes(dovetail: Run, service: FakeService) -> None:
    assert dovetail("up", "--nodes", "3").code == 0
    assert service.nodes == ["n1", "n2", "n3"]
    assert dovetail("up", "--nodes", "3").code == 0
    more = dovetail("up", "--nodes", "2")
    assert (more.code, "Ray has 3 nodes here, not 2" in more.err) == (6, True)
    both = dovetail("up", "--nodes", "2", "--address", "127.0.0.1:6379")
    assert (both.code, "--nodes and --address" in both.err) == (2, True)


def test_names_and_ids_are_completed(dovetail: Run, service: FakeService) -> None:
    several_jobs(service)
    assert complete_job("") == [
        "p4x8cd", "broken", "m7w2ab", "waiting", "k3f9qz", "swin-digits", "old000", "older",
    ]  # fmt: skip
    assert complete_job("w") == ["waiting"]


def test_the_shell_gets_completions(dovetail: Run, service: FakeService) -> None:
    service.put(job_view(id="k3f9qz", name="swin-digits"))
    asked = {
        "_DOVETAIL_COMPLETE": "complete_bash",
        "COMP_WORDS": "dovetail show sw",
        "COMP_CWORD": "2",
    }
    done = subprocess.run(
        [sys.executable, "-c", "from dovetail.cli.main import main; main()"],
        env={**os.environ, **asked},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.stdout.split() == ["swin-digits"]


def test_completion_is_silent_and_starts_nothing_without_a_server(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("DOVETAIL_URL", raising=False)
    monkeypatch.setenv("DOVETAIL_HOME", str(tmp_path / "home"))
    assert complete_job("a") == []
    monkeypatch.setenv("DOVETAIL_PORT", "x")
    assert complete_job("a") == []
    assert not (tmp_path / "home").exists()


@pytest.fixture
def own_server(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Settings]:
    """A scripted server as a process of its own, found through its home."""
    monkeypatch.setenv("PYTHONPATH", str(Path(helpers.fake_server.__file__).parents[1]))
    monkeypatch.setenv("DOVETAIL_HOME", str(tmp_path / "home"))
    monkeypatch.setenv("DOVETAIL_DEVICE_MEMORY", "4GiB")
    monkeypatch.delenv("DOVETAIL_URL", raising=False)
    settings = Settings.from_environment()
    command = (sys.executable, "-m", "helpers.fake_server")
    pid = ensure_server(settings, lambda line: None, command).status()[0]["server"]["pid"]
    yield settings
    if settings.server_file.exists():
        os.kill(pid, signal.SIGTERM)
        assert wait_until_gone(pid)
    os.waitpid(pid, 0)


def test_up_status_and_down(own_server: Settings, capfd: pytest.CaptureFixture[str]) -> None:
    assert main(["up"]) == 0
    up = capfd.readouterr().out
    assert main(["status"]) == 0
    assert capfd.readouterr().out == up
    assert "device     n1/cpu:0 4GiB free" in up
    assert "dashboard  http://127.0.0.1:8265" in up
    assert main(["status", "--json"]) == 0
    url = json.loads(capfd.readouterr().out)["server"]["url"]

    assert main(["up", "--device-memory", "8GiB", "--cpu-devices", "2"]) == 6
    refused = capfd.readouterr().err
    assert refused.startswith(f"error: a server already runs at {url} with ")
    assert "--device-memory 4GiB, not 8GiB" in refused
    assert "--cpu-devices left to itself, not 2" in refused

    assert main(["down"]) == 0
    assert capfd.readouterr().err == "stopped the server and its Ray\n"
    assert main(["down", "--json"]) == 0
    assert json.loads(capfd.readouterr().out) == {"stopped": False, "pid": None}
    assert main(["status"]) == 5
    assert "`dovetail up` starts one" in capfd.readouterr().err


def test_up_takes_a_server_elsewhere_as_it_is_and_down_leaves_it(
    dovetail: Run, service: FakeService
) -> None:
    service.options = ServerOptions(ray_address="127.0.0.1:6379")
    assert dovetail("up", "--json").json["ray"]["state"] == "up"
    said = dovetail("down")
    assert said.code == 2
    assert "is not ours to stop" in said.err
    assert service.ended == []


PROGRAM = [sys.executable, "-c", "import sys; from dovetail.cli.main import main; sys.exit(main())"]


def test_ctrl_c_detaches_and_the_job_goes_on(
    dovetail: Run, service: FakeService, yaml: Path
) -> None:
    service.script = [
        lambda: service.change("job0", **running_changes(1)),
        lambda: service.print("job0", "step 1\n"),
    ]
    with subprocess.Popen(
        [*PROGRAM, "submit", str(yaml), "--follow"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        # A suite that runs in the background has inherited that SIGINT is ignored.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    ) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "step 1\n"
        process.send_signal(signal.SIGINT)
        _, err = process.communicate()
    assert process.returncode == 130
    assert "detached; job0 goes on" in err
    assert service.records["job0"].state == State.RUNNING


def test_a_terminal_gets_a_progress_bar_and_a_pipe_the_bare_log(
    dovetail: Run, service: FakeService, yaml: Path
) -> None:
    life(service, succeeded_changes())
    screen, terminal = os.openpty()
    process = subprocess.Popen(
        [*PROGRAM, "submit", str(yaml), "--follow"],
        stdout=subprocess.PIPE,
        stderr=terminal,
        env={**os.environ, "TERM": "xterm", "COLUMNS": "120"},
    )
    os.close(terminal)
    shown = b""
    while part := _read(screen):
        shown += part
    os.close(screen)
    out, _ = process.communicate()
    assert process.returncode == 0
    assert out.startswith(b"step 1\nstep 2\nlast line")
    for fact in (b"hello RUNNING", b"1/500", b"loss 0.3125", b"409.6 samples/s", b"2m36s left"):
        assert fact in shown


def _read(screen: int) -> bytes:
    try:
        return os.read(screen, 65536)
    except OSError:  # Linux says EIO once the other side of the terminal is closed.
        return b""


def test_a_closed_pipe_is_no_error(dovetail: Run, service: FakeService) -> None:
    service.put(job_view(attempts=(attempt_view(),)))
    service.print("k3f9qz", "line\n" * 100_000)
    done = subprocess.run(
        f"{sys.executable} -c '{PROGRAM[2]}' logs k3f9qz | head -n 1",
        shell=True,
        capture_output=True,
        text=True,
        check=False,
    )
    assert (done.stdout, done.stderr) == ("line\n", "")


def test_a_cold_start_loads_nothing_heavy(dovetail: Run, service: FakeService) -> None:
    several_jobs(service)
    program = (
        "import sys; from dovetail.cli.main import main; code = main(['ps']); "
        "print(*sys.modules, file=sys.stderr); sys.exit(code)"
    )
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True
    )
    assert "swin-digits" in done.stdout
    loaded = {name.partition(".")[0] for name in done.stderr.split()}
    heavy = {"rich", "torch", "ray", "sqlalchemy", "fastapi", "uvicorn", "yaml", "numpy", "httpx"}
    assert loaded & heavy == set()
