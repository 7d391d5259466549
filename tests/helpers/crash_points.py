"""A process that dies at its n-th crash point, as by SIGKILL or a power cut: before or after any
commit of the store, and before or after any command to the cluster.

The points are counted in a forked child, so nothing of the product knows of them.
"""

from __future__ import annotations

import os
import sys
import traceback
from collections.abc import Callable

from sqlalchemy import event
from sqlalchemy.orm import Session

CRASHED, RAN_TO_ITS_END, BROKEN = 9, 0, 1


class CrashPoints:
    """Counts the points that the process passes; at number `fatal` it ends without a word."""

    def __init__(self, fatal: int | None) -> None:
        self._fatal = fatal
        self.passed = 0

    def here(self, *_: object) -> None:
        self.passed += 1
        if self.passed == self._fatal:
            os._exit(CRASHED)


def run_until(fatal: int | None, work: Callable[[CrashPoints], None]) -> tuple[bool, int]:
    """Run `work` in a forked child that dies at point `fatal`; whether it died there, and how many
    points it passed otherwise.

    Fails the test when `work` raised.
    """
    reader, writer = os.pipe()
    child = os.fork()
    if child == 0:
        os.close(reader)
        code = BROKEN
        try:
            points = CrashPoints(fatal)
            event.listen(Session, "before_commit", points.here)
            event.listen(Session, "after_commit", points.here)
            work(points)
            os.write(writer, str(points.passed).encode())
            code = RAN_TO_ITS_END
        except BaseException:
            traceback.print_exc(file=sys.__stderr__)
        finally:
            os._exit(code)
    os.close(writer)
    try:
        said = os.read(reader, 100)
    finally:
        os.close(reader)
        _, status = os.waitpid(child, 0)
    code = os.waitstatus_to_exitcode(status)
    assert code in (CRASHED, RAN_TO_ITS_END), f"the scenario itself failed (exit code {code})"
    return code == CRASHED, int(said or b"0")
