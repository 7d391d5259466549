"""What tensors have freed waits for the next ones, or goes back to the system: as one wants."""

from __future__ import annotations

import gc
import os
import resource
import shutil
import subprocess
import sys
import weakref
from collections.abc import Iterator
from mmap import PAGESIZE as PAGE_BYTES
from pathlib import Path

import pytest
import torch

from tensile import Session, freed_memory, resident
from tensile.memory_pool import MemoryPool, memory_pool

MIB = 2**20


@pytest.fixture
def pool() -> Iterator[MemoryPool]:
    if not (os.environ.get("CXX") or shutil.which("g++") or shutil.which("c++")):
        pytest.skip("this machine has no C++ compiler")
    assert freed_memory.return_it() is None
    pool = memory_pool()
    assert pool is not None
    pool.set_cap(0)
    yield pool
    freed_memory.let_wait(None)


def held_bytes() -> int:
    measured = resident.measure()
    assert measured is not None
    return measured.anonymous_bytes


def test_a_freed_tensor_waits_for_the_next_one_of_its_size(pool: MemoryPool) -> None:
    pool.set_cap(64 * MIB)
    address = torch.ones(8 * MIB, dtype=torch.uint8).data_ptr()
    assert pool.waiting_bytes == 8 * MIB
    again = torch.empty(8 * MIB, dtype=torch.uint8)
    assert again.data_ptr() == address
    assert pool.waiting_bytes == 0


def test_neighbours_that_are_free_are_one_block_again(pool: MemoryPool) -> None:
    pool.set_cap(64 * MIB)
    address = torch.ones(16 * MIB, dtype=torch.uint8).data_ptr()
    parts = [torch.ones(size * MIB, dtype=torch.uint8) for size in (4, 7, 5)]
    assert [part.data_ptr() - address for part in parts] == [0, 4 * MIB, 11 * MIB]
    for number in (1, 0, 1):  # between two free ones it joins both
        del parts[number % len(parts)]
    assert not parts
    assert torch.empty(16 * MIB, dtype=torch.uint8).data_ptr() == address


def test_no_more_waits_than_may(pool: MemoryPool) -> None:
    pool.set_cap(20 * MIB)
    tensors = [torch.ones(8 * MIB, dtype=torch.uint8) for _ in range(5)]
    before = held_bytes()
    tensors.clear()
    assert pool.waiting_bytes == 20 * MIB
    assert abs(before - held_bytes() - 20 * MIB) < MIB
    assert pool.set_cap(0) == 0
    assert abs(before - held_bytes() - 40 * MIB) < MIB


def test_what_waits_from_before_a_session_is_not_counted_to_it(
    pool: MemoryPool, tmp_path: Path
) -> None:
    pool.set_cap(128 * MIB)
    earlier = torch.ones(64 * MIB, dtype=torch.uint8)
    del earlier
    assert pool.waiting_bytes == 64 * MIB
    model = torch.nn.Linear(2, 2)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    with Session(model, optimizer, folder=tmp_path) as session:
        assert session.stats().peak_bytes < 32 * MIB


def test_what_waits_makes_room_before_a_limit_is_exceeded(pool: MemoryPool) -> None:
    gc.collect()
    before = held_bytes() - pool.lent_bytes
    limit = pool.lent_bytes + 24 * MIB
    pool.set_limit(limit)
    first = torch.ones(16 * MIB, dtype=torch.uint8)
    del first
    second = torch.ones(20 * MIB, dtype=torch.uint8)  # … of which 16 come from the first
    assert pool.waiting_bytes == 0  # nothing waits beside it that it could have had
    assert pool.lent_bytes == limit - 4 * MIB
    assert held_bytes() - before < limit + 2 * MIB
    assert bool((second == 1).all())


def test_what_was_lent_at_once_over_a_limit_may_wait_until_the_limit_is_set_again(
    pool: MemoryPool,
) -> None:
    gc.collect()
    lent = pool.lent_bytes
    pool.set_limit(lent + 24 * MIB)
    first, second = (torch.ones(16 * MIB, dtype=torch.uint8) for _ in range(2))
    del second
    assert pool.waiting_bytes == 16 * MIB
    pool.set_limit(lent + 20 * MIB)
    assert pool.waiting_bytes == 4 * MIB
    del first


