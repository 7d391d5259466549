"""`doctor` tells facts of this machine, and how to mend what is wrong."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path

import pytest

from dovetail.cli import doctor
from dovetail.cli.doctor import Finding
from dovetail.cli.main import main
from dovetail.settings import Settings
from helpers.fake_server import TOKEN, served
from helpers.fake_service import FakeService, RayStatus


@pytest.fixture
def settings(tmp_path: Path) -> Settings:
    return Settings.from_environment({"DOVETAIL_HOME": str(tmp_path / "home")})


def script(folder: Path, text: str) -> str:
    """An executable that stands for a tool."""
    file = folder / "tool"
    file.write_text(f"#!/bin/sh\n{text}\n")
    file.chmod(0o755)
    return str(file)


def test_this_machine_can_train(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("DOVETAIL_HOME", str(tmp_path / "home"))
    monkeypatch.delenv("DOVETAIL_URL", raising=False)
    assert main(["doctor", "--json"]) == 0
    found = {finding["name"]: finding for finding in json.loads(capfd.readouterr().out)}
    names = {"python", "torch", "torchvision", "ray", "g++", "shm", "disk", "gpu", "home", "server"}
    assert names <= set(found)
    assert found["torch"]["fact"].startswith("2.13")
    assert not (tmp_path / "home").exists()  # looking changes nothing


def test_a_failure_is_a_line_with_its_way_out_and_exit_code_1(
    settings: Settings, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    settings.create_folders()
    settings.home.chmod(0o755)
    monkeypatch.setenv("DOVETAIL_HOME", str(settings.home))
    probe = """print('{"version": "2.13", "cuda": null, "devices": 0, "shim": false}')"""
    monkeypatch.setattr(doctor, "_TORCH_PROBE", probe)
    assert main(["doctor"]) == 1
    lines = capfd.readouterr().out.splitlines()
    (line,) = (line for line in lines if line.startswith("fail"))
    assert line.split(maxsplit=2)[1] == "home"
    assert line.endswith(f"others can reach it; chmod 700 {settings.home}")


def test_an_open_token_fails(settings: Settings) -> None:
    settings.create_folders()
    settings.token_file.write_text("token")
    settings.token_file.chmod(0o644)
    (finding,) = doctor.check_home(settings)
    assert (finding.level, finding.mend) == ("fail", f"chmod 600 {settings.token_file}")
    settings.token_file.chmod(0o600)
    (finding,) = doctor.check_home(settings)
    assert finding.level == "ok"


@pytest.mark.skipif(os.getuid() == 0, reason="root may write everywhere")
def test_a_home_that_cannot_be_written_fails(tmp_path: Path) -> None:
    tmp_path.chmod(0o500)
    settings = Settings.from_environment({"DOVETAIL_HOME": str(tmp_path / "home")})
    assert doctor.check_home(settings)[0].level == "fail"


def test_an_old_python_fails() -> None:
    assert doctor.check_python((3, 10, 4)).level == "fail"
    assert doctor.check_python((3, 11, 0)).level == "ok"


def test_a_torch_that_does_not_import_is_quoted() -> None:
    (finding,) = doctor.check_torch([sys.executable, "-c", "import a_module_that_is_missing"])
    assert finding.level == "fail"
    assert "No module named 'a_module_that_is_missing'" in finding.fact
    (killed,) = doctor.check_torch([sys.executable, "-c", "import os; os.abort()"])
    assert "exit code -6" in killed.fact


def test_whether_the_shim_is_needed_is_said() -> None:
    said = {"version": "2.13.0", "cuda": "13.0", "devices": 1, "shim": False}
    torch, vision = doctor.check_torch([sys.executable, "-c", f"print({json.dumps(said)!r})"])
    assert torch.fact == "2.13.0 for CUDA 13.0"
    assert vision.fact == "imports as it is"


def test_a_missing_package_and_a_missing_compiler() -> None:
    assert doctor.check_package("no-such-package-here").level == "fail"
    assert doctor.check_compiler(None).level == "warn"
    assert doctor.check_compiler("/usr/bin/g++") == Finding(
        name="g++", level="ok", fact="/usr/bin/g++"
    )


def test_gpus_are_named_and_a_broken_driver_is_quoted(tmp_path: Path) -> None:
    assert doctor.check_gpu(None).level == "ok"
    one = doctor.check_gpu(script(tmp_path, "echo 'NVIDIA H100 80GB HBM3, 81559 MiB'"))
    assert (one.level, one.fact) == ("ok", "NVIDIA H100 80GB HBM3, 81559 MiB")
    broken = doctor.check_gpu(script(tmp_path, "echo 'no devices were found'; exit 6"))
    assert (broken.level, broken.fact) == ("warn", "nvidia-smi: no devices were found")


def test_what_a_dead_server_left_is_a_warning(settings: Settings) -> None:
    settings.create_folders()
    settings.server_file.write_text('{"url": "http://127.0.0.1:9", "pid": 1}')
    (finding,) = doctor.check_server(settings)
    assert finding.level == "warn"
    assert str(settings.server_file) in finding.fact


def test_a_running_server_and_a_lost_ray_are_told_apart() -> None:
    service = FakeService()
    with served(service) as url:
        settings = Settings.from_environment({"DOVETAIL_URL": url, "DOVETAIL_TOKEN": TOKEN})
        assert [finding.level for finding in doctor.check_server(settings)] == ["ok", "ok"]
        service.ray = RayStatus(state="lost", message="the head ended")
        server, ray = doctor.check_server(settings)
        assert (server.level, ray.level, ray.fact) == ("ok", "warn", "lost the head ended")
    (gone,) = doctor.check_server(settings)
    assert gone.level == "fail"


def test_a_small_shm_is_a_warning(tmp_path: Path) -> None:
    assert doctor.check_shm(tmp_path / "none").level == "warn"
    small = doctor.check_shm(tmp_path, least_bytes=1 << 60)
    assert (small.level, small.mend) == ("warn", "give the container more, e.g. --shm-size=1g")
    assert doctor.check_shm(tmp_path, least_bytes=0).level == "ok"
