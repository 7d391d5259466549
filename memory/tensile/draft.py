"""A plan while it takes shape: which gaps it uses, and which of them by computing again."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from types import MappingProxyType

from tensile.absence import Absence, absences
from tensile.actions import Action, Plan, Recompute, Swap
from tensile.cover import remap_s, without_needless
from tensile.curve import Curve
from tensile.floor import MOVABLE_KINDS
from tensile.gaps import Gap
from tensile.returns import Return, returns
from tensile.simulator import execute
from tensile.spans import is_written, span_of
from tensile.tape import Tape


@dataclass(slots=True)
class Draft:
    """`used` are indices into `gaps`; `computed` those of them that are computed again.

    `curve` has them all away as long as their gaps are open. It keeps `wished_bytes` where it can:
    what is between that and the budget is room for coming back early.
    """

    tape: Tape
    gaps: list[Gap]
    used: list[int]
    curve: Curve
    budget_bytes: int
    wished_bytes: int
    computed: set[int] = field(default_factory=set)

    def rated(self, back: Mapping[int, Return] | None = None) -> Rating:
        """What the simulator says of it, with these returns, or with those of `returns.py`."""
        if back is None:
            curve = Curve(self.curve.live_bytes)
            back = returns(self.tape, self.gaps, self.used, curve, self.budget_bytes, self.computed)
        clean = _clean(self.tape, self.gaps, back)
        order = _order(self.tape, self.gaps, back)
        found = [self._absence(index, back[index], index in clean) for index in order]
        timeline, waited_s = execute(self.tape, found, self.budget_bytes)
        copied = [self.gaps[index] for index in self.used if index not in self.computed]
        return Rating(
            draft=self,
            back=back,
            peak_bytes=timeline.peak_bytes,
            stall_s=timeline.stall_s,
            remap_s=sum(remap_s(self.tape, gap) for gap in copied),
            moved_bytes=sum(gap.bytes for gap in copied),
            waited_s=dict(zip(order, waited_s, strict=True)),
        )

    def _absence(self, index: int, back: Return, is_clean: bool) -> Absence:
        gap, tape = self.gaps[index], self.tape
        recompute_s, workspace = None, 0
        if index in self.computed and gap.slot is not None:
            recompute_s = tape.recompute_s(gap.slot)
            workspace = tape.recompute_workspace_bytes(gap.slot)
        return Absence(
            storage=gap.storage,
            name="",
            bytes=gap.bytes,
            out_event=gap.out_event,
            in_event=back.in_event,
            start=gap.start,
            stop=back.stop,
            first_need=None if gap.final else gap.need,
            dies=gap.final,
            writes=recompute_s is None and not is_clean,
            recompute_s=recompute_s,
            workspace_bytes=workspace,
        )

    def with_computed(self, wanted: Iterable[int]) -> Draft:
        """Those of `wanted` computed again, as far as their sources can be there in time."""
        draft = replace(
            self,
            gaps=list(self.gaps),
            curve=Curve(self.curve.live_bytes),
            computed=set(self.computed),
        )
        users: dict[int, list[int]] = {}
        for index in draft.computed:
            users.setdefault(draft._source(index), []).append(index)
        of_storage: dict[int, list[int]] = {}
        for index in draft.used:
            of_storage.setdefault(draft.gaps[index].storage, []).append(index)
        for index in wanted:
            if draft._compute(index, of_storage, users):
                draft.computed.add(index)
                users.setdefault(draft._source(index), []).append(index)
        return draft

    def _source(self, index: int) -> int:
        slot = self.gaps[index].slot
        assert slot is not None
        return self.tape.slots[self.tape.recipes[slot].source].storage

    def _compute(
        self, index: int, of_storage: dict[int, list[int]], users: dict[int, list[int]]
    ) -> bool:
        gap = self.gaps[index]
        source = self._source(index)
        if any(gap.out_event < self.gaps[u].in_event for u in users.get(gap.storage, ())):
            return False  # others are computed from it while it would be away
        if self.tape.trace.storages[source].death <= gap.stop:
            return False
        slot = gap.slot
        assert slot is not None
        room = self.budget_bytes - self.tape.recompute_workspace_bytes(slot)
        here = int(self.curve.live_bytes[gap.stop] - self.tape.born_bytes[gap.stop])
        if here > room:
            return False
        for other in of_storage.get(source, ()):
            away = self.gaps[other]
            if not away.out_event < gap.in_event < away.in_event:
                continue
            kept = self.curve.highest(gap.stop, away.stop) + away.bytes
            if other in self.computed or away.start >= gap.stop or kept > self.budget_bytes:
                return False
            self.curve.add(gap.stop, away.stop, away.bytes)
            self.gaps[other] = replace(away, in_event=gap.in_event, stop=gap.stop, need=gap.stop)
        return True


# Less is better: over the budget, then the price in seconds (to the nanosecond), then bytes moved.
Worth = tuple[bool, float, int]


@dataclass(frozen=True, slots=True, kw_only=True)
class Rating:
    """What the simulator says of a draft, and how long is waited for each of its gaps."""

    draft: Draft
    back: Mapping[int, Return]
    peak_bytes: int
    stall_s: float
    remap_s: float
    moved_bytes: int
    waited_s: dict[int, float]

    @property
    def worth(self) -> Worth:
        over = self.peak_bytes > self.draft.budget_bytes
        return over, round(self.stall_s + self.remap_s, 9), self.moved_bytes

    def plan(self) -> Plan:
        """Checked and simulated once more as the actions that it becomes."""
        draft = self.draft
        actions = _actions(draft.tape, draft.gaps, self.back, draft.computed)
        return judged(draft.tape, actions, draft.budget_bytes)


def drafted(
    tape: Tape,
    gaps: Sequence[Gap],
    used: Sequence[int],
    budget_bytes: int,
    *,
    wished_bytes: int | None = None,
    waited_s: Mapping[int, float] = MappingProxyType({}),
) -> Draft:
    """`used` without what the (wished) budget does not need; what was waited for goes first."""
    wished = budget_bytes if wished_bytes is None else wished_bytes
    kept, curve = without_needless(tape, gaps, used, wished, waited_s)
    return Draft(
        tape=tape,
        gaps=list(gaps),
        used=kept,
        curve=curve,
        budget_bytes=budget_bytes,
        wished_bytes=wished,
    )


def worth_of(tape: Tape, plan: Plan) -> Worth:
    """Of a plan that the simulator has judged."""
    lasting = {s.name for s in tape.trace.storages if s.kind in MOVABLE_KINDS}
    copied = [action for action in plan.actions if isinstance(action, Swap)]
    remapped = sum(swap.bytes for swap in copied if swap.storage in lasting)
    price_s = plan.stall_s + remapped * tape.costs.remap_s_per_byte
    moved_bytes = sum(swap.bytes for swap in copied)
    return plan.peak_bytes > plan.budget_bytes, round(price_s, 9), moved_bytes


def judged(tape: Tape, actions: tuple[Action, ...], budget_bytes: int) -> Plan:
    """The plan of these actions, with the simulator's predictions."""
    timeline, _ = execute(tape, absences(tape, actions), budget_bytes)
    return Plan(
        signature=tape.trace.signature,
        budget_bytes=budget_bytes,
        share=budget_bytes / tape.peak_bytes if tape.peak_bytes else 1.0,
        peak_bytes=timeline.peak_bytes,
        stall_s=timeline.stall_s,
        step_s=timeline.step_s,
        actions=actions,
    )