def test_what_nobody_touched_takes_no_memory_and_does_not_wait(pool: MemoryPool) -> None:
    gc.collect()
    before, lent = held_bytes(), pool.lent_bytes
    pool.set_limit(lent + 64 * MIB)
    half = torch.empty(32 * MIB, dtype=torch.uint8)
    half[: 16 * MIB].fill_(1)
    assert abs(held_bytes() - before - 16 * MIB) < MIB
    del half
    assert pool.waiting_bytes == 16 * MIB
    again = torch.ones(20 * MIB, dtype=torch.uint8)
    assert pool.waiting_bytes == 0
    assert bool((again == 1).all())


def test_a_pool_keeps_nothing_of_whom_it_asked_for_room(pool: MemoryPool) -> None:
    class Asked:
        def relieve(self, size_bytes: int) -> bool:
            return False

    asked = Asked()
    seen = weakref.ref(asked)
    pool.on_full(asked.relieve)
    pool.on_full(None)
    del asked
    gc.collect()
    assert seen() is None


@pytest.mark.long
def test_pages_that_wait_come_to_tensors_of_other_sizes(pool: MemoryPool) -> None:
    generator = torch.Generator().manual_seed(0)
    gc.collect()
    before = held_bytes() - pool.lent_bytes
    limit = pool.lent_bytes + 40 * MIB
    pool.set_limit(limit)
    faults, made_bytes = resource.getrusage(resource.RUSAGE_SELF).ru_minflt, 0
    tensors: list[tuple[int, torch.Tensor]] = []
    for number in range(400):
        size = int(torch.randint(65536, 4 * MIB, (), generator=generator))
        made_bytes += size
        tensors.append((number % 251, torch.full((size,), number % 251, dtype=torch.uint8)))
        while sum(tensor.nbytes for _, tensor in tensors) > 28 * MIB:
            chosen = int(torch.randint(len(tensors), (), generator=generator))
            assert bool((tensors[chosen][1] == tensors[chosen][0]).all())
            del tensors[chosen]
        assert pool.lent_bytes + pool.waiting_bytes <= limit
    assert held_bytes() - before < limit + 4 * MIB
    fresh = (resource.getrusage(resource.RUSAGE_SELF).ru_minflt - faults) * PAGE_BYTES
    assert fresh < made_bytes / 5


def test_tensors_of_every_size_hold_what_is_written(pool: MemoryPool) -> None:
    pool.set_cap(4 * MIB)
    generator = torch.Generator().manual_seed(0)
    tensors: list[tuple[int, torch.Tensor]] = []
    for number in range(300):
        size = int(torch.randint(1, 400_000, (), generator=generator))
        tensors.append((number % 251, torch.full((size,), number % 251, dtype=torch.uint8)))
        if number % 3 == 2:
            del tensors[int(torch.randint(len(tensors), (), generator=generator))]
    assert all(bool((tensor == value).all()) for value, tensor in tensors)
    large = [tensor for _, tensor in tensors if tensor.nbytes >= 65536]
    assert all(tensor.data_ptr() % PAGE_BYTES == 0 for tensor in large)


WITHOUT = """
import torch, sys
from tensile import Session
torch.set_num_threads(1)
model = torch.nn.Linear(300, 300)
optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
with Session(model, optimizer, 1, folder=sys.argv[1]) as session:
    with session.step():
        model(torch.ones(300, 300)).exp().sum().backward()
        optimizer.step()
    print(session.stats().swapped_out_bytes > 0, *session.stats().notes, sep="\\n")
"""


@pytest.mark.long
def test_without_a_compiler_it_works_more_slowly_and_says_so(tmp_path: Path) -> None:
    environment = {
        **os.environ,
        "CXX": str(tmp_path / "no-compiler"),
        "XDG_CACHE_HOME": str(tmp_path / "cache"),
    }
    done = subprocess.run(
        [sys.executable, "-c", WITHOUT, str(tmp_path)],
        env=environment,
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout.startswith("True\n")
    assert "install g++ or name a compiler with CXX" in done.stdout
