"""The paper's rule for several jobs, on our executor: the sum of the jobs' maxima must fit.

TENSILE (arXiv 2105.13336) plans for all jobs at once, and takes each one's own maximum as if all
came at the same moment. So a job has a budget for as long as it runs: nothing is interlocked, and
nothing is divided anew when one ends. Its greedy search is replaced by the best choice there is.
"""

from __future__ import annotations

from collections.abc import Mapping
from itertools import product

from tensile.coordinator.profile import Profile


def static_budgets(profiles: Mapping[str, Profile], device_bytes: int) -> dict[str, int] | None:
    """Bytes for each job, which sum to `device_bytes` at most: the rungs with the greatest sum of
    predicted speeds; among equals those that leave nobody short; what is over goes where bytes are
    missing. None where not even the minima fit.
    """
    chosen = max(
        (
            rungs
            for rungs in product(*(range(len(profile.rungs)) for profile in profiles.values()))
            if sum(_sizes(profiles, rungs)) <= device_bytes
        ),
        key=lambda rungs: _worth(profiles, rungs),
        default=None,
    )
    if chosen is None:
        return None
    sizes = _sizes(profiles, chosen)
    peaks = [profile.peak_bytes for profile in profiles.values()]
    missing = [peak - size for peak, size in zip(peaks, sizes, strict=True)]
    given = min(1.0, (device_bytes - sum(sizes)) / max(sum(missing), 1))
    return {
        name: size + int(given * more)
        for name, size, more in zip(profiles, sizes, missing, strict=True)
    }


def _sizes(profiles: Mapping[str, Profile], rungs: tuple[int, ...]) -> list[int]:
    return [p.rungs[rung].bytes for p, rung in zip(profiles.values(), rungs, strict=True)]


def _worth(profiles: Mapping[str, Profile], rungs: tuple[int, ...]) -> tuple[float, float]:
    """Predicted speed of all together; the least share that a job has of its natural peak."""
    chosen = list(zip(profiles.values(), rungs, strict=True))
    speed = sum(profile.speed(rung) for profile, rung in chosen)
    return round(speed, 6), min(p.rungs[rung].bytes / p.peak_bytes for p, rung in chosen)
