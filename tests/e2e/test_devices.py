"""Two jobs of one device at once, through the whole platform: leases, figures, a picture."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from helpers.attempts import wait_for
from helpers.installation import EXAMPLE, Installation

pytestmark = [pytest.mark.ray, pytest.mark.long]

SHARED = EXAMPLE.parent / "shared"
DEVICE_BYTES = 480 * 2**20


def admitted(dovetail: Installation) -> dict[str, Any]:
    """What each job has of the only device, by id, of those who hold something."""
    (device,) = dovetail.json("devices")
    uses = (use for use in device["jobs"] if use["admitted"] and use["resident_bytes"])
    return {use["job"]: use for use in uses}


def test_who_shares_a_device_is_seen_and_gets_what_the_other_leaves(
    own: Installation, tmp_path: Path
) -> None:
    own.run("up", "--cpu-devices", "1", "--device-memory", str(DEVICE_BYTES))
    files = (SHARED / "swin-batch.yaml", SHARED / "swin-size.yaml")
    first, second = (job["id"] for job in own.json("submit", *files, "--set", "train.steps=4000"))

    def both() -> dict[str, Any] | None:
        uses = admitted(own)
        return uses if uses.keys() == {first, second} else None

    uses = wait_for("both on the device", both, deadline_s=120)
    leases = {job: use["lease_bytes"] for job, use in uses.items()}
    assert sum(leases.values()) <= DEVICE_BYTES
    assert all(use["minimum_bytes"] <= use["lease_bytes"] for use in uses.values())
    assert all(0 < use["speed"] <= 1 for use in uses.values())
    assert all(use["resident_bytes"] <= 1.05 * DEVICE_BYTES for use in uses.values())

    assert own.json("cancel", first, "--wait")["state"] == "CANCELLED"
    wait_for(
        "the rest of the device for the other one",
        lambda: admitted(own).get(second, uses[second])["lease_bytes"] > leases[second],
    )
    picture = tmp_path / "memory.png"
    assert own.run("devices", "--picture", picture).returncode == 0
    assert picture.stat().st_size > 1000
    own.run("cancel", second, "--wait")