def _actions(
    tape: Tape, gaps: Sequence[Gap], back: Mapping[int, Return], computed: set[int]
) -> tuple[Action, ...]:
    n, events = tape.length, len(tape.trace.events)
    clean = _clean(tape, gaps, back)
    found: list[Action] = []
    for index in _order(tape, gaps, back):
        gap = gaps[index]
        name = tape.trace.storages[gap.storage].name
        if index in computed and gap.slot is not None:
            recipe = tape.recipes[gap.slot]
            found.append(
                Recompute(
                    storage=name,
                    bytes=gap.bytes,
                    slot=gap.slot,
                    source=recipe.source,
                    module=recipe.module,
                    call=recipe.call,
                    out_event=gap.out_event,
                    needed_position=gap.need,
                )
            )
            continue
        found.append(
            Swap(
                storage=name,
                bytes=gap.bytes,
                out_event=gap.out_event,
                in_event=back[index].in_event % events,
                needed_position=gap.need % n,
                dirty=index not in clean,
            )
        )
    return tuple(found)


def _order(tape: Tape, gaps: Sequence[Gap], back: Mapping[int, Return]) -> list[int]:
    """By the event of the return; what one event asks back, in the order of the needs."""
    n, events = tape.length, len(tape.trace.events)

    def key(index: int) -> tuple[int, int, int]:
        turns, event = divmod(back[index].in_event, events)
        return event, gaps[index].need - turns * n, index

    return sorted(back, key=key)


def _clean(tape: Tape, gaps: Sequence[Gap], back: Mapping[int, Return]) -> set[int]:
    """Which leave unchanged since they were last written: the lower tier has them already.

    Only what lasts: what autograd saved is written anew each time, as its copy is given up.
    """
    of_storage: dict[int, list[int]] = {}
    for index in back:
        if gaps[index].slot is None:
            of_storage.setdefault(gaps[index].storage, []).append(index)
    found: set[int] = set()
    for storage, indices in of_storage.items():
        if tape.trace.storages[storage].kind not in MOVABLE_KINDS:
            continue
        indices.sort(key=lambda index: gaps[index].start)
        span = span_of(tape, storage)
        for place, index in enumerate(indices):
            if place:
                last = back[indices[place - 1]].stop
            elif span.end is None:
                last = back[indices[-1]].stop - tape.length
            else:
                continue
            if not is_written(tape, span, last, gaps[index].start):
                found.add(index)
    return found
