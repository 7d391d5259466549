"""A database that does not answer, as one error with one sentence, whichever way it fails."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from sqlalchemy import URL
from sqlalchemy.exc import DBAPIError, InterfaceError, OperationalError, SQLAlchemyError
from sqlalchemy.exc import TimeoutError as PoolTimeout

from dovetail_jobs.errors import DatabaseLost

# PostgreSQL's codes for a server that is read-only now (a failover), timed us out, or shuts down
_AWAY = {"25006", "25P03", "57P01", "57P02", "57P03"}


@contextmanager
def named(url: URL) -> Iterator[None]:
    """Raise DatabaseLost for what says that the database is away, locked, full or read-only."""
    try:
        yield
    except SQLAlchemyError as error:
        if not is_outage(error):
            raise
        raise DatabaseLost(
            f"the database at {place(url)} does not answer ({cause(error, url)}); "
            "jobs go on, try again"
        ) from error


def is_outage(error: SQLAlchemyError) -> bool:
    """Whether the same statement may succeed later; a wrong statement or value never does."""
    if isinstance(error, DBAPIError) and error.connection_invalidated:
        return True
    if getattr(getattr(error, "orig", None), "sqlstate", None) in _AWAY:
        return True
    return isinstance(error, OperationalError | InterfaceError | PoolTimeout)


def place(url: URL) -> str:
    """Where the database is, without user and password: a file, or `host:port/name`."""
    if url.get_backend_name() == "sqlite":
        return str(url.database)
    query = url.query.get("host")
    host = url.host or (query if isinstance(query, str) else ", ".join(query or ())) or "localhost"
    port = f":{url.port}" if url.port else ""
    return f"{host}{port}/{url.database or url.username or ''}"


def cause(error: SQLAlchemyError, url: URL) -> str:
    """What the driver said: on one line, without the statement and without the password."""
    said = getattr(error, "orig", None) or error
    line = " ".join(str(said).partition("\nLINE ")[0].split()) or type(said).__name__
    return line.replace(str(url.password), "***") if url.password else line
