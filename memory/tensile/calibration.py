"""What this machine costs: probes of about a second together, whose results are kept on disk.

Arithmetic, memory traffic, the overhead of an operator, and copies to and from the lower tier, each
as the best of several attempts, since others may use the machine meanwhile. Torch is imported only
when costs are asked for.
"""

from __future__ import annotations

import hashlib
import mmap
import os
import tempfile
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from tensile.costs import Costs
from tensile.lower_tier import LowerTier, cache_folder

_COPY_BYTES = 16 * 2**20
_SIDE = 512  # of the matrices
_ELEMENTS = 4 * 2**20  # more than a processor's caches hold
_CALLS = 200
_ATTEMPTS = 5

_Positive = Annotated[float, Field(gt=0, allow_inf_nan=False)]


class _Measured(BaseModel):
    """The cache's content, as whoever may have left it."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    flops_per_s: _Positive
    moved_bytes_per_s: _Positive
    overhead_s: _Positive
    out_bytes_per_s: _Positive
    in_bytes_per_s: _Positive
    copy_latency_s: _Positive
    remap_s_per_byte: _Positive


def calibrate(device: str = "cpu", folder: str | os.PathLike[str] | None = None) -> Costs:
    """The costs of `device` with its lower tier in `folder` (by default `$TENSILE_FOLDER`, or the
    user's cache), measured once for each processor, torch, number of threads and disk, and kept
    in the user's cache.

    No random number is drawn. What cannot be read there is measured anew. Raises ValueError for
    a device that is not a CPU, TierError for a folder that no lower tier can be in.
    """
    if device.partition(":")[0] != "cpu":
        raise ValueError(f"device: {device!r} has no probe; only cpu and cpu:N have one")
    tier = LowerTier(folder)
    file = cache_folder() / f"costs-{_machine(tier.folder)}.json"
    try:
        measured = _Measured.model_validate_json(file.read_bytes())
    except (OSError, ValidationError):
        measured = _measure(tier)
        with suppress(OSError):  # a cache that cannot be written costs a second the next time
            _keep(file, measured)
    return Costs(device=device, **measured.model_dump())


def _machine(folder: Path) -> str:
    import torch

    processor = next(
        (
            line.partition(":")[2].strip()
            for line in Path("/proc/cpuinfo").read_text().splitlines()
            if line.startswith("model name")
        ),
        "",
    )
    described = (processor, torch.__version__, torch.get_num_threads(), folder.stat().st_dev)
    return hashlib.sha256("\n".join(map(str, described)).encode()).hexdigest()[:16]


def _keep(file: Path, measured: _Measured) -> None:
    """Complete or not at all: another process may read it at any time."""
    file.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.NamedTemporaryFile(dir=file.parent, suffix=".part", delete=False) as part:
        part.write(measured.model_dump_json(indent=1).encode())
    Path(part.name).replace(file)


def _measure(tier: LowerTier) -> _Measured:
    import torch

    a, b, c = (torch.ones(_SIDE, _SIDE) for _ in range(3))
    product_s = _best(lambda: torch.mm(a, b, out=c))
    long, other = torch.ones(_ELEMENTS), torch.ones(_ELEMENTS)
    traffic_s = _best(lambda: torch.add(long, 1.0, out=other))
    small, result = torch.ones(1), torch.ones(1)

    def call() -> None:
        for _ in range(_CALLS):
            torch.add(small, 1.0, out=result)

    out_s, in_s, latency_s = _copies_s(tier)
    return _Measured(
        flops_per_s=2 * _SIDE**3 / product_s,
        moved_bytes_per_s=2 * _ELEMENTS * long.element_size() / traffic_s,
        overhead_s=_best(call) / _CALLS,
        out_bytes_per_s=_COPY_BYTES / out_s,
        in_bytes_per_s=_COPY_BYTES / in_s,
        copy_latency_s=latency_s,
        remap_s_per_byte=_fresh_pages_s() / _COPY_BYTES,
    )


def _fresh_pages_s() -> float:
    """To give pages back and have others made."""
    with mmap.mmap(-1, _COPY_BYTES, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS) as memory:

        def exchanged() -> None:
            memory.madvise(mmap.MADV_DONTNEED)
            memory[:: mmap.PAGESIZE] = touches

        touches = bytes(_COPY_BYTES // mmap.PAGESIZE)
        return _best(exchanged, time.thread_time)


def _copies_s(tier: LowerTier) -> tuple[float, float, float]:
    """Writing, reading, and reading one page: past the page cache where the file system can."""
    tier.require_room(_COPY_BYTES)
    descriptor = tier.open(direct=True)
    try:
        with mmap.mmap(-1, _COPY_BYTES) as memory:
            memory[:] = os.urandom(mmap.PAGESIZE) * (_COPY_BYTES // mmap.PAGESIZE)
            with memoryview(memory) as whole, whole[: mmap.PAGESIZE] as page:
                out_s = _best(lambda: _written(descriptor, whole))
                in_s = _best(lambda: os.preadv(descriptor, [whole], 0))
                return out_s, in_s, _best(lambda: os.preadv(descriptor, [page], 0))
    finally:
        os.close(descriptor)


def _written(descriptor: int, content: memoryview) -> None:
    os.pwrite(descriptor, content, 0)
    os.fdatasync(descriptor)  # where the page cache could not be gone round


def _best(attempt: Callable[[], object], clock: Callable[[], float] = time.perf_counter) -> float:
    attempt()  # the first one pays for what later ones find ready
    times_s = []
    for _ in range(_ATTEMPTS):
        begin_s = clock()
        attempt()
        times_s.append(clock() - begin_s)
    return min(times_s)
