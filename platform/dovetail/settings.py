"""Where the platform keeps its things and what it was told.

The only reader of the environment in the control plane:

DOVETAIL_HOME            one folder for everything (else the platform's own state and data folders)
DOVETAIL_CPU_DEVICES     how many CPU devices a machine without a GPU offers
DOVETAIL_DEVICE_MEMORY   bytes of one CPU device: 4GiB, 500MB or plain bytes
DOVETAIL_CODE_LIMIT      the largest code of a job, unpacked (else 100MiB)
DOVETAIL_PORT            the server's port (else a free one)
DOVETAIL_RAY_ADDRESS     a Ray to join (else a local one is started)
DOVETAIL_STORAGE         where checkpoints, logs and curves go (else a folder of ours)
DOVETAIL_DATABASE        the store's URL (else a SQLite file of ours)
DOVETAIL_URL, DOVETAIL_TOKEN   a server elsewhere, for the CLI; none is started then
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

from dovetail_jobs.errors import UserError
from dovetail_jobs.snapshot.limits import LIMIT_BYTES
from dovetail_jobs.units import parse_bytes

Value = TypeVar("Value")


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    """`home` holds state, `data` what must last; None means: not said, choose a default."""

    home: Path
    data: Path
    storage_uri: str
    database_url: str
    cpu_devices: int | None = None
    device_memory_bytes: int | None = None
    port: int | None = None
    ray_address: str | None = None
    server_url: str | None = None
    server_token: str | None = None
    code_limit_bytes: int = LIMIT_BYTES

    @property
    def server_file(self) -> Path:
        """`{"url": …, "pid": …}` of the running server."""
        return self.home / "server.json"

    @property
    def server_lock(self) -> Path:
        """Held by the one server of this home for as long as it lives."""
        return self.home / "server.lock"

    @property
    def server_mark(self) -> Path:
        """A random word that tells this home from every other, made at its first start."""
        return self.home / "server.id"

    @property
    def start_lock(self) -> Path:
        """Held by a client while it starts a server, so that two commands start one."""
        return self.home / "start.lock"

    @property
    def server_log(self) -> Path:
        return self.home / "server.log"

    @property
    def cli_log(self) -> Path:
        """Tracebacks of commands that failed unexpectedly."""
        return self.home / "cli-errors.log"

    @property
    def token_file(self) -> Path:
        return self.home / "token"

    @property
    def ray_token_file(self) -> Path:
        return self.home / "ray.token"

    @property
    def ray_file(self) -> Path:
        """What is known of the local Ray that we started."""
        return self.home / "ray.json"

    @property
    def ray_log(self) -> Path:
        """What the local Ray's head and nodes say while they start and end."""
        return self.home / "ray.log"

    @property
    def own_folders(self) -> tuple[Path, ...]:
        """Folders of the platform's own, which are no job's code wherever they lie."""
        place = self.storage_uri.removeprefix("file://")
        return (self.home, self.data, *(() if "://" in place else (Path(place),)))

    @classmethod
    def from_environment(cls, environment: Mapping[str, str] | None = None) -> Settings:
        """Read the variables; raises UserError naming the variable, its value and the rule."""
        given = os.environ if environment is None else environment
        home, data = _folders(given.get("DOVETAIL_HOME"))
        return cls(
            home=home,
            data=data,
            storage_uri=given.get("DOVETAIL_STORAGE") or str(data / "storage"),
            database_url=given.get("DOVETAIL_DATABASE") or f"sqlite:///{data / 'store.sqlite3'}",
            cpu_devices=_read(given, "DOVETAIL_CPU_DEVICES", _count),
            device_memory_bytes=_read(given, "DOVETAIL_DEVICE_MEMORY", parse_bytes),
            port=_read(given, "DOVETAIL_PORT", _port),
            ray_address=given.get("DOVETAIL_RAY_ADDRESS") or None,
            server_url=given.get("DOVETAIL_URL") or None,
            server_token=given.get("DOVETAIL_TOKEN") or None,
            code_limit_bytes=_read(given, "DOVETAIL_CODE_LIMIT", parse_bytes) or LIMIT_BYTES,
        )

    def create_folders(self) -> None:
        """Make the folders, closed to other users; raises UserError if that is refused."""
        for folder in dict.fromkeys((self.home, self.data)):
            try:
                folder.mkdir(mode=0o700, parents=True, exist_ok=True)
                if folder.stat().st_uid == os.getuid():
                    folder.chmod(0o700)
            except OSError as error:
                raise UserError(
                    f"{folder}: cannot be made ({error.strerror}); "
                    "point DOVETAIL_HOME at a folder that you may write"
                ) from None

    def server_options(self) -> dict[str, int | str | None]:
        """What a server can be told at its start, by the names that its status repeats."""
        return {
            "cpu_devices": self.cpu_devices,
            "device_memory_bytes": self.device_memory_bytes,
            "port": self.port,
            "ray_address": self.ray_address,
        }

    def child_environment(self) -> dict[str, str]:
        """This process's environment with these settings in it, for the server that we start."""
        said = {
            "DOVETAIL_CPU_DEVICES": self.cpu_devices,
            "DOVETAIL_DEVICE_MEMORY": self.device_memory_bytes,
            "DOVETAIL_PORT": self.port,
            "DOVETAIL_CODE_LIMIT": self.code_limit_bytes,
            "DOVETAIL_RAY_ADDRESS": self.ray_address,
            "DOVETAIL_STORAGE": self.storage_uri,
            "DOVETAIL_DATABASE": self.database_url,
        }
        if self.home == self.data:
            said["DOVETAIL_HOME"] = str(self.home)
        return {
            **{key: value for key, value in os.environ.items() if key not in said},
            **{key: str(value) for key, value in said.items() if value is not None},
        }


def _folders(home: str | None) -> tuple[Path, Path]:
    if home:
        folder = Path(home).expanduser().absolute()
        return folder, folder
    from platformdirs import user_data_path, user_state_path

    return user_state_path("dovetail"), user_data_path("dovetail")


def _read(given: Mapping[str, str], name: str, convert: Callable[[str], Value]) -> Value | None:
    text = given.get(name)
    if not text:
        return None
    try:
        return convert(text)
    except ValueError as error:
        raise UserError(f"{name}={text}  {error}") from None


def _count(text: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        raise ValueError("must be a whole number of at least 1")
    return int(text)


def _port(text: str) -> int:
    if not text.isdecimal() or not 1 <= int(text) <= 65535:
        raise ValueError("must be a port from 1 to 65535")
    return int(text)
