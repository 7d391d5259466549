"""The lower tier is a real disk, keeps bytes exactly, leaves nothing behind, says what fails."""

from __future__ import annotations

import errno
import os
import resource
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from tensile import TierError
from tensile.extents import PAGE_BYTES, Extent, Extents
from tensile.lasting_file import LastingFile
from tensile.lower_tier import LowerTier
from tensile.swap_file import BOUNCE_BYTES, SwapFile


@pytest.fixture
def file(tmp_path: Path) -> Iterator[SwapFile]:
    file = SwapFile(LowerTier(tmp_path))
    yield file
    file.close()


def noise(size_bytes: int) -> torch.UntypedStorage:
    generator = torch.Generator().manual_seed(size_bytes)
    drawn = torch.randint(0, 256, (size_bytes,), dtype=torch.uint8, generator=generator)
    return drawn.untyped_storage()


def as_bytes(storage: torch.UntypedStorage) -> torch.Tensor:
    return torch.empty(0, dtype=torch.uint8).set_(storage)


@given(sizes=st.lists(st.integers(1, 5 * PAGE_BYTES), min_size=1, max_size=30), data=st.data())
def test_extents_never_overlap_and_come_back_whole(sizes: list[int], data: st.DataObject) -> None:
    extents = Extents()
    taken: list[Extent] = []
    for size_bytes in sizes:
        extent = extents.take(size_bytes)
        assert extent.bytes >= size_bytes
        assert extent.offset % PAGE_BYTES == 0
        assert all(extent.end <= other.offset or other.end <= extent.offset for other in taken)
        taken.append(extent)
        if data.draw(st.booleans()):
            extents.give(taken.pop(data.draw(st.integers(0, len(taken) - 1))))
    used_bytes = sum(extent.bytes for extent in taken)
    assert extents.end_bytes - extents.free_bytes == used_bytes
    for extent in taken:
        extents.give(extent)
    assert extents.end_bytes == 0


@pytest.mark.parametrize("size_bytes", [1, 4095, 4096, 100_000, BOUNCE_BYTES, 3 * BOUNCE_BYTES + 5])
def test_what_was_written_is_read_back(file: SwapFile, size_bytes: int) -> None:
    storage = noise(size_bytes)
    extent = file.extents.take(size_bytes)
    written = file.write(storage, extent)
    written.wait()
    written.check()
    assert storage.nbytes() == 0
    brought = file.read(storage, extent, size_bytes)
    brought.wait()
    brought.check()
    assert torch.equal(as_bytes(storage), as_bytes(noise(size_bytes)))
    storage.resize_(0)
    file.read_now(storage, extent, size_bytes)
    assert torch.equal(as_bytes(storage), as_bytes(noise(size_bytes)))


def test_tensors_over_what_left_have_their_content_again(file: SwapFile) -> None:
    tensor = torch.arange(60_000, dtype=torch.float32).view(200, 300)
    turned, expected = tensor.t()[7:], tensor.t()[7:].clone()
    storage, size_bytes = tensor.untyped_storage(), tensor.nbytes
    extent = file.extents.take(size_bytes)
    file.write(storage, extent).wait()
    assert storage.nbytes() == 0
    file.read(storage, extent, size_bytes).wait()
    assert torch.equal(turned, expected)


def test_many_transfers_in_both_directions_keep_apart(file: SwapFile) -> None:
    sizes = [10_000 + 777 * number for number in range(20)]
    storages = [noise(size_bytes) for size_bytes in sizes]
    extents = [file.extents.take(size_bytes) for size_bytes in sizes]
    written = [file.write(s, e) for s, e in zip(storages, extents, strict=True)]
    for transfer in written:
        transfer.wait()
    brought = [file.read(s, e, n) for s, e, n in zip(storages, extents, sizes, strict=True)]
    for storage, transfer, size_bytes in zip(storages, brought, sizes, strict=True):
        transfer.wait()
        assert torch.equal(as_bytes(storage), as_bytes(noise(size_bytes)))


def test_what_is_recalled_while_it_is_written_stays(file: SwapFile) -> None:
    file.limit(2**20, None)  # so the second write waits for the end of the first one's second
    first, second = noise(2**20), noise(2**18)
    file.write(first, file.extents.take(2**20))
    extent = file.extents.take(2**18)
    transfer = file.write(second, extent)
    assert transfer.recall()
    file.limit(None, None)
    transfer.wait()
    assert not transfer.emptied
    assert torch.equal(as_bytes(second), as_bytes(noise(2**18)))
    file.read_now(third := torch.UntypedStorage(0), extent, 2**18)  # its copy is valid all the same
    assert torch.equal(as_bytes(third), as_bytes(second))


def test_what_has_left_is_recalled_too_late(file: SwapFile) -> None:
    transfer = file.write(noise(5000), file.extents.take(5000))
    transfer.wait()
    assert not transfer.recall()


