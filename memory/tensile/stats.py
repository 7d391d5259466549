"""What a session has done so far, in numbers."""

from __future__ import annotations

from dataclasses import dataclass, field


@dataclass(frozen=True, slots=True, kw_only=True)
class Stats:
    """Totals since the session began.

    `peak_bytes` is the most that the job held over `base_bytes`, by the operating system's count.
    `fetches` counts contents that came back, `passive_fetches` those of them that were needed
    before they had been asked back, `replans` the plans that followed the first one, `deviations`
    the steps that left their plan. `floor_bytes` is the least budget that every known kind of step
    has a plan for, 0 while none is known; a smaller budget is not kept. `notes` say in sentences
    what a user may want to know, such as an optimizer that runs as one chunk.
    """

    steps: int
    base_bytes: int
    budget_bytes: int | None
    peak_bytes: int
    swapped_out_bytes: int
    swapped_in_bytes: int
    recomputed_bytes: int
    fetches: int
    passive_fetches: int
    stall_s: float
    replans: int
    deviations: int
    floor_bytes: int
    notes: tuple[str, ...]


@dataclass(slots=True, kw_only=True)
class Counters:
    """The same, while it grows. Only the training thread writes here."""

    steps: int = 0
    peak_bytes: int = 0
    swapped_out_bytes: int = 0
    swapped_in_bytes: int = 0
    recomputed_bytes: int = 0
    fetches: int = 0  # contents that came back, passive ones included
    passive_fetches: int = 0
    stall_s: float = 0.0
    replans: int = 0
    deviations: int = 0
    notes: list[str] = field(default_factory=list)

    def note(self, sentence: str) -> None:
        """Say it once, however often it happens."""
        if sentence not in self.notes:
            self.notes.append(sentence)

    def frozen(self, *, base_bytes: int, budget_bytes: int | None, floor_bytes: int) -> Stats:
        return Stats(
            steps=self.steps,
            base_bytes=base_bytes,
            budget_bytes=budget_bytes,
            peak_bytes=self.peak_bytes,
            swapped_out_bytes=self.swapped_out_bytes,
            swapped_in_bytes=self.swapped_in_bytes,
            recomputed_bytes=self.recomputed_bytes,
            fetches=self.fetches,
            passive_fetches=self.passive_fetches,
            stall_s=self.stall_s,
            replans=self.replans,
            deviations=self.deviations,
            floor_bytes=floor_bytes,
            notes=tuple(self.notes),
        )
