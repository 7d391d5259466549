"""How much device memory an attempt may hold, and what says so."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

from dovetail_workers.launch import Launch

SHARE = 0.1  # over its limit, and …
BESIDE_BYTES = 64 * 2**20  # … so much more, before a program is taken to have left its limit
# For the libraries of a program that did not say what its bare process holds: PyTorch takes 150 MiB
BARE_BYTES = 256 * 2**20


@dataclass(frozen=True, slots=True, kw_only=True)
class MemoryLimit:
    """`bytes` is None where nobody set one. `rule` names who did, `way_out` what to write."""

    bytes: int | None
    rule: str
    way_out: str


Limit = Callable[[], MemoryLimit]


def fenced_bytes(limit_bytes: int, base_bytes: int | None) -> int:
    """Where the fence of such a limit stands, for a program whose bare process is known or not."""
    bare_bytes = BARE_BYTES if base_bytes is None else 0
    return int(limit_bytes * (1 + SHARE)) + BESIDE_BYTES + bare_bytes


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
        return MemoryLimit(bytes=launch.cap_bytes, rule=rule, way_out=way_out)
    said = [size for size in (declared, launch.cap_bytes) if isinstance(size, int) and size]
    if not said:
        return MemoryLimit(bytes=None, rule="", way_out="")
    return MemoryLimit(bytes=min(said), rule="resources.memory", way_out=way_out)


def limit_of(launch: Launch, device_environment: Mapping[str, str]) -> Limit:
    """What to ask at each look. A script that shares its device has what it declares, and what the
    broker leases it if it asks there for more.
    """
    fixed = fixed_limit(launch)
    broker = device_environment.get("TENSILE_BROKER")
    if broker is None:
        return lambda: fixed
    declared_bytes = fixed.bytes if launch.spec["family"] is None else None

    def now() -> MemoryLimit:
        lease_bytes = _lease_bytes(Path(broker), launch.attempt_id)
        if declared_bytes is not None and declared_bytes >= (lease_bytes or 0):
            return fixed
        return MemoryLimit(
            bytes=lease_bytes,
            rule="its lease",
            way_out="write resources.share: false to have a device for it alone",
        )

    return now


def _lease_bytes(broker: Path, job: str) -> int | None:
    """What the broker of the device lets it hold now; None where it has let it in to nothing, or
    does not answer.
    """
    from tensile.coordinator.lease import look  # few attempts share a device

    with contextlib.suppress(OSError, ValueError):
        for share in look(broker):
            if share.job == job and share.admitted:
                return share.lease_bytes
    return None
