"""A storage that refuses for a while loses nothing of what an attempt says."""

from __future__ import annotations

import itertools
import threading
from pathlib import Path

import pytest

from dovetail_workers import keys, pace, reports
from dovetail_workers.fence import Fenced
from dovetail_workers.journal import JournalWriter, read_segments
from dovetail_workers.log import LogWriter, read_log
from dovetail_workers.reports import Ended, JournalDamaged, Metrics, Report
from dovetail_workers.storage.local import LocalStorage
from dovetail_workers.storage.protocol import Storage, StorageError
from helpers.attempts import entries, log_text, run, script_launch
from helpers.faulty_storage import RefusingStorage

OVER = Ended(outcome="succeeded", exit_code=0, message="ran to its end")


def journal(storage: Storage, broken: list[Exception] | None = None) -> JournalWriter:
    on_broken = [].append if broken is None else broken.append
    return JournalWriter(storage, "j", 1, on_written=lambda: None, on_broken=on_broken)


def log(storage: Storage, held_bytes: int = 1 << 20) -> LogWriter:
    return LogWriter(
        storage,
        "j",
        1,
        secrets=(),
        tee=lambda data: None,
        on_written=lambda: None,
        on_broken=lambda error: None,
        held_bytes=held_bytes,
    )


def told(storage: Storage) -> list[Report]:
    found = [entry for _, segment in read_segments(storage, "j", 1, 1) for entry in segment]
    assert [entry.number for entry in found] == list(range(1, len(found) + 1))
    return [entry.report for entry in found]


def metrics(*steps: int) -> list[Metrics]:
    return [Metrics(step=step, values={"loss": 1 / (1 + step)}) for step in steps]


def test_the_pauses_between_tries_grow_to_half_a_minute() -> None:
    assert list(itertools.islice(pace.pauses_s(), 7)) == [1, 2, 4, 8, 16, 30, 30]


def test_a_full_disk_that_gets_room_again_loses_no_report_and_no_line(tmp_path: Path) -> None:
    storage = RefusingStorage(tmp_path)
    writer, output = journal(storage), log(storage)
    storage.full = True
    for report in metrics(1, 2):
        writer.append(report)
    writer.append(OVER)  # urgent, so it is tried at once
    assert storage.refused.wait(10)
    for report in metrics(3, 4):
        writer.append(report)
    output.write(b"one\n")
    output.write(b"two\n")
    storage.full = False
    writer.close(10)
    output.close(10)
    assert told(storage) == [*metrics(1, 2), OVER, *metrics(3, 4)]
    assert read_log(storage, "j", 1, 0, 1000).data == b"one\ntwo\n"


def test_the_writer_itself_tries_again_after_a_pause(tmp_path: Path) -> None:
    storage, written = RefusingStorage(tmp_path), threading.Event()
    writer = JournalWriter(storage, "j", 1, on_written=written.set, on_broken=lambda error: None)
    storage.full = True
    writer.append(OVER)
    assert storage.refused.wait(10)
    storage.full = False
    assert written.wait(10)
    assert told(storage) == [OVER]
    writer.close(0)


def test_a_write_whose_answer_was_lost_is_no_second_writer_and_no_duplicate(
    tmp_path: Path,
) -> None:
    storage, broken = RefusingStorage(tmp_path), list[Exception]()
    writer = journal(storage, broken)
    storage.uncertain = True
    writer.append(OVER)
    assert storage.refused.wait(10)
    writer.append(metrics(5)[0])
    storage.uncertain = False
    writer.close(10)
    assert told(storage) == [OVER, *metrics(5)]
    assert broken == []


def test_another_writer_that_came_during_a_refusal_is_noticed(tmp_path: Path) -> None:
    storage, broken = RefusingStorage(tmp_path), list[Exception]()
    writer = journal(storage, broken)
    storage.full = True
    writer.append(OVER)
    assert storage.refused.wait(10)
    LocalStorage(tmp_path).create(keys.journal_segment("j", 1, 1), b"another's")
    storage.full = False
    with pytest.raises(Fenced, match="has another writer"):
        writer.close(10)
    assert [type(error) for error in broken] == [Fenced]


def test_a_storage_that_never_takes_the_end_is_named(tmp_path: Path) -> None:
    storage = RefusingStorage(tmp_path)
    writer = journal(storage)
    storage.full = True
    writer.append(OVER)
    with pytest.raises(StorageError, match="No space left on device"):
        writer.close(0)
    assert told(storage) == []


