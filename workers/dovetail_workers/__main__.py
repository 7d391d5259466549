"""One attempt without Ray: `python -m dovetail_workers LAUNCH.json`. Prints the program's output,
and how it ended on stderr.
"""

from __future__ import annotations

import json
import os
import signal
import sys
import threading
from pathlib import Path

from dovetail_workers import shared_device
from dovetail_workers.fence import Fenced
from dovetail_workers.launch import Launch
from dovetail_workers.storage.protocol import StorageError
from dovetail_workers.supervisor import Supervisor

GRACE_S = 2.0


def main() -> int:
    launch = Launch.from_json(json.loads(Path(sys.argv[1]).read_text()))
    supervisor = Supervisor(
        launch, on_news=lambda: None, device_environment=shared_device.inherited(os.environ)
    )
    signal.signal(
        signal.SIGTERM,
        lambda *_: threading.Thread(target=supervisor.stop, args=(GRACE_S,)).start(),
    )
    try:
        ended = supervisor.run()
    except (Fenced, StorageError) as error:
        print(f"{launch.attempt_id} ends without a word: {error}", file=sys.stderr)
        return 1
    print(f"{launch.attempt_id} {ended.outcome}: {ended.message}", file=sys.stderr)
    return 0 if ended.outcome == "succeeded" else 1


if __name__ == "__main__":
    sys.exit(main())
