"""A Dovetail of its own for a test: a fresh home, the real CLI, and the promise that nothing of it
is left running.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

from dovetail.client import Client
from dovetail.cluster import ray_head
from dovetail_workers.process_tree import processes_with
from helpers.attempts import wait_for

REPOSITORY = Path(__file__).parents[2]
EXAMPLE = REPOSITORY / "jobs" / "examples" / "swin-digits.yaml"


class Installation:
    def __init__(self, home: Path, **environment: str) -> None:
        self.home = home
        kept = {k: v for k, v in os.environ.items() if not k.startswith(("DOVETAIL_", "RAY_"))}
        self.environment = {**kept, "DOVETAIL_HOME": str(home), "NO_COLOR": "1", **environment}

    def run(
        self, *arguments: str | Path, timeout_s: float = 120, cwd: Path | None = None
    ) -> subprocess.CompletedProcess[str]:
        """One CLI command, whatever it exits with."""
        return subprocess.run(
            [str(Path(sys.executable).parent / "dovetail"), *map(str, arguments)],
            env=self.environment,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=timeout_s,
            cwd=cwd,
            check=False,
        )

    def json(self, *arguments: str | Path, exit_code: int = 0) -> Any:
        """What the command prints with --json; asserts its exit code."""
        done = self.run(*arguments, "--json")
        assert done.returncode == exit_code, done.stdout + done.stderr
        return json.loads(done.stdout)

    def submit(self, *arguments: str | Path) -> Any:
        return self.json("submit", *arguments)

    def submit_script(self, folder: Path, script: str, *arguments: str) -> Any:
        path = folder / "script.yaml"
        path.write_text(json.dumps({"version": 1, "name": "scripted", "script": script}))
        return self.submit(path, *arguments)

    def wait_for_state(self, job_id: str, *states: str) -> Any:
        return wait_for(
            f"job {job_id} {' or '.join(states)}",
            lambda: (job := self.json("show", job_id))["state"] in states and job,
        )

    def points(self, job_id: str) -> list[dict[str, Any]]:
        """The job's curve, as its server tells it."""
        said = json.loads((self.home / "server.json").read_text())
        token = (self.home / "token").read_text().strip()
        return Client(said["url"], token).metrics(job_id)

    def server_pid(self) -> int:
        pid: int = json.loads((self.home / "server.json").read_text())["pid"]
        return pid

    def close(self) -> None:
        """`dovetail down`, and then whatever of this home is still there, by its own marks."""
        head = ray_head.read(self.home / "ray.json")
        done = self.run("down")
        left = [*processes_with("DOVETAIL_HOME", str(self.home))]
        if head is not None:
            left += processes_with(ray_head.SESSION_VARIABLE, head.session)
        for process in left:
            process.kill()
        assert done.returncode == 0, done.stderr
        assert [process.pid for process in left] == []
