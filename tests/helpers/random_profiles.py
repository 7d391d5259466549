"""Profiles of invented jobs."""

from __future__ import annotations

import math
from dataclasses import replace

from hypothesis import strategies as st

from tensile.coordinator import Profile, Rung
from tensile.coordinator.profile import SAMPLES


def triangle(peak: int, base: int, step_s: float = 1.0) -> Rung:
    """Rises through the first half of a step and falls through the second."""
    half = SAMPLES / 2
    curve = (base + (peak - base) * (1 - abs(part + 1 - half) / half) for part in range(SAMPLES))
    return Rung(bytes=peak, step_s=step_s, curve=tuple(math.ceil(held) for held in curve))


@st.composite
def any_profile(draw: st.DrawFn) -> Profile:
    """One to five rungs of any bytes; curves are flat, or rise and fall. Lower ones copy more."""
    count = draw(st.integers(1, 5))
    sizes = sorted(draw(st.sets(st.integers(20, 900), min_size=count, max_size=count)))
    rungs: list[Rung] = []
    step_s = draw(st.sampled_from([0.5, 1.0, 1.05]))
    copy_s = 0.0
    for size in reversed(sizes):
        rung = triangle(size, draw(st.integers(1, size)), step_s)
        rungs.append(replace(rung, copied_bytes=int(copy_s * 1000), copy_s=copy_s))
        step_s *= draw(st.floats(1.0, 2.0))
        copy_s = min(copy_s + draw(st.floats(0.0, 0.5)) * step_s, step_s)
    return Profile(rungs=tuple(rungs))
