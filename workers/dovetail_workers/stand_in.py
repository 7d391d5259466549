"""What a script declares is its own on a device that it shares, from before its first process on: a
lease in its name, until a session of its own joins the device's broker, and again after that.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Self

from dovetail_jobs.errors import UserError
from dovetail_jobs.units import format_bytes
from dovetail_workers.launch import Launch
from dovetail_workers.memory_limit import fixed_limit

if TYPE_CHECKING:
    from tensile.coordinator.lease import Lease

_SOON_S = 0.2  # who is let in at once waits no longer
_LOOK_S = 0.5  # between two looks whether the attempt is over


class StandIn:
    """Between `join` and `close`. `broker` is the socket of the device's."""

    def __init__(self, launch: Launch, broker: Path, size_bytes: int) -> None:
        self._launch, self._broker, self._size_bytes = launch, broker, size_bytes
        self._lease: Lease | None = None

    @classmethod
    def of(cls, launch: Launch, device_environment: Mapping[str, str]) -> Self | None:
        """None for one that has its device alone, or declares nothing."""
        broker, size_bytes = device_environment.get("TENSILE_BROKER"), fixed_limit(launch).bytes
        if broker is None or size_bytes is None:
            return None
        return cls(launch, Path(broker), size_bytes)

    def join(self, say: Callable[[str], None], is_over: Callable[[], bool]) -> bool:
        """Wait until the device has room; `say` hears of it. False if all `is_over` by then.

        Raises UserError where the device never has room for so much.
        """
        from tensile.coordinator import Member, declared  # few attempts share a device
        from tensile.coordinator.lease import Lease, LeaseRefused

        member = Member(
            job=self._launch.attempt_id,
            profile=declared(self._size_bytes),
            weight=self._launch.weight,
            priority=self._launch.priority,
        )
        self._lease = Lease(self._broker, member, stands_in=True)
        try:
            if self._lease.join(_SOON_S):
                return True
            size = format_bytes(self._size_bytes)
            say(f"waits until {self._launch.device} has {size} free for it")
            begin_s = time.monotonic()
            while not self._lease.join(_LOOK_S):
                if is_over():
                    return False
        except LeaseRefused as error:
            raise UserError(f"resources.memory: {error}") from None
        say(f"was let in after {time.monotonic() - begin_s:.1f} s")
        return True

    def close(self) -> None:
        if self._lease is not None:
            self._lease.close()
