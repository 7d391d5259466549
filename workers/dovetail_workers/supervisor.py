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
import traceback
from collections.abc import Callable
from pathlib import Path

from dovetail_jobs.errors import DovetailError, UserError
from dovetail_workers import checkpoint, keys, process_tree, program, reports
from dovetail_workers.inbox import ReportInbox
from dovetail_workers.journal import JournalWriter
from dovetail_workers.launch import Launch
from dovetail_workers.log import LogWriter
from dovetail_workers.reports import (
    CheckpointFolder,
    CheckpointSaved,
    Ended,
    Refused,
    Report,
    Started,
)
from dovetail_workers.storage.open import open_storage

SCRIPT_CHECKPOINTS_KEPT = 2
OWN_WORDS = "dovetail:"  # begins the lines of a log that we wrote, not the program


def scratch_prefix(attempt_id: str) -> str:
    """How the names of an attempt's local folders begin, in the system's temporary folder."""
    return f"dovetail-{attempt_id}-"


def remove_scratch(attempt_id: str) -> None:
    """Remove what a supervisor that was killed could not."""
    for folder in Path(tempfile.gettempdir()).glob(f"{scratch_prefix(attempt_id)}*"):
        shutil.rmtree(folder, ignore_errors=True)


class Supervisor:
    """Runs one `Launch`. `run` and `stop` are called from different threads; `on_news` after each
    object written to storage.
    """

    def __init__(self, launch: Launch, on_news: Callable[[], None]) -> None:
        self._launch = launch
        self._storage = open_storage(launch.storage_uri)
        self._refusal: str | None = None
        self._stopping = threading.Event()
        self._over = threading.Event()
        self._process: subprocess.Popen[bytes] | None = None
        self._lock = threading.Lock()
        place = (launch.job_id, launch.attempt)
        self._journal = JournalWriter(self._storage, *place, on_written=on_news)
        self._on_news = on_news

    def run(self) -> Ended:
        """Run the program to its end; the returned `Ended` is the journal's last entry.

        Raises StorageError when the journal cannot be written: then the attempt has no voice, and
        its end is a loss.
        """
        process_tree.become_subreaper()
        scratch = Path(tempfile.mkdtemp(prefix=scratch_prefix(self._launch.attempt_id)))
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
            process_tree.kill_descendants()
            shutil.rmtree(scratch, ignore_errors=True)
        self._journal.append(ended)
        self._journal.close()
        self._over.set()
        return ended

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

    def _run_in(self, scratch: Path) -> Ended:
        launch = self._launch
        (scratch / "launch.json").write_text(json.dumps(launch.to_json()))
        (scratch / "checkpoints").mkdir()
        secrets = program.secret_values(launch, os.environ)
        resumed = self._resume_script(scratch / "resume")
        environment = program.environment(
            launch,
            scratch,
            os.environ,
            secrets,
            scratch / "resume" if resumed is not None else None,
        )
        log = LogWriter(
            self._storage,
            launch.job_id,
            launch.attempt,
            secrets=list(secrets.values()),
            tee=_tee,
            on_written=self._on_news,
        )
        inbox = ReportInbox(
            scratch / "reports",
            accept=self._accept,
            complain=lambda text: log.write(f"{OWN_WORDS} {text}\n".encode()),
        )
        try:
            exit_code = self._train(scratch, environment, log, resumed)
        finally:
            inbox.close()
            with contextlib.suppress(Exception):
                log.close()
        return self._ended(exit_code, log.tail())

    def _train(
        self, scratch: Path, environment: dict[str, str], log: LogWriter, resumed: int | None
    ) -> int:
        """Start the training process and wait for it and for all that it started; its exit code,
        negative for a signal.
        """
        with self._lock:
            if self._stopping.is_set():
                return -signal.SIGTERM
            try:
                process = subprocess.Popen(
                    program.command(self._launch, scratch),
                    cwd=program.working_directory(self._launch, scratch),
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
        output = process.stdout.fileno()
        pump = threading.Thread(target=_pump, args=(output, log), name="output", daemon=True)
        pump.start()
        exit_code = process.wait()
        # What the program left behind ends with it, and with it the pipe
        process_tree.kill_descendants()
        pump.join()
        process.stdout.close()
        return exit_code

    def _accept(self, report: Report) -> None:
        if isinstance(report, CheckpointFolder):
            self._store_folder(report)
            return
        if isinstance(report, Refused):
            self._refusal = report.message
        self._journal.append(report)

    def _store_folder(self, report: CheckpointFolder) -> None:
        """A script's checkpoint folder becomes parts and a manifest in storage; older ones go by
        retention.
        """
        launch = self._launch
        prefix = keys.checkpoint_prefix(launch.job_id, report.step, launch.attempt)
        folder = Path(program.working_directory(launch, Path.cwd()), report.path)
        try:
            saved = checkpoint.save_folder(self._storage, prefix, report.step, "train", folder)
        except DovetailError as error:
            raise ValueError(str(error)) from None
        self._journal.append(
            CheckpointSaved(
                step=report.step, key=prefix, uri=self._storage.uri(prefix), bytes=saved.bytes
            )
        )
        kept_in = keys.checkpoints_prefix(launch.job_id)
        for removed in checkpoint.retain(self._storage, kept_in, SCRIPT_CHECKPOINTS_KEPT):
            self._journal.append(reports.CheckpointRemoved(key=removed))

    def _resume_script(self, into: Path) -> int | None:
        """Fetch a script's newest whole checkpoint into a folder; its step, or None. A family
        resumes by itself.
        """
        if not self._launch.spec.get("script"):
            return None
        newest = checkpoint.newest(self._storage, self._launch.resume_from)
        if newest is None:
            return None
        into.mkdir()
        checkpoint.fetch_folder(self._storage, newest, into)
        return newest.manifest.step

    def _ended(self, exit_code: int, tail: str) -> Ended:
        if exit_code == 0:
            return Ended(outcome="succeeded", exit_code=0, message="ran to its end")
        if self._stopping.is_set():
            return Ended(outcome="stopped", exit_code=exit_code, message="stopped on request")
        if self._refusal is not None:
            return Ended(outcome="failed", exit_code=exit_code, message=self._refusal)
        if exit_code == -signal.SIGKILL:
            cause = "its process was killed by SIGKILL, perhaps for want of host memory"
            return Ended(outcome="lost", exit_code=exit_code, message=cause)
        what = f"exited with code {exit_code}"
        if exit_code < 0:
            what = f"ended by signal {signal.Signals(-exit_code).name}"
        lines = [
            line for line in tail.splitlines() if line.strip() and not line.startswith(OWN_WORDS)
        ]
        last = f"; its last line: {lines[-1].strip()[:300]}" if lines else ""
        kind = "script" if self._launch.spec.get("script") else "training process"
        return Ended(outcome="failed", exit_code=exit_code, message=f"the {kind} {what}{last}")


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
