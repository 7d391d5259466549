"""A session's bytes on a device that other jobs use too: joined once, asked between two steps.

What the broker says meanwhile waits for the next border: within a step the limit stands, and only
of steps that are interlocked does the lease rise and fall below it (`Pressure`). A session
that has to take up less lets leave what is over before it gives it back, so that no job ever holds
more than its lease. One that waits to be let in holds as little as it can.
"""

from __future__ import annotations

import time
from contextlib import suppress

from tensile import freed_memory
from tensile.adoption import Adoption
from tensile.allowance import ALLOWANCE_BYTES
from tensile.budget import format_bytes
from tensile.coordinator.apportion import Member
from tensile.coordinator.lease import Lease, device, look, say_bare
from tensile.coordinator.profile import Profile, declared
from tensile.cpu_device import CpuDevice
from tensile.gauge import Gauge
from tensile.lower_tier import TierError
from tensile.membership import Membership
from tensile.pressure import Pressure
from tensile.residency import Residency
from tensile.stats import Counters

_SOON_S = 0.1  # who is let in at once waits no longer
_AGAIN_S = 0.2  # between two looks for a broker
_BEFORE_BYTES = 16 * 2**20  # a checkpoint passes through so much before the job is let in
_WORTH = 1.02  # growth that a new plan is made for
# Over the lease, as a share and at least what a process takes beside its tensors (`allowance.py`),
# before a job is taken to be another than was thought.
_TOLERANCE = 0.05


