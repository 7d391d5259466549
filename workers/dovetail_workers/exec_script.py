"""Become the user's program: tie its life to the supervisor, then exec. Usage: exec_script
SUPERVISOR_PID WORD...
"""

from __future__ import annotations

import os
import sys

from dovetail_workers.process_tree import die_with_parent


def main() -> None:
    die_with_parent(int(sys.argv[1]))
    words = sys.argv[2:]
    try:
        os.execvp(words[0], words)
    except OSError as error:
        print(f"script: {words[0]}: {error.strerror}", file=sys.stderr)
        sys.exit(127 if isinstance(error, FileNotFoundError) else 126)


if __name__ == "__main__":
    main()
