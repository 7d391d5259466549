"""A server that does not come up: it stands for `dovetail.serve` and takes `--ready-fd N`.

What it does is its first argument: `refuse` (says an error), `vanish` (ends silently).
"""

from __future__ import annotations

import json
import os
import sys


def main(deed: str, ready_fd: int) -> None:
    if deed == "vanish":
        print("Segmentation fault", file=sys.stderr)
        sys.exit(9)
    with os.fdopen(ready_fd, "w") as ready:
        json.dump({"error": "port 1: permission denied", "exit_code": 2}, ready)
        ready.write("\n")


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[3]))
