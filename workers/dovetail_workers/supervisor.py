"""One attempt from launch to end, beside the training process: starts it, carries its words to
storage, stops it, and says how it ended.

The supervisor never trains: a crash, a kill or a deadlock of the training process cannot take the
story with it. It knows nothing of Ray; `actor.py` puts it into one.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
import traceback
import uuid
from collections.abc import Callable, Mapping
from pathlib import Path

from dovetail_jobs.errors import DovetailError, UserError
from dovetail_workers import checkpoint, fence, keys, process_tree, program, reports
from dovetail_workers.enclosure import Enclosure
from dovetail_workers.fence import Fenced, FenceWatch
from dovetail_workers.hang import HangWatch
from dovetail_workers.inbox import ReportInbox
from dovetail_workers.journal import JournalWriter
from dovetail_workers.launch import Launch
from dovetail_workers.log import LogWriter
from dovetail_workers.pace import pauses_s
from dovetail_workers.reports import (
    Busy,
    CheckpointFolder,
    CheckpointSaved,
    Ended,
    Failed,
    Metrics,
    Progress,
    Refused,
    Report,
    Started,
)
from dovetail_workers.storage.open import open_storage
from dovetail_workers.storage.protocol import StorageError
from dovetail_workers.verdict import Traces, is_killed, verdict
from dovetail_workers.working_folder import WorkingFolder, open_working_folder

SCRIPT_CHECKPOINTS_KEPT = 2
END_PATIENCE_S = 60.0  # with a storage that refuses the attempt's first or last word
LOG_PATIENCE_S = 30.0
_PROGRESS = (Started, Progress, Metrics, CheckpointSaved, CheckpointFolder)


def scratch_prefix(attempt_id: str) -> str:
    """How the names of an attempt's local folders begin, in the system's temporary folder."""
    return f"dovetail-{attempt_id}-"


def remove_scratch(attempt_id: str) -> None:
    """Remove what a supervisor that was killed could not."""
    for folder in Path(tempfile.gettempdir()).glob(f"{scratch_prefix(attempt_id)}*"):
        shutil.rmtree(folder, ignore_errors=True)


class Supervisor:
    """Runs one `Launch`. `run` and `stop` are called from different threads; `on_news` after each
    object written to storage. `device_environment` is what the training process is told of a device
    that it shares.
    """

    def __init__(
        self,
        launch: Launch,
        on_news: Callable[[], None],
        on_report: Callable[[Report], None] = lambda report: None,
        device_environment: Mapping[str, str] | None = None,
    ) -> None:
        self._launch, self._device_environment = launch, device_environment or {}
        self._enclosure = Enclosure(
            launch, self._device_environment, self._end_short, self._tell_of_itself
        )
        self._storage = open_storage(launch.storage_uri)
        self._on_report = on_report
        self._kind = "script" if launch.spec.get("script") else "training process"
        self._refusal: str | None = None
        self._failure: str | None = None
        self._again, self._short_of_memory = False, False
        self._fenced: str | None = None
        self._hung = False
        self._hang_watch: HangWatch | None = None
        self._stopping = threading.Event()
        self._over = threading.Event()
        self._process: subprocess.Popen[bytes] | None = None
        self._folder: WorkingFolder
        self._lock = threading.Lock()
        self._place = (launch.job_id, launch.attempt)
        self._journal = JournalWriter(
            self._storage, *self._place, on_written=on_news, on_broken=self._broken
        )
        self._on_news = on_news

    def run(self) -> Ended:
        """Run the program to its end; the returned `Ended` is the journal's last entry.

        Raises StorageError when the journal could not be written for END_PATIENCE_S: then the
        attempt has no voice, and its end is a loss. Raises Fenced when the attempt is another
        worker's or was given up: then nothing of it is left here, and the journal ends in the
        middle.
        """
        process_tree.become_subreaper()
        try:
            self._claim()
            return self._run_claimed()
        finally:
            self._journal.abandon()
            self._over.set()

    def _run_claimed(self) -> Ended:
        scratch = Path(tempfile.mkdtemp(prefix=scratch_prefix(self._launch.attempt_id)))
        watch = FenceWatch(self._storage, *self._place, on_fenced=self._given_up)
        try:
            ended = self._run_in(scratch)
        except UserError as error:
            self._journal.append(Refused(message=str(error)))
            ended = Ended(outcome="failed", exit_code=None, message=str(error))
        except Exception as error:
            traceback.print_exc()
            cause = f"the worker failed: {type(error).__name__}: {error}"
            ended = Ended(outcome="lost", exit_code=None, message=cause)
        finally:
            watch.close()
            process_tree.kill_descendants()
            self._enclosure.leave()
            shutil.rmtree(scratch, ignore_errors=True)
        if self._fenced is not None:
            raise Fenced(self._fenced)
        self._journal.append(ended)
        try:
            self._journal.close(END_PATIENCE_S)
        except StorageError as error:
            raise StorageError(
                f"the end of attempt {self._launch.attempt_id} ({ended.outcome}: {ended.message}) "
                f"could not be written for {END_PATIENCE_S:g} s: {error}"
            ) from None
        return ended

    @property
    def ended_by(self) -> str:
        """Of an attempt that ended for want of memory."""
        return self._enclosure.ended_by

    def stop(self, grace_s: float) -> None:
        """Ask the program to end (SIGTERM to its group), kill its whole tree after `grace_s`,
        return when it is over.
        """
        with self._lock:
            self._stopping.set()
            process = self._process
        if process is not None:
            _signal_group(process.pid, signal.SIGTERM)
        if not self._over.wait(grace_s):
            process_tree.kill_descendants()
            self._over.wait(5.0)

    def _claim(self) -> None:
        """Become the one worker of this attempt; raises Fenced when it is not ours to run."""
        writer = f"{self._launch.node} {os.getpid()} {uuid.uuid4().hex}"
        give_up_at_s = time.monotonic() + END_PATIENCE_S
        for pause_s in pauses_s():
            try:
                fence.claim(self._storage, *self._place, writer)
                if fence.is_fenced(self._storage, *self._place):
                    raise Fenced(f"attempt {self._launch.attempt_id} was given up")
                return
            except StorageError:
                out_of_time = time.monotonic() + pause_s > give_up_at_s
                if out_of_time or self._stopping.wait(pause_s):
                    raise

    def _given_up(self) -> None:
        self._cut_off(f"attempt {self._launch.attempt_id} was given up by the control plane")

    def _broken(self, error: Exception) -> None:
        self._cut_off(str(error) if isinstance(error, Fenced) else repr(error))

    def _cut_off(self, cause: str) -> None:
        """This worker may not speak any more: end its whole tree at once."""
        with self._lock:
            self._fenced = self._fenced or cause
        with contextlib.suppress(TimeoutError):  # `run` kills again, and says so
            process_tree.kill_descendants()

    def _run_in(self, scratch: Path) -> Ended:
        launch = self._launch
        (scratch / "launch.json").write_text(json.dumps(launch.to_json()))
        (scratch / "checkpoints").mkdir()
        secrets = program.secret_values(launch, os.environ)
        self._folder = open_working_folder(launch, self._storage, scratch)
        resumed = self._resume_script(scratch / "resume")
        environment = program.environment(
            launch,
            scratch,
            self._folder.path,
            os.environ,
            secrets,
            scratch / "resume" if resumed is not None else None,
            self._device_environment,
        )
        log = LogWriter(
            self._storage,
            launch.job_id,
            launch.attempt,
            secrets=list(secrets.values()),
            tee=_tee,
            on_written=self._on_news,
            on_broken=self._broken,
        )
        inbox = ReportInbox(scratch / "reports", accept=self._accept, complain=log.say)
        try:
            exit_code = self._train(scratch, environment, log, resumed)
        finally:
            inbox.close()
            with contextlib.suppress(OSError):  # a folder that the program left unreadable
                if farewell := self._folder.farewell():
                    log.say(farewell)
            with contextlib.suppress(StorageError, Fenced):
                log.close(LOG_PATIENCE_S if self._fenced is None else 0)
        return self._ended(exit_code, log.tail())

    def _train(
        self, scratch: Path, environment: dict[str, str], log: LogWriter, resumed: int | None
    ) -> int:
        """Start the training process and wait for it and for all that it started; its exit code,
        negative for a signal.
        """
        if not self._enclosure.let_in(log.say, self._is_over):
            return -signal.SIGTERM
        with self._lock:
            if self._stopping.is_set():
                return -signal.SIGTERM
            if self._fenced is not None:
                return -signal.SIGKILL
            try:
                process = subprocess.Popen(
                    program.command(self._launch, scratch),
                    cwd=self._folder.path,
                    env=environment,
                    stdin=subprocess.DEVNULL,
                    stdout=subprocess.PIPE,
                    stderr=subprocess.STDOUT,
                    start_new_session=True,
                )
            except OSError as error:
                raise UserError(
                    f"workdir: {self._launch.spec.get('workdir')}  {error.strerror}"
                ) from None
            self._process = process
        self._enclosure.begin(process.pid)
        assert process.stdout is not None
        if self._launch.spec.get("script"):
            self._journal.append(
                Started(
                    pid=process.pid,
                    node=self._launch.node,
                    device=self._launch.device,
                    resumed_from_step=resumed,
                )
            )
        limit_s: float | None = self._launch.spec.get("progress_timeout")
        if limit_s is not None:
            self._hang_watch = HangWatch(limit_s, self._end_hung)
        output = process.stdout.fileno()
        pump = threading.Thread(target=_pump, args=(output, log), name="output", daemon=True)
        pump.start()
        exit_code = process.wait()
        if self._hang_watch is not None:
            self._hang_watch.close()
        # What the program left behind ends with it, and with it the pipe
        process_tree.kill_descendants()
        was_killed = is_killed(exit_code, self._kind)
        sentence = self._enclosure.end(was_killed=was_killed)
        if sentence is not None:
            self._is_short(sentence)
        pump.join()
        process.stdout.close()
        return exit_code

    def _is_over(self) -> bool:
        return self._stopping.is_set() or self._fenced is not None

    def _end_hung(self) -> None:
        """Nothing moved for `progress_timeout`: a process that hangs answers no SIGTERM either."""
        self._hung = True
        with contextlib.suppress(TimeoutError):
            process_tree.kill_descendants()

    def _end_short(self, sentence: str) -> None:
        """It held more memory than it may: its neighbours need it now."""
        self._is_short(sentence)
        with contextlib.suppress(TimeoutError):
            process_tree.kill_descendants()

    def _is_short(self, sentence: str) -> None:
        self._failure, self._again, self._short_of_memory = sentence, True, True

    def _tell_of_itself(self, report: Report) -> None:
        self._journal.append(report)
        self._on_report(report)

    def _accept(self, report: Report) -> None:
        if self._hang_watch is None or not isinstance(report, _PROGRESS):
            self._take(report)
            return
        # A script waits while its checkpoint is stored
        self._hang_watch.hold()
        try:
            self._take(report)
        finally:
            self._hang_watch.moved()

    def _take(self, report: Report) -> None:
        match report:
            case CheckpointFolder():
                self._store_folder(report)
            case Started() | Busy() if self._launch.spec.get("script"):
                raise ValueError(f"{report.type} is not a program's to say")
            case Failed():
                self._failure, self._again = report.message, report.again
                self._short_of_memory = report.memory
            case Refused():
                self._refusal = report.message
                self._journal.append(report)
            case _:
                self._tell_of_itself(self._enclosure.heard(report))

    def _store_folder(self, report: CheckpointFolder) -> None:
        """A script's checkpoint folder becomes parts and a manifest in storage; older ones go by
        retention.
        """
        launch = self._launch
        prefix = keys.checkpoint_prefix(launch.job_id, report.step, launch.attempt)
        folder = self._folder.path / report.path
        try:
            saved = checkpoint.save_folder(self._storage, prefix, report.step, "train", folder)
        except (DovetailError, StorageError, OSError, RuntimeError) as error:
            raise ValueError(f"checkpoint not kept: {error}") from None
        self._folder.keep(folder)
        self._journal.append(
            CheckpointSaved(
                step=report.step, key=prefix, uri=self._storage.uri(prefix), bytes=saved.bytes
            )
        )
        kept_in = keys.checkpoints_prefix(launch.job_id)
        try:
            removed = checkpoint.retain(self._storage, kept_in, SCRIPT_CHECKPOINTS_KEPT)
        except StorageError as error:
            raise ValueError(f"older checkpoints not removed: {error}") from None
        for key in removed:
            self._journal.append(reports.CheckpointRemoved(key=key))

    def _resume_script(self, into: Path) -> int | None:
        """Fetch a script's newest whole checkpoint into a folder; its step, or None. A family
        resumes by itself.
        """
        if not self._launch.spec.get("script"):
            return None
        skipped: list[checkpoint.Skipped] = []
        newest = checkpoint.newest(self._storage, self._launch.resume_from, skipped.append)
        for item in skipped:
            self._journal.append(item.report(newest))
        if newest is None:
            return None
        into.mkdir()
        checkpoint.fetch_folder(self._storage, newest, into)
        return newest.manifest.step

    def _ended(self, exit_code: int, tail: str) -> Ended:
        return verdict(
            Traces(
                exit_code=exit_code,
                stopping=self._stopping.is_set(),
                hung_s=self._launch.spec.get("progress_timeout") if self._hung else None,
                refusal=self._refusal,
                failure=self._failure,
                tail=tail,
                kind=self._kind,
                again=self._again,
                short_of_memory=self._short_of_memory,
                oom_kills=self._enclosure.kernel_kill,
            )
        )


def _signal_group(pid: int, number: signal.Signals) -> None:
    with contextlib.suppress(ProcessLookupError):
        os.killpg(pid, number)


def _pump(descriptor: int, log: LogWriter) -> None:
    while data := os.read(descriptor, 1 << 16):
        log.write(data)


def _tee(data: bytes) -> None:
    """Into this process's own output, which is what the Ray dashboard shows as the actor's log."""
    sys.stdout.buffer.write(data)
    sys.stdout.buffer.flush()
