"""A child process that trains, as its parent sees it: it says `ready` before it has any model,
waits for a line, says `begun` when the first steps are over, and at last what it found, as JSON.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Self


@dataclass
class Trainee:
    process: subprocess.Popen[str]
    base_bytes: int = 0
    begun: bool = False
    found: dict[str, Any] = field(default_factory=dict)

    @classmethod
    def started(
        cls, arguments: Sequence[str], *, threads: int, environment: Mapping[str, str]
    ) -> Self:
        """A Python process with `arguments`."""
        count = {"OMP_NUM_THREADS": str(threads), "MKL_NUM_THREADS": str(threads)}
        process = subprocess.Popen(
            [sys.executable, *arguments],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env={**os.environ, **count, **environment},
        )
        return cls(process)

    def get_ready(self) -> None:
        """Wait until it is; from then on bytes count over what it holds now."""
        assert self.process.stdout is not None
        if self.process.stdout.readline() != "ready\n":
            sys.exit("a child process ended before it was ready; its own words are above")
        self.base_bytes = self.held_bytes()

    def tell(self) -> None:
        """To begin, or to end where it waits for that."""
        assert self.process.stdin is not None
        print(file=self.process.stdin, flush=True)

    def follow(self) -> None:
        """Hear what it says until it has found something, or is gone."""
        assert self.process.stdout is not None
        for line in self.process.stdout:
            if line == "begun\n":
                self.begun = True
            else:
                self.found = json.loads(line)
                return

    def held_bytes(self) -> int:
        """By the operating system's count, over the base; 0 when it is gone."""
        from tensile import resident

        measured = resident.measure(self.process.pid)
        return 0 if measured is None else measured.total_bytes - self.base_bytes
