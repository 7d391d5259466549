"""A Dovetail of the benchmark's own: fresh home, one CPU device, everything ended afterwards."""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from dovetail_workers.journal import Entry, read_segments
from dovetail_workers.storage.local import LocalStorage

DOVETAIL = str(Path(sys.executable).parent / "dovetail")
EXAMPLE = Path(__file__).parents[1] / "jobs" / "examples" / "swin-digits.yaml"


@contextlib.contextmanager
def platform() -> Iterator[Path]:
    """The home of a running platform; DOVETAIL_HOME points there meanwhile."""
    with tempfile.TemporaryDirectory(prefix="dovetail-bench-") as home:
        os.environ["DOVETAIL_HOME"] = home
        subprocess.run([DOVETAIL, "up"], check=True, capture_output=True)
        try:
            yield Path(home)
        finally:
            subprocess.run([DOVETAIL, "down"], check=True, capture_output=True)


def submit_and_wait(*settings: str) -> dict[str, Any]:
    arguments = [word for setting in settings for word in ("--set", setting)]
    done = subprocess.run(
        [DOVETAIL, "submit", str(EXAMPLE), "--wait", "--json", *arguments],
        check=True,
        capture_output=True,
    )
    job: dict[str, Any] = json.loads(done.stdout)
    return job


def journal(home: Path, job_id: str) -> list[Entry]:
    segments = read_segments(LocalStorage(home / "storage"), job_id, 1, 1)
    return [entry for _, entries in segments for entry in entries]
