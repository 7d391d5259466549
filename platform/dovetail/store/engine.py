"""How a database is opened: SQLite so that writers queue up instead of failing (stack.md §5)."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from sqlalchemy import URL, Connection, Engine, create_engine, event, make_url
from sqlalchemy.exc import ArgumentError

from dovetail_jobs.errors import DovetailError, UserError

BUSY_TIMEOUT_MS = 20_000  # SQLite is unfair to writers: a second is common under load


def open_engine(url: str, *, foreign_keys: bool = True) -> Engine:
    """An engine for `sqlite:///FILE` or `postgresql+psycopg://…`; a new file gets mode 600.

    `reading(engine)` gives its twin for sessions that only read. Raises UserError for other URLs
    and DovetailError for a file that cannot be made.
    """
    parsed = _parse(url)
    if parsed.get_backend_name() == "sqlite":
        _make_private(Path(str(parsed.database)))
        engine = create_engine(parsed)
        _listen(engine, foreign_keys)
        return engine
    return create_engine(parsed)


def reading(engine: Engine) -> Engine:
    """The same pool for sessions that only read: one snapshot, outside the writers' queue."""
    return engine.execution_options(sqlite_begin="DEFERRED")


def _parse(url: str) -> URL:
    try:
        parsed = make_url(url)
    except ArgumentError:
        parsed = None
    backend = parsed.get_backend_name() if parsed else None
    if parsed is None or backend not in ("sqlite", "postgresql"):
        raise UserError(
            "the database URL is not understood; use sqlite:///FILE or "
            "postgresql+psycopg://USER:PASSWORD@HOST/DATABASE"
        )
    if backend == "sqlite" and parsed.database in (None, "", ":memory:"):
        raise UserError(f"{parsed}: names no file, jobs would be lost; use sqlite:///FILE")
    return parsed


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
            "journal_mode=WAL",
            "synchronous=FULL",  # an acknowledged submit survives a power cut
            f"foreign_keys={'ON' if foreign_keys else 'OFF'}",
        ):
            connection.execute(f"PRAGMA {pragma}").close()

    @event.listens_for(engine, "begin")
    def _begin(connection: Connection) -> None:
        # A deferred transaction that turns into a write can fail at once, whatever the timeout.
        mode = connection.get_execution_options().get("sqlite_begin", "IMMEDIATE")
        connection.exec_driver_sql(f"BEGIN {mode}")
