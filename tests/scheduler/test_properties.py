"""What holds for every cluster and every queue, found by hypothesis."""

from __future__ import annotations

import json
from collections import Counter

from hypothesis import given, settings
from hypothesis import strategies as st

from dovetail.scheduler.cycle import schedule
from dovetail.scheduler.decisions import Start
from dovetail.scheduler.policies import POLICIES
from dovetail.scheduler.view import ClusterView, DeviceView
from helpers.build import GIB, at, holding, node, queued, view

CPUS = st.sampled_from([0.1, 0.2, 0.5, 1.0, 2.0, 3.0, 8.0])
SIZES = st.sampled_from([GIB, 4 * GIB, 16 * GIB])


@st.composite
def views(draw: st.DrawFn) -> ClusterView:
    nodes = tuple(
        node(
            f"n{number}",
            devices=tuple(
                DeviceView(name=f"cpu:{i}", bytes=draw(SIZES))
                for i in range(draw(st.integers(0, 3)))
            ),
            cpus=draw(CPUS),
        )
        for number in range(draw(st.integers(0, 3)))
    )
    places = [(each.name, device.name) for each in nodes for device in each.devices]
    taken = draw(st.lists(st.sampled_from(places), unique=True)) if places else []
    holdings = tuple(
        holding(f"held{i}", on=on, device=device, cpus=draw(CPUS))
        for i, (on, device) in enumerate(taken)
    )
    jobs = [
        queued(
            f"job{seq}",
            seq=seq,
            priority=draw(st.sampled_from([0, 50, 100])),
            devices=draw(st.sampled_from([1, 1, 1, 2])),
            cpus=draw(CPUS),
            memory_bytes=draw(st.none() | SIZES),
            waits_for_release=draw(st.booleans()),
            after=draw(st.sampled_from([None, None, at(-1), at(1)])),
        )
        for seq in range(draw(st.integers(0, 6)))
    ]
    return view(*jobs, nodes=draw(st.sampled_from([nodes, nodes, nodes, None])), holdings=holdings)


@settings(deadline=None, max_examples=200)
@given(views())
def test_every_cycle_keeps_the_books(picture: ClusterView) -> None:
    decisions = schedule(picture, POLICIES["priority"], at())

    # Every queued job gets exactly one decision.
    assert Counter(d.job_id for d in decisions) == Counter(job.id for job in picture.queued)

    # Two attempts never meet on one device.
    jobs = {job.id: job for job in picture.queued}
    begun = [decision for decision in decisions if isinstance(decision, Start)]
    places = [(d.node_id, d.device) for d in begun]
    held = [(h.node_id, h.device) for h in picture.holdings]
    assert max(Counter(places + held).values(), default=1) == 1

    # Cpus are never over-committed by a start, and a start respects memory, time and release.
    nodes = {each.id: each for each in picture.nodes or ()}
    for node_id in {decision.node_id for decision in begun}:
        used = sum(h.cpus for h in picture.holdings if h.node_id == node_id)
        used += sum(jobs[d.job_id].cpus for d in begun if d.node_id == node_id)
        assert used <= nodes[node_id].cpus + 1e-6
    for decision in begun:
        job = jobs[decision.job_id]
        device = {d.name: d for d in nodes[decision.node_id].devices}[decision.device]
        assert job.devices == 1
        assert (job.memory_bytes or 0) <= device.bytes
        assert not job.waits_for_release
        assert job.after is None or job.after <= at()


@settings(deadline=None, max_examples=100)
@given(views(), st.data())
def test_the_order_of_inputs_and_a_way_through_json_change_nothing(
    picture: ClusterView, data: st.DataObject
) -> None:
    decisions = schedule(picture, POLICIES["priority"], at())
    shuffled = ClusterView(
        nodes=picture.nodes and tuple(data.draw(st.permutations(picture.nodes))),
        holdings=tuple(data.draw(st.permutations(picture.holdings))),
        queued=tuple(data.draw(st.permutations(picture.queued))),
    )
    replayed = ClusterView.from_json(json.loads(json.dumps(shuffled.to_json())))
    assert replayed == shuffled
    assert schedule(replayed, POLICIES["priority"], at()) == decisions


@settings(deadline=None, max_examples=100)
@given(views())
def test_no_job_that_could_start_is_left_waiting(picture: ClusterView) -> None:
    """With the starts booked as holdings, a second cycle finds nothing more to start."""
    begun = [
        decision
        for decision in schedule(picture, POLICIES["priority"], at())
        if isinstance(decision, Start)
    ]
    jobs = {job.id: job for job in picture.queued}
    after = ClusterView(
        nodes=picture.nodes,
        holdings=picture.holdings
        + tuple(
            holding(d.job_id, on=d.node, device=d.device, cpus=jobs[d.job_id].cpus) for d in begun
        ),
        queued=tuple(job for job in picture.queued if job.id not in {d.job_id for d in begun}),
    )
    again = schedule(after, POLICIES["priority"], at())
    assert not [decision for decision in again if isinstance(decision, Start)]
