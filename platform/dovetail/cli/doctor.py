"""`doctor`: what this machine lacks for training with Dovetail, and how to mend it."""

from __future__ import annotations

import json
import os
import platform
import shutil
import stat
import subprocess
import sys
from dataclasses import asdict, dataclass
from importlib import metadata
from pathlib import Path
from typing import Literal

import typer

from dovetail.cli.options import AsJson
from dovetail.cli.output import print_json
from dovetail.settings import Settings
from dovetail_jobs.errors import DovetailError
from dovetail_jobs.units import format_bytes

Level = Literal["ok", "warn", "fail"]
SHM_BYTES = 256 * 2**20
DISK_LOW_BYTES = 5 * 2**30
DISK_FULL_BYTES = 2**29
IMPORT_S = 120.0

# In a process of its own: importing torch takes seconds, and a broken one may end its process.
_TORCH_PROBE = """
import json, torch
from dovetail_jobs.torchvision_shim import needed
print(json.dumps({"version": torch.__version__, "cuda": torch.version.cuda,
                  "devices": torch.cuda.device_count(), "shim": needed()}))
"""


@dataclass(frozen=True, slots=True, kw_only=True)
class Finding:
    """One fact about this machine; `mend` says what to do, and is empty where nothing is needed."""

    name: str
    level: Level
    fact: str
    mend: str = ""


def doctor(as_json: AsJson = False) -> None:
    """Say what this machine lacks.

    Each line: ok, warn or fail, the fact, and how to mend it. Exits 1 if something fails.
    """
    findings = examine(Settings.from_environment())
    if as_json:
        print_json([asdict(finding) for finding in findings])
    else:
        width = max(len(finding.name) for finding in findings)
        for finding in findings:
            way_out = f"; {finding.mend}" if finding.mend else ""
            print(f"{finding.level:4}  {finding.name.ljust(width)}  {finding.fact}{way_out}")
    if any(finding.level == "fail" for finding in findings):
        raise typer.Exit(1)


def examine(settings: Settings) -> list[Finding]:
    """All findings, in the order in which they build on each other."""
    return [
        check_python(sys.version_info[:3]),
        *check_torch([sys.executable, "-c", _TORCH_PROBE]),
        check_package("ray"),
        check_compiler(shutil.which("g++")),
        check_shm(Path("/dev/shm")),
        check_disk(settings),
        check_gpu(shutil.which("nvidia-smi")),
        *check_home(settings),
        check_database(settings),
        *check_server(settings),
    ]


def check_python(version: tuple[int, ...]) -> Finding:
    text = ".".join(map(str, version))
    if version < (3, 11):
        return Finding(name="python", level="fail", fact=text, mend="install Python 3.11 or newer")
    return Finding(name="python", level="ok", fact=f"{text} on {platform.machine()}")


def check_torch(probe: list[str]) -> list[Finding]:
    """Whether torch imports, and whether torchvision needs our shim beside it."""
    try:
        done = subprocess.run(probe, capture_output=True, text=True, timeout=IMPORT_S, check=False)
    except subprocess.TimeoutExpired:
        return [
            Finding(
                name="torch",
                level="fail",
                fact=f"did not import within {IMPORT_S:.0f} s",
                mend="look at the disk and the memory of this machine",
            )
        ]
    if done.returncode != 0:
        lines = done.stderr.strip().splitlines() or [f"exit code {done.returncode}"]
        return [
            Finding(
                name="torch",
                level="fail",
                fact=f"does not import: {lines[-1]}",
                mend="pip install -e . in the folder of Dovetail",
            )
        ]
    found = json.loads(done.stdout)
    built = f"for CUDA {found['cuda']}" if found["cuda"] else "for CPU"
    shim = (
        "imports with the shim that workers apply by themselves (CPU build of torch)"
        if found["shim"]
        else "imports as it is"
    )
    return [
        Finding(name="torch", level="ok", fact=f"{found['version']} {built}"),
        Finding(name="torchvision", level="ok", fact=shim),
    ]


def check_package(name: str) -> Finding:
    try:
        return Finding(name=name, level="ok", fact=metadata.version(name))
    except metadata.PackageNotFoundError:
        return Finding(
            name=name,
            level="fail",
            fact="is not installed",
            mend="pip install -e . in the folder of Dovetail",
        )


def check_compiler(found: str | None) -> Finding:
    if found:
        return Finding(name="g++", level="ok", fact=found)
    return Finding(
        name="g++",
        level="warn",
        fact="not found; DeepSpeed and torch.compile build their kernels with it",
        mend="apt-get install g++",
    )


