"""The training process of a family: `python -m dovetail_workers.rank SUPERVISOR_PID LAUNCH.json`,
started by the supervisor.

Exit code 0 for a run to its end, 143 for one that was asked to stop, 2 for what the user wrote and
must mend, 1 for a failure.
"""

from __future__ import annotations

import json
import os
import signal
import sys
import threading
import traceback
from pathlib import Path

from dovetail_jobs.errors import DovetailError
from dovetail_workers import process_tree, reports
from dovetail_workers.checkpoint import CheckpointDamaged
from dovetail_workers.launch import Launch
from dovetail_workers.out_of_memory import OutOfMemory
from dovetail_workers.reports import Failed, Refused, Report, Started
from dovetail_workers.storage.open import open_storage
from dovetail_workers.storage.protocol import StorageError

STOPPED = 128 + signal.SIGTERM


def main() -> int:
    process_tree.die_with_parent(int(sys.argv[1]))
    stop = threading.Event()
    signal.signal(signal.SIGTERM, lambda *_: stop.set())
    launch = Launch.from_json(json.loads(Path(sys.argv[2]).read_text()))
    pipe = os.open(os.environ["DOVETAIL_REPORTS"], os.O_WRONLY)

    trains = threading.Event()

    def report(item: Report) -> None:
        os.write(pipe, reports.to_line(item))
        if isinstance(item, Started):
            trains.set()

    try:
        # torch comes in here, after the signal handler stands: a stop during the import is answered
        # too
        from dovetail_workers.train import train

        outcome = train(launch, open_storage(launch.storage_uri), report, stop.is_set)
    except DovetailError as error:
        print(f"error: {error}", file=sys.stderr)
        report(Refused(message=str(error)))
        return error.exit_code
    except (StorageError, CheckpointDamaged) as error:
        # Before the first step it is the checkpoint to resume from that cannot be read: another
        # attempt can, or takes an older one.
        what = "storage" if isinstance(error, StorageError) else "checkpoint"
        print(f"error: {what}: {error}", file=sys.stderr)
        report(Failed(message=f"{what}: {error}", again=not trains.is_set()))
        return DovetailError.exit_code
    except Exception as error:
        if not isinstance(error, OutOfMemory):
            from tensile.contents import is_out_of_memory

            if not is_out_of_memory(error):
                raise
            traceback.print_exc()  # outside of the steps: where is what the user wants to know
        # Another attempt resumes from the newest checkpoint, perhaps where more is free.
        sentence = f"out of memory: {str(error) or type(error).__name__}"
        print(f"error: {sentence}", file=sys.stderr)
        report(Failed(message=sentence, again=True, memory=True))
        return DovetailError.exit_code
    return 0 if outcome == "succeeded" else STOPPED


if __name__ == "__main__":
    sys.exit(main())
