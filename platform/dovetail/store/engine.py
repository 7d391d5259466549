"""How a database is opened: SQLite so that writers queue up instead of failing (stack.md §5),
PostgreSQL so that a restarted one is used again and a frozen client holds nobody up for long.
"""

from __future__ import annotations

import os
import sqlite3
import time
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from sqlalchemy import URL, Connection, Engine, create_engine, event, make_url
from sqlalchemy.exc import ArgumentError

from dovetail.store.text import dumps
from dovetail_jobs.errors import DovetailError, UserError

BUSY_TIMEOUT_MS = 20_000  # SQLite is unfair to writers: a second is common under load
CONNECT_TIMEOUT_S = 5
_DRIVERS = ("sqlite", "sqlite+pysqlite", "postgresql+psycopg")
# A server that is frozen within a transaction would keep its locks for as long as it is frozen.
POSTGRESQL_LIMITS_MS = {
    "lock_timeout": 20_000,
    "statement_timeout": 60_000,
    "idle_in_transaction_session_timeout": 15_000,
}
# A network that swallowed the connection is noticed in about 10 s, not after the kernel's 15 min.
SILENCE = {
    "tcp_user_timeout": 10_000,
    "keepalives_idle": 5,
    "keepalives_interval": 2,
    "keepalives_count": 3,
}


def open_engine(url: str, *, foreign_keys: bool = True) -> Engine:
    """An engine for `sqlite:///FILE` or `postgresql+psycopg://…`; a new file gets mode 600.

    `reading(engine)` gives its twin for sessions that only read. Raises UserError for other URLs
    and DovetailError for a file that cannot be made.
    """
    parsed = parse_url(url)
    if parsed.get_backend_name() == "sqlite":
        _make_private(Path(str(parsed.database)))
        engine = create_engine(parsed, json_serializer=dumps)
        _listen(engine, foreign_keys)
        return engine
    limits = " ".join(f"-c {name}={value}" for name, value in POSTGRESQL_LIMITS_MS.items())
    return create_engine(
        parsed,
        json_serializer=dumps,
        pool_pre_ping=True,
        connect_args={"connect_timeout": CONNECT_TIMEOUT_S, "options": limits, **SILENCE},
    )


def parse_url(url: str) -> URL:
    """The URL of a database that we know; raises UserError for any other, without showing it."""
    try:
        parsed = make_url(url)
    except ArgumentError:
        parsed = None
    if parsed is not None and parsed.drivername == "postgresql":
        parsed = parsed.set(drivername="postgresql+psycopg")
    if parsed is None or parsed.drivername not in _DRIVERS:
        raise UserError(
            "the database URL is not understood; use sqlite:///FILE or "
            "postgresql+psycopg://USER:PASSWORD@HOST/DATABASE"
        )
    backend = parsed.get_backend_name()
    if backend == "sqlite" and parsed.database in (None, "", ":memory:"):
        raise UserError(f"{parsed}: names no file, jobs would be lost; use sqlite:///FILE")
    if backend == "postgresql" and find_spec("psycopg") is None:
        raise UserError(
            "PostgreSQL needs the package psycopg; pip install 'dovetail[postgres]', "
            "or leave DOVETAIL_DATABASE out for a SQLite file"
        )
    return parsed


def reading(engine: Engine) -> Engine:
    """The same pool for sessions that only read: one snapshot, outside the writers' queue."""
    if engine.dialect.name == "sqlite":
        return engine.execution_options(sqlite_begin="DEFERRED")
    return engine.execution_options(isolation_level="REPEATABLE READ", postgresql_readonly=True)


def _make_private(file: Path) -> None:
    """SQLite gives its -wal and -shm files the mode of the database, so this is enough."""
    try:
        file.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        descriptor = os.open(file, os.O_RDWR | os.O_CREAT, 0o600)
        try:
            os.fchmod(descriptor, 0o600)
        finally:
            os.close(descriptor)
    except OSError as error:
        raise DovetailError(
            f"{file}: the database cannot be written: {error.strerror}; "
            "mend the permissions or name another file"
        ) from None


def _listen(engine: Engine, foreign_keys: bool) -> None:
    @event.listens_for(engine, "connect")
    def _configure(connection: Any, _record: object) -> None:
        connection.isolation_level = None  # transactions begin where we say, below
        for pragma in (
            f"busy_timeout={BUSY_TIMEOUT_MS}",
            "synchronous=FULL",  # an acknowledged submit survives a power cut
            f"foreign_keys={'ON' if foreign_keys else 'OFF'}",
        ):
            connection.execute(f"PRAGMA {pragma}").close()
        _use_write_ahead_log(connection)

    @event.listens_for(engine, "begin")
    def _begin(connection: Connection) -> None:
        # A deferred transaction that turns into a write can fail at once, whatever the timeout.
        mode = connection.get_execution_options().get("sqlite_begin", "IMMEDIATE")
        connection.exec_driver_sql(f"BEGIN {mode}")


def _use_write_ahead_log(connection: Any) -> None:
    """The first to open a new database changes it to WAL; SQLite lets nobody wait for that."""
    ends_s = time.monotonic() + BUSY_TIMEOUT_MS / 1000
    while True:
        try:
            connection.execute("PRAGMA journal_mode=WAL").close()
            return
        except sqlite3.OperationalError as error:
            if "locked" not in str(error) or time.monotonic() > ends_s:
                raise
            time.sleep(0.02)  # nothing wakes us when the lock falls
