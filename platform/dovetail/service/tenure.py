"""This server's claim to decide for its database: taken up, kept alive, lost, laid down.

Of all servers on one database one holds the lease. It is taken over from a holder whose renewals
stood still for `lease_s` by the clock of the one who watches; a clock that is set back, here or
there, harms nothing. A holder of the same home is our own past: the home's lock proves that its
process is gone, so its lease is ours at once.
"""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Callable

from dovetail.store.lease import LeaseLost, LeaseRecord
from dovetail.store.store import Store
from dovetail_jobs.errors import DatabaseLost

log = logging.getLogger(__name__)

LEASE_S = 10.0
RENEW_EVERY_S = 2.0  # also how old a renewal may be when something is done outside the database


def boot_clock_s() -> float:
    """Seconds since the machine started, and those in which it slept too where the system says."""
    return time.clock_gettime(getattr(time, "CLOCK_BOOTTIME", time.CLOCK_MONOTONIC))


class Tenure:
    """`hold` is asked at each turn; `holder` names this server among all, e.g. by host and home."""

    def __init__(
        self,
        store: Store,
        holder: str,
        *,
        monotonic: Callable[[], float] = boot_clock_s,
        lease_s: float = LEASE_S,
    ) -> None:
        self._open, self._holder = store, holder
        self._monotonic, self._lease_s = monotonic, lease_s
        self._held: Store | None = None
        self._renewed_s = -math.inf
        self._seen: LeaseRecord | None = None
        self._seen_since_s = 0.0

    @property
    def decider(self) -> str | None:
        """Whoever decides instead of us, when `hold` last looked."""
        return self._seen.holder if self._held is None and self._seen is not None else None

    def hold(self) -> Store | None:
        """The store to decide with; None while another server decides.

        It is the same object until the lease was lost in between. Raises DatabaseLost.
        """
        if self.sure():
            return self._held
        return self._take()

    def sure(self) -> bool:
        """Whether we decide still: asked too before anything is done outside the database."""
        if self._held is None:
            return False
        asked_s = self._monotonic()  # before, not after: the renewal may wait for the database
        if asked_s - self._renewed_s < RENEW_EVERY_S:
            return True
        try:
            self._held.renew_lease()
        except LeaseLost as lost:
            self.lost(lost)
            return False
        self._renewed_s = asked_s
        return True

    def doubt(self) -> None:
        """The database did not answer: the next `hold` asks it, whenever that is."""
        self._renewed_s = -math.inf
        self._seen = None  # renewals that nobody could write are no sign of death

    def lost(self, error: LeaseLost) -> None:
        """A write was refused: another server decides."""
        log.warning("lease lost: %s", error)
        self._held = self._seen = None

    def lay_down(self) -> None:
        """Give the lease back, so that another server need not wait."""
        held, self._held = self._held, None
        if held is not None:
            try:
                held.give_back_lease()
            except DatabaseLost as error:
                log.warning("lease not given back, it ends by itself: %s", error)

    def _take(self) -> Store | None:
        found, asked_s = self._open.lease(), self._monotonic()
        if self._seen is None or _life(self._seen) != _life(found):
            self._seen, self._seen_since_s = found, asked_s
        still_s = asked_s - self._seen_since_s
        if found.holder not in (None, self._holder) and still_s < self._lease_s:
            return None
        self._held = self._open.take_lease(self._holder, found)
        if self._held is not None:
            log.info("lease taken from=%s token=%s", found.holder, found.token + 1)
            self._renewed_s = asked_s
        return self._held


def _life(lease: LeaseRecord) -> tuple[int, int]:
    return lease.token, lease.renewals
