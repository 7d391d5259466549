"""Costs are measured once for each machine, and never believed when they are damaged."""

from __future__ import annotations

import json
import os
import shutil
from dataclasses import asdict, replace
from pathlib import Path

import pytest
import torch

from tensile.calibration import calibrate
from tensile.lower_tier import LowerTier, TierError


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path / "cache" / "tensile"


@pytest.fixture
def folder(tmp_path: Path, cache: Path) -> Path:
    try:
        return LowerTier(tmp_path / "tier").folder
    except TierError as error:
        pytest.skip(f"the tests' own folder is no place for a lower tier: {error}")


@pytest.fixture(scope="module")
def measured(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What one calibration keeps, for tests of what is there already."""
    place = tmp_path_factory.mktemp("measured")
    before = torch.get_num_threads()
    torch.set_num_threads(1)  # as in the tests, which come later
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", str(place / "cache"))
        try:
            calibrate("cpu", LowerTier(place / "tier").folder)
        except TierError as error:
            pytest.skip(f"the tests' own folder is no place for a lower tier: {error}")
        finally:
            torch.set_num_threads(before)
    return place / "cache" / "tensile"


@pytest.fixture
def known(folder: Path, cache: Path, measured: Path) -> Path:
    """A cache in which this machine's costs are, and are read from."""
    shutil.copytree(measured, cache, dirs_exist_ok=True)
    kept = json.loads(kept_in(cache).read_text())
    assert kept.items() <= asdict(calibrate("cpu", folder)).items()
    return cache


def kept_in(cache: Path) -> Path:
    (file,) = cache.iterdir()
    return file


def test_costs_are_those_of_a_machine_and_not_of_a_dream(folder: Path) -> None:
    costs = calibrate("cpu", folder)
    assert 1e8 < costs.flops_per_s < 1e13
    assert 1e8 < costs.moved_bytes_per_s < 1e12
    assert 1e-8 < costs.overhead_s < 1e-3
    assert 1e6 < costs.out_bytes_per_s < 1e11
    assert 1e6 < costs.in_bytes_per_s < 1e11
    assert 0 < costs.copy_latency_s < 1.0


def test_the_second_time_they_are_read(folder: Path) -> None:
    first = calibrate("cpu", folder)
    assert calibrate("cpu", folder) == first
    assert replace(calibrate("cpu:1", folder), device="cpu") == first


@pytest.mark.parametrize("content", ["", "[]", '{"flops_per_s": 1}'])
def test_a_damaged_cache_is_measured_anew(folder: Path, known: Path, content: str) -> None:
    kept_in(known).write_text(content)
    costs = calibrate("cpu", folder)
    assert costs.flops_per_s > 1e8
    assert json.loads(kept_in(known).read_text())["flops_per_s"] == costs.flops_per_s


@pytest.mark.parametrize("value", [0, "NaN"])
def test_a_cache_with_an_impossible_value_is_measured_anew(
    folder: Path, known: Path, value: float | str
) -> None:
    costs = calibrate("cpu", folder)
    kept = json.loads(kept_in(known).read_text())
    kept_in(known).write_text(json.dumps({**kept, "in_bytes_per_s": value}))
    assert calibrate("cpu", folder).in_bytes_per_s > 0
    assert asdict(costs).keys() >= kept.keys()


def test_calibrating_draws_no_random_number(folder: Path) -> None:
    before = torch.get_rng_state()
    calibrate("cpu", folder)
    assert torch.equal(torch.get_rng_state(), before)


def test_nothing_stays_in_the_folder_and_another_one_on_its_disk_costs_the_same(
    folder: Path, tmp_path: Path
) -> None:
    costs = calibrate("cpu", folder)
    assert list(folder.iterdir()) == []
    assert calibrate("cpu", tmp_path / "other") == costs


def test_without_a_cache_costs_are_measured_all_the_same(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").touch()
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    assert calibrate("cpu", folder).flops_per_s > 1e8


def test_another_number_of_threads_is_another_machine(folder: Path, known: Path) -> None:
    torch.set_num_threads(2)
    calibrate("cpu", folder)
    assert len(list(known.iterdir())) == 2


def test_a_folder_in_memory_is_refused() -> None:
    shared = Path("/dev/shm")
    if not os.access(shared, os.W_OK):
        pytest.skip("no /dev/shm here")
    with pytest.raises(TierError, match="memory"):
        calibrate("cpu", shared)


def test_a_device_without_a_probe_is_refused(folder: Path) -> None:
    with pytest.raises(ValueError, match="'cuda' has no probe"):
        calibrate("cuda", folder)
