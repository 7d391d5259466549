"""CPU time of `dovetail ps` as a whole process, against a bare Python start in the same run. Goal:
below 0.5 s.

python benchmarks/cli_cold_start.py [runs]
"""

from __future__ import annotations

import os
import resource
import subprocess
import sys
import tempfile
from pathlib import Path

from environment import describe, spread

BIN = Path(sys.executable).parent


def cpu_s(command: list[str]) -> float:
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    subprocess.run(command, check=True, capture_output=True)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


def main() -> None:
    runs = int(sys.argv[1]) if len(sys.argv) > 1 else 15
    with tempfile.TemporaryDirectory(prefix="dovetail-bench-") as home:
        os.environ["DOVETAIL_HOME"] = home
        subprocess.run([BIN / "dovetail", "up"], check=True, capture_output=True)
        try:
            pairs = [
                (cpu_s([str(BIN / "dovetail"), "ps"]), cpu_s([sys.executable, "-c", "pass"]))
                for _ in range(runs)
            ]
        finally:
            subprocess.run([BIN / "dovetail", "down"], check=True, capture_output=True)
    print(describe())
    print(f"dovetail ps       {spread([pair[0] for pair in pairs], 's of CPU')}")
    print(f"python -c pass    {spread([pair[1] for pair in pairs], 's of CPU')}")
    print(f"ratio             {spread([a / b for a, b in pairs], 'x')}")


if __name__ == "__main__":
    main()
