"""Jobs come to shared devices and leave them; what holds after every cycle, found by hypothesis."""

from __future__ import annotations

from collections import defaultdict

from hypothesis import given, settings
from hypothesis import strategies as st

from dovetail.scheduler.colocation import GAIN, Tenant, predict
from dovetail.scheduler.cycle import schedule
from dovetail.scheduler.decisions import Start
from dovetail.scheduler.policies import POLICIES
from dovetail.scheduler.view import DeviceView, Holding, QueuedJob, Sharing
from helpers.build import MIB, at, holding, node, queued, view
from tensile.coordinator import Member, Profile, Rung, apportion
from tensile.coordinator.profile import SAMPLES


@st.composite
def profiles(draw: st.DrawFn) -> Profile:
    """One to three rungs; the bytes rise and fall over a step."""
    rungs: list[Rung] = []
    size, step_s = draw(st.integers(200, 1200)) * MIB, draw(st.floats(0.5, 2.0))
    for _ in range(draw(st.sampled_from([1, 2, 3, 3]))):
        low = int(size * draw(st.sampled_from([0.2, 0.6, 1.0])))
        high = draw(st.integers(1, SAMPLES))
        curve = (size,) * high + (low,) * (SAMPLES - high)
        rungs.append(Rung(bytes=size, step_s=step_s, curve=curve))
        size = int(size * draw(st.sampled_from([0.3, 0.5, 0.8])))
        step_s *= draw(st.sampled_from([1.0, 1.2, 2.0]))
    return Profile(rungs=tuple(rungs))


@st.composite
def sharings(draw: st.DrawFn) -> Sharing:
    return Sharing(
        share=draw(st.sampled_from([True, True, True, True, "auto", "auto", False])),
        profile=None if draw(st.integers(0, 9)) == 9 else draw(profiles()),
        min_speed=draw(st.sampled_from([0.2, 0.5, 0.9, 1.0])),
        priority=draw(st.sampled_from([0, 50])),
        busy=draw(st.sampled_from([0.2, 0.5, 1.0])),
    )


DEVICES = (
    DeviceView(name="cuda:0", bytes=1000 * MIB),
    DeviceView(name="cpu:0", bytes=1600 * MIB),
)
NODE = node(devices=DEVICES, cpus=6.0)


def check(held: list[Holding]) -> None:
    """Those who meet all share and own their minima together; all keep the speed they ask for."""
    assert sum(item.cpus for item in held) <= NODE.cpus
    met = defaultdict(list)
    for item in held:
        met[item.device].append(item)
    for device in DEVICES:
        there = sorted(met[device.name], key=lambda item: item.job_id)
        if len(there) < 2 and any(item.sharing.profile is None for item in there):
            continue
        members = []
        for item in there:
            assert len(there) == 1 or item.sharing.share is not False
            assert item.sharing.profile is not None
            members.append(
                Member(
                    job=item.job_id,
                    profile=item.sharing.profile,
                    priority=item.sharing.priority,
                )
            )
        assert sum(member.profile.minimum_bytes for member in members) <= device.bytes
        division = apportion(members, device.bytes)
        assert division is not None
        for item, portion in zip(there, division.portions, strict=True):
            assert portion.speed >= item.sharing.min_speed


def cost(job: Sharing, there: list[Holding], device: DeviceView) -> float | None:
    """What the job adds to the slowdowns of those on a device; None where it may not be."""
    tenants = [Tenant(job=item.job_id, cpus=item.cpus, sharing=item.sharing) for item in there]
    newcomer = Tenant(job="new", cpus=1.0, sharing=job)
    if not there and job.profile is None:
        return 1.0
    if there and not all(t.sharing.profile and t.sharing.share for t in (*tenants, newcomer)):
        return None
    before, after = predict(tenants, NODE, device), predict([*tenants, newcomer], NODE, device)
    if after is None or before is None:
        return None
    speeds = zip(after.speeds, (*tenants, newcomer), strict=True)
    if any(speed < tenant.sharing.min_speed for speed, tenant in speeds):
        return None
    if there and job.share == "auto" and after.throughput < before.throughput + GAIN:
        return None
    return sum(1 / rate for rate in after.rates) - sum(1 / rate for rate in before.rates)


@settings(deadline=None, max_examples=200)
@given(st.lists(sharings(), min_size=1, max_size=6), sharings())
def test_each_goes_where_it_adds_least_to_the_slowdowns_and_only_as_fast_as_it_asks(
    earlier: list[Sharing], job: Sharing
) -> None:
    held: list[Holding] = []
    for number, sharing in enumerate([*earlier, job]):
        picture = view(queued("new", sharing=sharing), nodes=(NODE,), holdings=tuple(held))
        (decision,) = schedule(picture, POLICIES["priority"], at())
        costs = {
            device.name: cost(sharing, [h for h in held if h.device == device.name], device)
            for device in DEVICES
        }
        possible = {name: found for name, found in costs.items() if found is not None}
        if len(held) == NODE.cpus:
            return
        if not isinstance(decision, Start):
            assert possible == {}
            continue
        assert possible[decision.device] <= min(possible.values()) + 1e-6
        held.append(holding(f"j{number}", device=decision.device, sharing=sharing))


@settings(deadline=None, max_examples=60)
@given(st.lists(st.lists(sharings(), min_size=1, max_size=4), min_size=1, max_size=4), st.data())
def test_no_device_is_promised_twice_and_nobody_is_too_slow(
    arrivals: list[list[Sharing]], data: st.DataObject
) -> None:
    waiting: list[QueuedJob] = []
    held: list[Holding] = []
    count = 0
    for cycle in arrivals:
        for sharing in cycle:
            count += 1
            name = f"{data.draw(st.sampled_from('abc'))}{count}"
            waiting.append(queued(name, seq=count, sharing=sharing))
        picture = view(*waiting, nodes=(NODE,), holdings=tuple(held))
        decisions = schedule(picture, POLICIES["priority"], at())
        begun = {item.job_id: item for item in decisions if isinstance(item, Start)}
        held += [
            holding(job.id, device=begun[job.id].device, cpus=job.cpus, sharing=job.sharing)
            for job in waiting
            if job.id in begun
        ]
        waiting = [job for job in waiting if job.id not in begun]
        check(held)
        again = schedule(
            view(*waiting, nodes=(NODE,), holdings=tuple(held)), POLICIES["priority"], at()
        )
        assert not [item for item in again if isinstance(item, Start)]
        left = data.draw(st.sets(st.sampled_from([item.job_id for item in held]))) if held else ()
        held = [item for item in held if item.job_id not in left]
