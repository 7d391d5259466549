"""A database that is away for a while, as each kind of database goes away."""

from __future__ import annotations

import resource
from collections.abc import Iterator
from contextlib import contextmanager

from helpers.databases import Kind, Postgres

SMALL_FILE_BYTES = 4096  # less than one page of SQLite's log, more than a journal segment


@contextmanager
def database_away(kind: Kind, postgres: Postgres) -> Iterator[None]:
    """PostgreSQL is stopped and started again; SQLite's file system takes no more of its writes."""
    if kind == "postgresql":
        postgres.stop()
        try:
            yield
        finally:
            postgres.start()
        return
    limit, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (SMALL_FILE_BYTES, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (limit, hard))
