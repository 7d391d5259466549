"""How much device memory an attempt may hold, and what says so."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from dovetail_workers.launch import Launch

if TYPE_CHECKING:
    from tensile.coordinator import Share

# Over its limit, before a program is taken to have left it. Beside others no more than …
SHARE = 0.1  # … of the limit, so that all together are over by no more than that of a device, …
OF_DEVICE = 0.05  # … of the device, …
LEAST_BYTES = 8 * 2**20  # … and in any case what a process takes beside its tensors.
# Alone, where it is nobody's: what a family's process was seen to load and keep during its steps.
BESIDE_BYTES = 64 * 2**20


@dataclass(frozen=True, slots=True, kw_only=True)
class MemoryLimit:
    """`bytes` is None where nobody set one. `rule` names who did, `way_out` what to write. The
    fence stands `slack_bytes` above it, and counts what is over `base_bytes`, the bare process,
    where that is known.
    """

    bytes: int | None
    rule: str
    way_out: str
    slack_bytes: int = 0
    base_bytes: int | None = None

    @property
    def fenced_bytes(self) -> int | None:
        return None if self.bytes is None else self.bytes + self.slack_bytes


Limit = Callable[[], MemoryLimit]


def slack_bytes(launch: Launch, limit_bytes: int) -> int:
    if not launch.share:
        return int(SHARE * limit_bytes) + BESIDE_BYTES
    most_bytes = min(SHARE * limit_bytes, OF_DEVICE * launch.device_bytes)
    return max(LEAST_BYTES, int(most_bytes))


def fixed_limit(launch: Launch) -> MemoryLimit:
    """What the spec declares, or what the attempt comes back with. A managed job without either
    has the limit of its lease, if it shares a device.
    """
    declared = launch.spec["resources"]["memory"]
    managed = launch.spec["family"] is not None and launch.spec["memory"]["policy"] == "tensile"
    way_out = "write resources.memory: {needed} or more"
    has_all = launch.cap_bytes is not None and launch.cap_bytes >= launch.device_bytes
    if launch.cap_bytes is not None and (has_all or not managed):
        rule = "all of its device" if has_all else "what one like it took"
        return _limit(launch, launch.cap_bytes, rule, way_out)
    said = [size for size in (declared, launch.cap_bytes) if isinstance(size, int) and size]
    if not said:
        return MemoryLimit(bytes=None, rule="", way_out="")
    return _limit(launch, min(said), "resources.memory", way_out)


def limit_of(launch: Launch, device_environment: Mapping[str, str]) -> Limit:
    """What to ask at each look. A script that shares its device has what it declares, and what the
    broker leases it if it asks there for more; its session tells the broker what the bare process
    holds. While no broker answers, or a new one has not heard of the job yet, the last word stands.
    """
    fixed = fixed_limit(launch)
    broker = device_environment.get("TENSILE_BROKER")
    if broker is None:
        return lambda: fixed
    declared_bytes = fixed.bytes if launch.spec["family"] is None else None
    lease_bytes = base_bytes = None

    def now() -> MemoryLimit:
        nonlocal lease_bytes, base_bytes
        share = _share(Path(broker), launch.attempt_id)
        if share is not None:
            lease_bytes = share.lease_bytes if share.admitted else None
            base_bytes = base_bytes if share.base_bytes is None else share.base_bytes
        limit = fixed
        if declared_bytes is None or declared_bytes < (lease_bytes or 0):
            way_out = "write resources.share: false to have a device for it alone"
            limit = _limit(launch, lease_bytes, "its lease", way_out)
        return replace(limit, base_bytes=base_bytes)

    return now


def _limit(launch: Launch, size_bytes: int | None, rule: str, way_out: str) -> MemoryLimit:
    slack = 0 if size_bytes is None else slack_bytes(launch, size_bytes)
    return MemoryLimit(bytes=size_bytes, rule=rule, way_out=way_out, slack_bytes=slack)


def _share(broker: Path, job: str) -> Share | None:
    """How it stands at the broker of the device; None where that does not say."""
    from tensile.coordinator.lease import look  # few attempts share a device

    with contextlib.suppress(OSError, ValueError):
        return next((share for share in look(broker) if share.job == job), None)
    return None
