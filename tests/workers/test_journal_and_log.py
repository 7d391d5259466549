"""What an attempt writes reaches a reader whole, in order, and from any cursor."""

import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dovetail_workers import pace, reports
from dovetail_workers.fence import Fenced
from dovetail_workers.journal import JournalWriter, read_segments
from dovetail_workers.log import LogWriter, read_log
from dovetail_workers.reports import Ended, Metrics, Progress
from dovetail_workers.storage.local import LocalStorage
from dovetail_workers.storage.protocol import Storage


def writer(storage: LocalStorage, pieces: list[bytes], **options: list[str]) -> LogWriter:
    return LogWriter(
        storage,
        "j",
        1,
        secrets=options.get("secrets", []),
        tee=pieces.append,
        on_written=lambda: None,
        on_broken=lambda error: None,
    )


def journal_writer(storage: Storage, broken: list[Exception] | None = None) -> JournalWriter:
    on_broken = [].append if broken is None else broken.append
    return JournalWriter(storage, "j", 1, on_written=lambda: None, on_broken=on_broken)


def test_a_reader_continues_at_its_cursor(tmp_path: Path) -> None:
    storage = LocalStorage(tmp_path)
    journal = journal_writer(storage)
    journal.append(Ended(outcome="lost", exit_code=None, message="urgent, so it is a segment"))
    journal.append(Progress(step=1))
    journal.close(1)
    journal_again = list(read_segments(storage, "j", 1, 1))
    numbers = [entry.number for _, segment in journal_again for entry in segment]
    assert numbers == [1, 2]
    last_segment = journal_again[-1][0]
    assert list(read_segments(storage, "j", 1, last_segment)) == journal_again[-1:]
    assert list(read_segments(storage, "j", 1, last_segment + 1)) == []


def test_a_second_writer_of_the_same_attempt_is_fenced(tmp_path: Path) -> None:
    storage = LocalStorage(tmp_path)
    first = journal_writer(storage)
    first.append(Progress(step=1))
    first.close(1)
    second = journal_writer(storage)
    second.append(Progress(step=1))
    with pytest.raises(Fenced, match=r"journal/00000001\.jsonl has another writer"):
        second.close(1)
    assert len(list(read_segments(storage, "j", 1, 1))) == 1


@pytest.mark.parametrize(
    "report",
    [
        Progress(step=3, steps=10, steps_per_s=1.5),
        Metrics(step=3, values={"loss": 0.1 + 0.2}),
        Ended(outcome="failed", exit_code=3, message="é"),
        reports.CheckpointSaved(step=1, key="k/", uri="/k", bytes=4),
    ],
)
def test_a_report_comes_back_in_every_digit(report: reports.Report) -> None:
    assert reports.from_json(json.loads(reports.to_line(report))) == report


@given(
    pieces=st.lists(st.binary(max_size=40), max_size=8),
    offset=st.integers(0, 200),
    limit=st.integers(0, 200),
)
def test_any_stretch_of_a_log_can_be_read(
    tmp_path_factory: pytest.TempPathFactory, pieces: list[bytes], offset: int, limit: int
) -> None:
    storage = LocalStorage(tmp_path_factory.mktemp("log"))
    log = writer(storage, [])
    for piece in pieces:
        log.write(piece)
    log.close(1)
    whole = b"".join(pieces)
    assert read_log(storage, "j", 1, offset, limit).data == whole[offset : offset + limit]
    assert read_log(storage, "j", 1, -5, 1000).data == whole[-5:]


def test_a_secret_cut_in_two_is_still_masked(tmp_path: Path) -> None:
    seen: list[bytes] = []
    log = writer(LocalStorage(tmp_path), seen, secrets=["hunter2"])
    for piece in (b"the key is hun", b"ter2 yes\nand hunter", b"2"):
        log.write(piece)
    log.close(1)
    assert b"".join(seen) == b"the key is [secret] yes\nand [secret]"
    assert read_log(LocalStorage(tmp_path), "j", 1, 0, 1000).data == b"".join(seen)


def test_news_is_frequent_at_first_and_rare_later() -> None:
    assert pace.interval_s(0) == 0.5
    assert pace.interval_s(120) == 2.0
    assert pace.interval_s(36_000) == 5.0