class Tenancy:
    """`limit_bytes` may be held in this step; next to nothing before the job is let in."""

    def __init__(
        self,
        membership: Membership,
        *,
        adoption: Adoption,
        device: CpuDevice,
        gauge: Gauge,
        pressure: Pressure,
        residency: Residency,
        counters: Counters,
    ) -> None:
        self.limit_bytes = _BEFORE_BYTES
        self._membership = membership
        self._adoption = adoption
        self._device = device
        self._gauge = gauge
        self._pressure = pressure
        self._residency = residency
        self._counters = counters
        self._lease: Lease | None = None
        self._told: Profile | None = None
        self._known_bytes = 0  # the peak, whatever of it is wanted
        self._unknown_bytes = 0  # that a step which nobody knows may take
        self._ratio = membership.overrun  # of what is held to what was foreseen, …
        self._limit_ratio = self._ratio  # … when this limit began
        self._is_child = False
        self._hold_nothing()  # the tensors are there before anybody gave them room
        say_bare(membership.path, membership.job, gauge.base_bytes)

    @property
    def is_joined(self) -> bool:
        return self._lease is not None

    def tell(self, own_bytes: int | None) -> None:
        """What is known of the job now, when it holds no more than `own_bytes` in any case. The
        first time it waits until the device has room for its minimum. Raises LeaseRefused where
        there will never be.
        """
        known = self._known(own_bytes)
        profile = known if own_bytes is None else known.within(own_bytes)
        if self._is_child or profile == self._told:
            return
        if self._lease is None:
            self._lease = self._joined(self._member(profile))
            self._begin_limit(self._allowed_bytes(self._lease))
        else:
            outgrew = known.peak_bytes > self._known_bytes  # no wish, as `own_bytes` is
            self._lease.changed(self._member(profile), outgrew=outgrew)
        self._told, self._known_bytes = profile, known.peak_bytes

    def follow(self) -> None:
        """Between two steps: what may be held in the next one. A little more is not worth a plan;
        less always counts.
        """
        lease = self._lease
        if lease is None or self._is_child:
            return
        lease.patience_s = 0.0  # of a step that is over
        if lease.refusal is not None:
            self._counters.note(lease.refusal)
        allowed_bytes = self._allowed_bytes(lease)
        if not self.limit_bytes <= allowed_bytes < self.limit_bytes * _WORTH:
            self._begin_limit(allowed_bytes)

    def tell_base(self) -> None:
        """What the process holds beside the tensors; planning adds to it."""
        if self._lease is not None and not self._is_child:
            self._lease.bare(self._gauge.base_bytes)

    def begin_step(self) -> None:
        """Copy and compute from here on as the other jobs ask for, and wait as long as their peaks
        do, where steps are interlocked.
        """
        if self._lease is None or self._is_child:
            return
        self._make_way(self._lease)
        if self._pressure.lease is not None:
            self._pressure.lease.begin_step()

    def vacate(self) -> None:
        """Between two steps: what the lease has over the cap leaves, and then is given back. What
        cannot leave is still held, so is not given back.
        """
        lease = self._lease
        if lease is None or self._is_child or lease.lease_bytes <= lease.cap_bytes:
            return
        self._device.swap_file.limit(None, None)  # others wait for what leaves now
        self._pressure.limit_bytes = self.limit_bytes
        self._pressure.clear(0)
        freed_memory.trim()
        lease.give_back(max(self.limit_bytes, self._gauge.held_bytes()))

    def passed(self, peak_bytes: int, own_bytes: int | None) -> None:
        """A pass held so much at most, whatever was foreseen."""
        if self._lease is None or self._is_child:
            return
        lease_bytes = max(self._lease.lease_bytes, self.limit_bytes)
        if peak_bytes > lease_bytes + max(_TOLERANCE * lease_bytes, ALLOWANCE_BYTES):
            self._ratio = max(self._ratio, self._limit_ratio * peak_bytes / lease_bytes)
            self._counters.note(
                f"a step held {format_bytes(peak_bytes)} where {format_bytes(lease_bytes)} were "
                f"the job's, so it asks for {self._ratio:.2f} times what was foreseen"
            )
        self.tell(own_bytes)

    def in_child(self) -> None:
        """A forked child has no bytes of its own; its lease is closed already."""
        self._is_child = True
        self._device.swap_file.in_child()

    def close(self) -> None:
        """Everything is given back. What can leave the device has, since it is nobody's now."""
        if self._lease is not None and not self._is_child:
            self._pressure.lease = None
            self._hold_nothing()
            self._lease.close()

    def _make_way(self, lease: Lease) -> None:
        costs = self._adoption.costs
        if lease.copy_share is None or costs is None:
            self._device.swap_file.limit(None, None)
        else:
            self._device.swap_file.limit(
                lease.copy_share * costs.out_bytes_per_s, lease.copy_share * costs.in_bytes_per_s
            )
        cannot = self._device.give_way(lease.yields)
        if cannot is not None:
            self._counters.note(cannot)

    def _allowed_bytes(self, lease: Lease) -> int:
        """Where steps are interlocked, the lease is asked for within them, up to the cap."""
        if lease.keeps_bytes is not None:
            self._pressure.lease = lease
            return lease.cap_bytes
        self._pressure.lease = None
        return min(lease.cap_bytes, lease.lease_bytes)

    def _begin_limit(self, limit_bytes: int) -> None:
        self.limit_bytes, self._limit_ratio = limit_bytes, self._ratio

    def _known(self, own_bytes: int | None) -> Profile:
        """A step that nobody knows may take what is held for it, which is what was declared; else
        the whole device, or all that the user allows it.
        """
        known = self._adoption.profile()
        if known is None:
            self._unknown_bytes = self._unknown_bytes or self._asked_bytes()
            known = declared(min(self._unknown_bytes, own_bytes or self._unknown_bytes))
        return known.times(self._ratio)

    def _asked_bytes(self) -> int:
        while True:  # nothing tells when a socket is there
            try:
                for share in look(self._membership.path):
                    if share.job == self._membership.job and share.lease_bytes > 0:
                        return share.lease_bytes
                return device(self._membership.path).device_bytes
            except OSError:
                self._say(f"waits for the broker at {self._membership.path}, which does not answer")
                time.sleep(_AGAIN_S)

    def _member(self, profile: Profile) -> Member:
        return Member(
            job=self._membership.job,
            profile=profile,
            weight=self._membership.weight,
            priority=self._membership.priority,
        )

    def _joined(self, member: Member) -> Lease:
        lease = Lease(self._membership.path, member, base_bytes=self._gauge.base_bytes)
        try:
            if not lease.join(_SOON_S):
                self._say(f"{self._why()}, before its first step")
                self._hold_nothing()
                begin_s = time.monotonic()
                while not lease.join(1.0):
                    pass
                self._say(f"was let in after {time.monotonic() - begin_s:.1f} s")
            lease.want(lease.cap_bytes)  # after the answer everything is heard that came with it
        except BaseException:
            lease.close()
            raise
        return lease

    def _why(self) -> str:
        with suppress(OSError):
            for share in look(self._membership.path):
                if share.job == self._membership.job and share.message:
                    return share.message
            return "waits for its device"  # it was let in meanwhile
        return f"waits for the broker at {self._membership.path}, which does not answer"

    def _say(self, sentence: str) -> None:
        sentence = f"the job {sentence}"
        self._counters.note(sentence)
        if self._membership.say is not None:
            self._membership.say(sentence)

    def _hold_nothing(self) -> None:
        with suppress(TierError):  # what has left is what counts
            self._residency.evict_everything()
        freed_memory.give_back()
