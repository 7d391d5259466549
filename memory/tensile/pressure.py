"""Keeps what a job holds under its budget, moment by moment, whatever a plan foresaw.

Before the work that follows a moment, what may rise by then is made room for: first by what leaves
at no price (mapped pages, contents that have a copy below already), then by writing out what was
saved first, and waiting for it only when the budget itself is near.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable
from contextlib import suppress

from tensile import freed_memory
from tensile.contents import Contents
from tensile.coordinator.lease import Lease
from tensile.gauge import Gauge
from tensile.lower_tier import TierError
from tensile.residency import Residency
from tensile.stats import Counters

_EARLY = 0.8  # share of the budget from which on writes begin, where no plan says when, …
_FIRST_EARLY = 0.55  # … and where no step has shown yet how far memory rises at once
# What freed memory does not wait in, since others take some too: a share of the budget, …
_SPARE = 0.03
_UNWATCHED_SPARE = 0.08  # … more where nobody looks meanwhile, …
_GRAIN_BYTES = 64 * 2**10
_FEW_BYTES = 3 * 2**20  # … and so much, or as large a share again of a small budget
_MOST_LEARNT = 0.25  # share of a budget that is kept free of what waits, since steps exceeded it
_PIECES = 32  # of a budget, in which a lease that rises and falls is asked for
_REFUSED_S = 0.01
_TRUST = 8  # moments for which what was seen is taken to hold
_PATIENCE = 32  # moments between two attempts to find memory that nobody accounts for


class Pressure:
    """`limit_bytes` is the budget; None for none. With a `lease` that rises and falls within a step
    it is the most that is asked for, and what counts is what was granted. `rise_bytes` is what a
    moment's work took so far, at most, where no trace tells it. `shortfall_bytes` is what found no
    room in this step, at most, though everything had left that could. `sent_away` are names of what
    lasts and had to leave in this step, whatever a plan wanted; what `distance` says is used last
    does first.
    """

    def __init__(
        self, gauge: Gauge, contents: Contents, residency: Residency, counters: Counters
    ) -> None:
        self.lease: Lease | None = None
        self._limit_bytes: int | None = None
        self._usual_spare_bytes = 0
        self._now_bytes = 0  # of the limit, as far as there is one
        self._refused_until_s = 0.0  # nobody will have returned much by then
        self.rise_bytes = 0
        self.shortfall_bytes = 0
        self.sent_away: set[str] = set()
        self.distance: Callable[[str], int] | None = None  # None: nobody knows
        self._gauge = gauge
        self._contents = contents
        self._residency = residency
        self._counters = counters
        self._before_bytes = 0
        self._early = _FIRST_EARLY
        self._rest = 0
        self._beside_bytes = 0  # held, or about to be, that does not come from the pool
        # that operators take in no tensor, over what the spare is enough for
        self._learnt_bytes = 0
        self._trust = 0  # moments for which that may be relied on

    @property
    def limit_bytes(self) -> int | None:
        return self._limit_bytes

    @limit_bytes.setter
    def limit_bytes(self, limit_bytes: int | None) -> None:
        self._limit_bytes = limit_bytes
        if limit_bytes is not None:
            self._usual_spare_bytes = self._spare_bytes(_SPARE)
            self._now_bytes = limit_bytes
            if self.lease is not None:
                self._now_bytes = min(limit_bytes, self.lease.lease_bytes)

    def is_roomy(self, rise_bytes: int, scratch_bytes: int) -> bool:
        """Whether there is room for `rise_bytes`, `scratch_bytes` of them no tensor's, by what the
        pool lends and by what was seen beside it some moments ago; asking the system takes longer.
        """
        if self.limit_bytes is None:
            return True
        if not self._is_likely_roomy(rise_bytes):
            return False
        self._keep_within(scratch_bytes, self._usual_spare_bytes)
        return True

    def relieve(
        self,
        rise_bytes: int,
        in_use: frozenset[str],
        coming_bytes: int = 0,
        paged_bytes: int = 0,
        scratch_bytes: int = 0,
    ) -> int:
        """Make room for `rise_bytes`, as a plan knows it, `scratch_bytes` of them no tensor's, and
        for what comes back now, by way of the pool and as `paged_bytes` of what lasts. Answers how
        much was missing.
        """
        if self.limit_bytes is None:
            return 0
        rise_bytes += coming_bytes
        if self.lease is None and self._is_likely_roomy(rise_bytes + paged_bytes):
            self._let_wait(paged_bytes, scratch_bytes, self._usual_spare_bytes)
            return 0
        held = self._held_bytes()
        self._fit(held + rise_bytes + paged_bytes, waits=True)
        missing_bytes = held + rise_bytes + paged_bytes - self._now_bytes
        missing_bytes -= self._contents.outgoing_bytes
        self._keep(held, rise_bytes, self._now_bytes, in_use, paged_bytes, scratch_bytes)
        return max(0, missing_bytes)

    def relieve_unplanned(
        self, size_bytes: int, in_use: frozenset[str], beside_bytes: int = 0
    ) -> None:
        """Make room for as much as memory ever rose between two moments so far, or for another
        `size_bytes`, and for `beside_bytes`, which are known to come now. Writing begins before
        there is need to wait.
        """
        if self.limit_bytes is None:
            return
        held = self._held_bytes()
        rise = max(self.rise_bytes, held - self._before_bytes, size_bytes)
        self.rise_bytes = min(rise, self.limit_bytes // 2)
        rise = max(self.rise_bytes - beside_bytes, 0)
        self._fit(int((held + rise + beside_bytes) / self._early), waits=True)
        self._keep(held, rise, int(self._now_bytes * self._early), in_use, beside_bytes)
        self._before_bytes = self._held_bytes()

    def room_bytes(self, rise_bytes: int) -> int:
        """How much could come back now."""
        if self.limit_bytes is None:
            return 0
        return self._now_bytes - self._held_bytes() - rise_bytes

    def empty(self, in_use: frozenset[str]) -> None:
        """After a failed allocation: everything that can leave leaves now."""
        with suppress(TierError):  # leaving takes memory too; what has left is what counts
            self._let_go(2**62, in_use)
        while self._contents.wait_for_oldest():
            pass
        freed_memory.let_wait(0)
        freed_memory.trim()

    def empty_amid(self) -> None:
        """The same in the middle of an operator, which may be reading what it was given: only what
        nobody holds leaves, and pages that come again when they are touched.
        """
        for content in self._contents.candidates():
            self._contents.leave(content)
        while self._contents.wait_for_oldest():
            pass
        self._residency.evict_mapped()
        freed_memory.let_wait(0)

    def clear(self, size_bytes: int) -> None:
        """Between steps: room for `size_bytes`. Whatever read or wrote what lasts meanwhile is not
        known here, so where there is none everything leaves.
        """
        if self.limit_bytes is None:
            return
        self._fit(self._held_bytes() + size_bytes)
        if self._held_bytes() + size_bytes > self._now_bytes:
            self._residency.evict_everything()
        if self._held_bytes() + size_bytes > self._now_bytes:
            self.empty(frozenset())
        self._held_bytes()
        away_bytes = self._residency.away_bytes(self._residency.away())
        self._let_wait(away_bytes, size_bytes, self._usual_spare_bytes)

    def bring_back(self, names: Iterable[str]) -> None:
        """Ask for what has left of `names`, as far as there is room."""
        for name in names:
            if self.room_bytes(self._residency.bytes_of(name)) < 0:
                return
            self._residency.ask(name)

    def rest(self, *, watched: bool) -> None:
        """Until the next step nobody looks: ordinary code may touch everything that lasts, and what
        was freed leaves room for that. Not `watched` are the steps either.
        """
        if self.limit_bytes is None:
            freed_memory.let_wait(None)
            return
        away_bytes = self._residency.away_bytes(self._residency.away())
        self._fit(self._held_bytes() + away_bytes)
        spare_bytes = self._spare_bytes(_SPARE if watched else _UNWATCHED_SPARE)
        self._let_wait(away_bytes, 0, spare_bytes)

    def learn(self, over_bytes: int) -> None:
        """A step held so much more than the budget for a moment, in what no pool lends, the scratch
        memory of an operator, or in tensors that an operator takes and does not touch. From here on
        that much less waits; again where that was not enough.
        """
        assert self.limit_bytes is not None
        most_bytes = int(_MOST_LEARNT * self.limit_bytes)
        self._learnt_bytes = min(self._learnt_bytes + over_bytes, most_bytes)

    def begin_step(self) -> None:
        self._early = _EARLY if self.rise_bytes > 0 else _FIRST_EARLY
        self.shortfall_bytes = 0
        self.sent_away.clear()
        self._before_bytes = self._gauge.held_bytes()
        self._rest = 0

    def _held_bytes(self) -> int:
        """With what is on its way. Of what the pool has lent, some may never have been touched: it
        is not held, but may be soon, so nothing else counts on it.
        """
        without_place_bytes = self._contents.incoming_bytes
        lent_bytes = self._lent_bytes()  # first: what is lent meanwhile is then too much
        held_bytes = self._gauge.held_bytes() + self._residency.incoming_bytes
        self._beside_bytes, self._trust = max(0, held_bytes - lent_bytes), _TRUST
        return held_bytes + without_place_bytes

    def _is_likely_roomy(self, more_bytes: int) -> bool:
        if self._trust <= 0 or not freed_memory.is_counted():
            return False
        self._trust -= 1
        coming_bytes = more_bytes + self._contents.incoming_bytes
        likely_bytes = self._lent_bytes() + self._beside_bytes + coming_bytes
        return likely_bytes <= self._now_bytes - self._usual_spare_bytes

    def _fit(self, least_bytes: int, *, waits: bool = False) -> None:
        """Of a lease that rises and falls: ask for what is needed and a little more, which others
        may have; give back what is far over, once nothing waits freed there. Whoever gets pages
        has them made anew, which takes time: so in pieces, and no further than others need. Whoever
        `waits` does so before bytes have to leave that others are about to return.
        """
        if self.lease is None or self.limit_bytes is None:
            return
        needed_bytes = least_bytes + self._usual_spare_bytes
        piece_bytes = self.limit_bytes // _PIECES
        granted_bytes = self.lease.lease_bytes
        if granted_bytes < min(needed_bytes, self.limit_bytes):
            begin_s = time.monotonic()
            least_bytes = min(least_bytes, self.limit_bytes) - self._contents.outgoing_bytes
            may_wait = waits and granted_bytes < least_bytes and self.lease.patience_s > 0
            if begin_s < self._refused_until_s and not may_wait:
                return
            granted_bytes = self.lease.want(
                min(needed_bytes + piece_bytes, self.limit_bytes),
                least_bytes=least_bytes if waits else 0,
            )
            end_s = time.monotonic()
            self._counters.stall_s += end_s - begin_s
            if granted_bytes < min(needed_bytes, self.limit_bytes):
                self._refused_until_s = end_s + _REFUSED_S
        others_bytes = self.lease.keeps_bytes or 0  # below that nobody needs any
        kept_bytes = max(needed_bytes + piece_bytes, others_bytes)
        over_bytes = granted_bytes - kept_bytes
        if over_bytes > (0 if kept_bytes == others_bytes else piece_bytes) and (
            self.lease.is_connected
        ):
            self._now_bytes = kept_bytes
            self._keep_within(0, self._usual_spare_bytes)
            self.lease.give_back(self._now_bytes)
            granted_bytes = self.lease.lease_bytes
        self._now_bytes = min(granted_bytes, self.limit_bytes)

    def _keep(
        self,
        held_bytes: int,
        rise_bytes: int,
        start_bytes: int,
        in_use: frozenset[str],
        paged_bytes: int,
        scratch_bytes: int = 0,
    ) -> None:
        excess = held_bytes + rise_bytes + paged_bytes - start_bytes
        if excess > 0:
            self._let_go(excess, in_use)
            held_bytes = self._wait(rise_bytes + paged_bytes)
        self._let_wait(paged_bytes, scratch_bytes, self._usual_spare_bytes)

    def _let_wait(self, paged_bytes: int, scratch_bytes: int, spare_bytes: int) -> None:
        """What was freed may wait where nothing else needs to be: the pool itself makes room for
        tensors, and here for what does not come from it, `paged_bytes` and `scratch_bytes` of it
        soon.
        """
        self._beside_bytes += paged_bytes
        self._keep_within(scratch_bytes, spare_bytes)

    def _keep_within(self, scratch_bytes: int, spare_bytes: int) -> None:
        spare_bytes += max(self._learnt_bytes, scratch_bytes)
        own_bytes = self._now_bytes - spare_bytes - self._beside_bytes
        own_bytes -= own_bytes % _GRAIN_BYTES  # so that few moments have another limit
        freed_memory.keep_within(own_bytes + self._gauge.foreign_bytes)

    def _lent_bytes(self) -> int:
        """Whole pages that the job's tensors have of the pool."""
        return freed_memory.lent_bytes() - self._gauge.foreign_bytes

    def _spare_bytes(self, share: float) -> int:
        assert self.limit_bytes is not None
        return int(self.limit_bytes * share) + min(_FEW_BYTES, int(self.limit_bytes * _SPARE))

    def _let_go(self, excess_bytes: int, in_use: frozenset[str]) -> None:
        left = excess_bytes - self._contents.outgoing_bytes
        lasting = self._residency.candidates(in_use)
        if self.distance is not None:
            lasting.sort(key=self.distance, reverse=True)
        for name in lasting:
            if left <= 0:
                return
            evicted_bytes = self._residency.evict(name)
            left -= evicted_bytes
            if evicted_bytes > 0:
                self.sent_away.add(name)
        for content in self._contents.candidates():
            if left <= 0:
                return
            if self._contents.leave(content):
                left -= content.bytes

    def _wait(self, rise_bytes: int) -> int:
        """Until there is room, or nothing more can leave; answers what is held then."""
        while (held := self._held_bytes()) + rise_bytes > self._now_bytes:
            if self._contents.wait_for_oldest():
                continue
            if self._rest > 0:
                self._rest -= 1
            else:
                self._rest = _PATIENCE
                self._residency.evict_mapped()
                freed_memory.trim()
                held = self._held_bytes()
            self._note_shortfall(held + rise_bytes - self._now_bytes)
            return held
        return held

    def _note_shortfall(self, size_bytes: int) -> None:
        self.shortfall_bytes = max(self.shortfall_bytes, size_bytes)
