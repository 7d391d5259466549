"""What a script declares is leased to it on a shared device before it starts."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from dovetail_jobs.errors import UserError
from dovetail_workers.launch import Launch
from dovetail_workers.stand_in import StandIn
from helpers.attempts import ended, log_text, script_launch, start, used, wait_for
from tensile.coordinator import Member, declared
from tensile.coordinator.broker import Broker
from tensile.coordinator.lease import Lease

MIB = 2**20


@pytest.fixture
def broker(place: Path) -> Iterator[Broker]:
    with Broker(place, 100 * MIB) as broker:
        yield broker


def leased(broker: Broker) -> dict[str, int]:
    return {share.job: share.lease_bytes // MIB for share in broker.shares() if share.admitted}


OPENS_A_SESSION = """
import os, sys
import torch
import tensile

model = torch.nn.Linear(256, 256)
optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
def step(batch):
    optimizer.zero_grad()
    model(batch).sum().backward()
    optimizer.step()

batch = torch.ones(64, 256)
data = bytearray(b"x") * (300 << 20)
with tensile.Session(model, optimizer) as session:
    session.prepare(step, batch)
    while not os.path.exists(sys.argv[1]):
        session.attempt(step, batch)
"""


def script(folder: Path, text: str = "true", memory: str = "60MiB") -> Launch:
    return replace(script_launch(folder, text, resources={"memory": memory}), share=True)


def stand_in(launch: Launch, place: Path) -> StandIn:
    found = StandIn.of(launch, {"TENSILE_BROKER": str(place)})
    assert found is not None
    return found


def test_nobody_stands_in_for_who_declares_nothing_or_has_a_device_alone(
    place: Path, tmp_path: Path
) -> None:
    assert StandIn.of(script(tmp_path), {}) is None
    undeclared = replace(script_launch(tmp_path, "true"), share=True)
    assert StandIn.of(undeclared, {"TENSILE_BROKER": str(place)}) is None


def test_what_is_declared_is_leased_until_the_attempt_is_over(
    broker: Broker, place: Path, tmp_path: Path
) -> None:
    said: list[str] = []
    place_holder = stand_in(script(tmp_path), place)
    assert place_holder.join(said.append, lambda: False)
    assert leased(broker) == {"abc123.1": 60}
    place_holder.close()
    wait_for("its bytes back", lambda: leased(broker) == {})
    assert said == []


def test_an_attempt_that_is_over_waits_no_longer(
    broker: Broker, place: Path, tmp_path: Path
) -> None:
    said: list[str] = []
    with Lease(place, Member(job="other", profile=declared(50 * MIB))) as other:
        assert other.join(10)
        place_holder = stand_in(script(tmp_path), place)
        assert not place_holder.join(said.append, lambda: bool(said))
        place_holder.close()
    assert said == ["waits until cpu:0 has 60MiB free for it"]


def test_what_the_device_will_never_have_is_refused(
    broker: Broker, place: Path, tmp_path: Path
) -> None:
    place_holder = stand_in(script(tmp_path, memory="200MiB"), place)
    with pytest.raises(
        UserError, match=r"resources\.memory: the least .* the device has 100\.0 MiB"
    ):
        place_holder.join(print, lambda: False)
    place_holder.close()


@pytest.mark.long
def test_a_script_starts_when_its_bytes_are_free_and_gives_them_back_at_its_end(
    broker: Broker, place: Path, tmp_path: Path
) -> None:
    go_on = tmp_path / "go-on"
    os.mkfifo(go_on)
    launch = script(tmp_path, f"echo runs; cat {go_on}")
    with Lease(place, Member(job="other", profile=declared(50 * MIB))) as other:
        assert other.join(10)
        process = start(launch, tmp_path / "attempt", TENSILE_BROKER=str(place))
        wait_for("a word", lambda: "waits until cpu:0 has 60MiB" in log_text(launch))
        assert leased(broker) == {"other": 50}
        assert "runs" not in log_text(launch)
    wait_for("its start", lambda: "runs" in log_text(launch))
    assert leased(broker) == {"abc123.1": 60}
    go_on.write_text("go on")
    process.wait(30)
    assert ended(launch).outcome == "succeeded"
    assert leased(broker) == {}


@pytest.mark.long
def test_what_a_script_held_before_its_session_is_the_bare_process_without_a_word_of_its_own(
    broker: Broker, place: Path, tmp_path: Path
) -> None:
    (tmp_path / "train.py").write_text(OPENS_A_SESSION)
    go_on = tmp_path / "go-on"
    launch = script(tmp_path, f"{sys.executable} {tmp_path / 'train.py'} {go_on}")
    process = start(
        launch,
        tmp_path / "attempt",
        TENSILE_BROKER=str(place),
        TENSILE_JOB=launch.attempt_id,
        TENSILE_FOLDER=str(tmp_path / "below"),
    )
    base_bytes, *_ = wait_for("its bare process", lambda: bases(launch))
    go_on.touch()
    process.wait(30)
    assert ended(launch).outcome == "succeeded"
    assert base_bytes > 300 * MIB
    assert 0 < (used(launch)[-1].peak_bytes or 0) < 60 * MIB


def bases(launch: Launch) -> list[int]:
    return [each.base_bytes for each in used(launch) if each.base_bytes is not None]