def check_shm(folder: Path, least_bytes: int = SHM_BYTES) -> Finding:
    """Ray keeps its objects there."""
    if not folder.is_dir():
        return Finding(
            name="shm", level="warn", fact=f"{folder} does not exist; Ray uses slower files in /tmp"
        )
    free = shutil.disk_usage(folder).free
    fact = f"{folder} has {format_bytes(free)} free"
    if free < least_bytes:
        mend = "give the container more, e.g. --shm-size=1g"
        return Finding(name="shm", level="warn", fact=fact, mend=mend)
    return Finding(name="shm", level="ok", fact=fact)


def check_disk(settings: Settings) -> Finding:
    free = shutil.disk_usage(_existing(settings.data)).free
    fact = f"{format_bytes(free)} free for {settings.data}"
    level: Level = "ok"
    if free < DISK_LOW_BYTES:
        level = "fail" if free < DISK_FULL_BYTES else "warn"
    mend = "" if level == "ok" else "free some, or point DOVETAIL_STORAGE at a larger disk"
    return Finding(name="disk", level=level, fact=fact, mend=mend)


def check_gpu(tool: str | None) -> Finding:
    if tool is None:
        return Finding(
            name="gpu", level="ok", fact="no NVIDIA driver; CPU devices are offered instead"
        )
    query = [tool, "--query-gpu=name,memory.total", "--format=csv,noheader"]
    try:
        done = subprocess.run(query, capture_output=True, text=True, timeout=30, check=False)
    except (OSError, subprocess.TimeoutExpired) as error:
        return Finding(
            name="gpu", level="warn", fact=f"{tool}: {error}", mend="look at the NVIDIA driver"
        )
    lines = done.stdout.strip().splitlines()
    if done.returncode != 0 or not lines:
        said = (done.stderr or done.stdout).strip() or f"exit code {done.returncode}"
        return Finding(
            name="gpu", level="warn", fact=f"nvidia-smi: {said}", mend="look at the NVIDIA driver"
        )
    return Finding(name="gpu", level="ok", fact="; ".join(line.strip() for line in lines))


def check_home(settings: Settings) -> list[Finding]:
    """Whether the state folder can be written, and is closed to others."""
    home = settings.home
    place = _existing(home)
    if not os.access(place, os.W_OK | os.X_OK):
        return [
            Finding(
                name="home",
                level="fail",
                fact=f"{place} cannot be written",
                mend="point DOVETAIL_HOME at a folder that you may write",
            )
        ]
    findings = []
    for path, private in ((home, 0o700), (settings.token_file, 0o600)):
        if path.exists() and stat.S_IMODE(path.stat().st_mode) & 0o077:
            mode = stat.S_IMODE(path.stat().st_mode)
            findings.append(
                Finding(
                    name="home",
                    level="fail",
                    fact=f"{path} has mode {mode:o}: others can reach it",
                    mend=f"chmod {private:o} {path}",
                )
            )
    fact = str(home) if home.exists() else f"{home} will be made at the first start"
    return findings or [Finding(name="home", level="ok", fact=fact)]


def check_database(settings: Settings) -> Finding:
    """Whether it answers and has a schema that this Dovetail knows; changes nothing in it."""
    from dovetail.store.schema import describe

    try:
        return Finding(name="database", level="ok", fact=describe(settings.database_url))
    except DovetailError as error:
        return Finding(name="database", level="fail", fact=error.message)


def check_server(settings: Settings) -> list[Finding]:
    """Whether a server and its Ray run, or what a dead one left."""
    from dovetail.local_server import find_server

    try:
        client = find_server(settings)
        status = client.status()[0] if client else None
    except DovetailError as error:
        return [Finding(name="server", level="fail", fact=error.message)]
    if status is not None:
        ray = status["ray"]
        level: Level = "ok" if ray["state"] == "up" else "warn"
        fact = " ".join(filter(None, (ray["state"], ray["address"], ray["message"])))
        return [
            Finding(name="server", level="ok", fact=f"runs at {status['server']['url']}"),
            Finding(name="ray state", level=level, fact=fact),
        ]
    stale = [path for path in (settings.server_file, settings.ray_file) if path.exists()]
    if not stale:
        return [Finding(name="server", level="ok", fact="none runs; the first command starts one")]
    return [
        Finding(
            name="server",
            level="warn",
            fact=f"{path} was left by a server that no longer answers",
            mend="`dovetail down` ends what may be left of it",
        )
        for path in stale
    ]


def _existing(path: Path) -> Path:
    """The path, or the nearest folder above it that exists."""
    return next(one for one in (path, *path.parents) if one.exists())