def test_an_abandoned_journal_writes_nothing_more(tmp_path: Path) -> None:
    storage = RefusingStorage(tmp_path)
    writer = journal(storage)
    storage.full = True
    writer.append(OVER)
    assert storage.refused.wait(10)
    storage.full = False
    writer.abandon()
    assert told(storage) == []


def test_a_log_refused_too_long_keeps_its_newest_lines_and_says_what_is_lost(
    tmp_path: Path,
) -> None:
    storage = RefusingStorage(tmp_path)
    output = log(storage, held_bytes=100)
    storage.full = True
    output.write(b"first try\n")
    assert storage.refused.wait(10)
    for number in range(20):
        output.write(b"line %02d..\n" % number)
    storage.full = False
    output.close(10)
    assert read_log(storage, "j", 1, 0, 10_000).data == (
        b"first try\n\ndovetail: 100 bytes lost here: the storage refused them too long\n"
        + b"".join(b"line %02d..\n" % number for number in range(10, 20))
    )


def test_a_folder_that_was_away_for_a_while_misses_nothing(tmp_path: Path) -> None:
    """As a network folder that was unmounted: the program goes on, and all of it arrives."""
    folder = tmp_path / "storage"
    script = (
        f"mv {folder} {tmp_path}/away; "
        "for step in 1 2 3; do echo line $step; "
        'echo "{\\"step\\": $step, \\"metrics\\": {\\"loss\\": $step}}" >> $DOVETAIL_REPORTS; '
        f"sleep 0.3; done; mv {tmp_path}/away {folder}"
    )
    launch = script_launch(folder, script)
    assert run(launch, tmp_path) == OVER
    said = [entry.report for entry in entries(launch)]
    assert [report.step for report in said if isinstance(report, Metrics)] == [1, 2, 3]
    assert log_text(launch) == "line 1\nline 2\nline 3\n"


@pytest.mark.parametrize(
    ("spoil", "whole", "cause"),
    [
        (lambda data: data[: len(data) // 2], 1, "its last line is cut off"),
        (lambda data: data.replace(b'"step":2', b'"step":"2"'), 1, "report metrics: step: "),
        (lambda data: data.replace(b'"step":2', b'"stop":2'), 1, "report metrics: step: "),
        (lambda data: data.replace(b'"metrics"', b'"metric5"'), 0, "report type 'metric5'"),
        (lambda data: b"\xff" + data, 0, "codec can't decode"),
        (lambda data: b"[]\n" + data, 0, "a line is no numbered report"),
        (lambda data: b"", 0, "it is empty"),
    ],
    ids=["cut", "another type", "another key", "unknown", "not text", "no report", "empty"],
)
def test_a_damaged_segment_is_read_up_to_the_damage_and_the_next_ones_whole(
    tmp_path: Path,
    spoil,
    whole: int,
    cause: str,  # type: ignore[no-untyped-def]
) -> None:
    storage = LocalStorage(tmp_path)
    writer = journal(storage)
    for report in metrics(1, 2, 3):
        writer.append(report)
    writer.close(1)
    key = keys.journal_segment("j", 1, 1)
    storage.put(key, spoil(storage.get(key)))
    storage.put(keys.journal_segment("j", 1, 2), b"")
    (number, damaged), (_, after) = read_segments(storage, "j", 1, 1)
    assert number == 1
    assert [entry.report for entry in damaged[:-1]] == metrics(*range(1, whole + 1))
    last = damaged[-1].report
    assert isinstance(last, JournalDamaged)
    assert (last.segment, last.whole) == (1, whole)
    assert cause in last.cause
    assert [type(entry.report) for entry in after] == [JournalDamaged]


@pytest.mark.parametrize(
    "value",
    [
        {"type": "progress", "step": -1},
        {"type": "progress", "step": 2**63},
        {"type": "progress", "step": 1, "phase": 3},
        {"type": "metrics", "step": 1, "values": {"loss": "low"}},
        {"type": "metrics", "step": 1, "values": {"\ud800": 1.0}},
        {"type": "metrics", "step": 1, "values": {"a\0b": 1.0}},
        {"type": "refused"},
        {"type": ["progress"]},
    ],
)
def test_a_report_that_no_store_could_keep_is_refused(value: dict[str, object]) -> None:
    with pytest.raises(ValueError):
        reports.from_json(value)