def test_a_write_that_fails_keeps_the_memory_and_says_why(tmp_path: Path) -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    file = SwapFile(LowerTier(tmp_path))
    storage = noise(2**20)
    before = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (2**16, hard))
    try:
        transfer = file.write(storage, file.extents.take(storage.nbytes()))
        transfer.wait()
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
        signal.signal(signal.SIGXFSZ, before)
        file.close()
    with pytest.raises(TierError, match="nothing on the device was lost") as refused:
        transfer.check()
    assert refused.value.errno == errno.EFBIG
    assert torch.equal(as_bytes(storage), as_bytes(noise(2**20)))
    assert transfer.recall()


def test_a_folder_in_memory_is_refused() -> None:
    shared = Path("/dev/shm")
    if not shared.is_dir() or not os.access(shared, os.W_OK):
        pytest.skip("this system has no folder in memory")
    with pytest.raises(TierError, match="is on tmpfs, which is memory itself"):
        LowerTier(shared)


def test_a_folder_that_cannot_be_made_is_refused_with_the_way_out(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(TierError, match="name another folder with folder="):
        LowerTier(tmp_path / "file")


def test_more_than_the_disk_has_is_refused_beforehand(tmp_path: Path) -> None:
    tier = LowerTier(tmp_path)
    tier.require_room(2**20)
    with pytest.raises(TierError, match="bytes of room and the step may need") as refused:
        tier.require_room(2**60)
    assert refused.value.errno == errno.ENOSPC


def test_the_folder_is_the_variables_or_the_caches(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TENSILE_FOLDER", str(tmp_path / "named"))
    assert LowerTier().folder == tmp_path / "named"
    monkeypatch.delenv("TENSILE_FOLDER")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    assert LowerTier().folder == tmp_path / "cache" / "tensile"


KILLED = """
import sys, torch
from tensile.lower_tier import LowerTier
from tensile.swap_file import SwapFile
from tensile.lasting_file import LastingFile
tier = LowerTier(sys.argv[1])
file, lasting = SwapFile(tier), LastingFile(tier)
storage = torch.ones(2**18).untyped_storage()
placed = lasting.place(storage)
file.write(storage, file.extents.take(storage.nbytes())).wait()
print("ready", flush=True)
while True:
    storage = torch.ones(2**18).untyped_storage()
    file.write(storage, file.extents.take(storage.nbytes()))
"""


@pytest.mark.long
def test_a_process_killed_in_the_middle_of_a_swap_leaves_nothing(tmp_path: Path) -> None:
    child = subprocess.Popen([sys.executable, "-c", KILLED, str(tmp_path)], stdout=subprocess.PIPE)
    with child:
        assert child.stdout is not None
        assert child.stdout.readline() == b"ready\n"
        child.kill()
    assert list(tmp_path.iterdir()) == []


def test_a_file_that_a_killed_process_left_is_removed_at_the_next_start(tmp_path: Path) -> None:
    left = tmp_path / "tensile-1-abc"
    left.write_bytes(b"x" * 100)
    other = tmp_path / "costs-1.json"
    other.write_text("{}")
    LowerTier(tmp_path)
    assert list(tmp_path.iterdir()) == [other]


def test_a_placed_storage_is_evicted_and_read_without_loss(tmp_path: Path) -> None:
    file = LastingFile(LowerTier(tmp_path))
    storage = noise(50_000)
    placed = file.place(storage)
    assert file.holds(placed)
    assert torch.equal(as_bytes(placed), as_bytes(storage))
    as_bytes(placed)[7] = 3
    expected = as_bytes(placed).clone()
    file.evict(placed)
    assert torch.equal(as_bytes(placed), expected)
    file.evict_all()
    file.fetch(placed, writes=True)
    assert torch.equal(as_bytes(placed), expected)
    file.close()
    assert torch.equal(as_bytes(placed), expected)


def test_evicted_pages_are_gone_from_the_process(tmp_path: Path) -> None:
    size_bytes = 32 * 2**20
    file = LastingFile(LowerTier(tmp_path))
    placed = file.place(torch.zeros(size_bytes, dtype=torch.uint8).untyped_storage())
    assert _resident_bytes(tmp_path) == 0
    as_bytes(placed).fill_(1)
    assert _resident_bytes(tmp_path) == size_bytes
    file.evict(placed)
    assert _resident_bytes(tmp_path) == 0
    file.fetch(placed, writes=False)
    assert _resident_bytes(tmp_path) == size_bytes
    del placed
    file.evict_all()
    assert file.bytes == 0
    file.close()


def test_an_extent_of_the_lasting_file_is_used_again(tmp_path: Path) -> None:
    file = LastingFile(LowerTier(tmp_path))
    for _ in range(5):
        placed = file.place(noise(100_000))
        assert file.bytes <= 2 * 102_400
        del placed
    file.close()


def _resident_bytes(folder: Path) -> int:
    total = 0
    inside = False
    for line in Path("/proc/self/smaps").read_text().splitlines():
        if "-" in line.split(" ", 1)[0]:
            inside = str(folder) in line
        elif inside and line.startswith("Rss:"):
            total += int(line.split()[1]) * 1024
    return total
