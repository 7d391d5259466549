"""What a client does when its server stops answering: it goes on with the successor, unless the end
was wanted.
"""

import json
from pathlib import Path

import pytest

from dovetail.cli.follow import LogReader, follow_job
from dovetail.client import Client
from dovetail.local_server import server_again
from dovetail.settings import Settings
from dovetail_jobs.errors import Unreachable
from helpers.fake_server import TOKEN, Stage
from helpers.fake_service import FakeService, job_view, running_changes, succeeded_changes

GONE = "http://127.0.0.1:9"  # the discard port: nothing listens there


def said_nothing(text: str) -> None:
    raise AssertionError(text)


def test_a_server_that_was_stopped_on_purpose_is_not_started_again(tmp_path: Path) -> None:
    settings = Settings.from_environment({"DOVETAIL_HOME": str(tmp_path)})
    lost = Unreachable("nothing answers")
    with pytest.raises(Unreachable) as raised:
        server_again(settings, lost, said_nothing)
    assert raised.value is lost


def test_a_successor_that_runs_already_is_found(tmp_path: Path, stage: Stage) -> None:
    settings = Settings.from_environment({"DOVETAIL_HOME": str(tmp_path)})
    settings.server_file.write_text(json.dumps({"url": stage.url, "pid": 1}))
    settings.token_file.write_text(TOKEN)
    found = server_again(settings, Unreachable("nothing answers"), said_nothing)
    assert found.url == stage.url


def test_following_goes_on_with_the_successor_and_repeats_no_line(
    stage: Stage, service: FakeService
) -> None:
    service.put(job_view(id="abc123", **running_changes()))
    service.print("abc123", "first\nsecond\n")
    client, pieces = Client(stage.url, TOKEN), list[str]()
    reader = LogReader(client, "abc123", lambda chunk: pieces.append(chunk["data"]))
    reader.read(1)
    service.print("abc123", "third\n")
    service.change("abc123", **succeeded_changes())
    lost = list[Unreachable]()

    def again(error: Unreachable) -> Client:
        lost.append(error)
        return client

    ended = follow_job(Client(GONE, TOKEN), "abc123", reader, again=again)
    assert ended["state"] == "SUCCEEDED"
    assert "".join(pieces) == "first\nsecond\nthird\n"
    assert len(lost) == 1
