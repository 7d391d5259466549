"""Which version of the tables a database has, and how it is brought to ours."""

from __future__ import annotations

from importlib.metadata import version
from pathlib import Path

from alembic import command
from alembic.config import Config
from alembic.migration import MigrationContext
from alembic.script import ScriptDirectory
from sqlalchemy import Connection, Engine, inspect, text
from sqlalchemy.exc import SQLAlchemyError

from dovetail.store.engine import open_engine, parse_url, reading
from dovetail.store.outage import cause, is_outage, place
from dovetail.store.tables import Base
from dovetail_jobs.errors import Conflict, DatabaseLost, DovetailError

MIGRATIONS = Path(__file__).parent / "migrations"
_MIGRATION_LOCK = 0x646F7665  # one number for all servers: "dove"


def upgrade(url: str) -> None:
    """Bring the database to the newest schema, in one transaction; one that has it is left alone.

    Servers that start at once take turns. Raises Conflict for a database of a newer Dovetail, of
    something else, or that may not be written; DatabaseLost for one that does not answer, and
    DovetailError for one that cannot be read.
    """
    # SQLite alters a table by making it anew, and foreign keys would delete rows with the old one.
    engine = open_engine(url, foreign_keys=False)
    try:
        with engine.begin() as connection:
            if connection.dialect.name == "postgresql":
                _refuse_read_only(connection)
                connection.execute(text(f"SELECT pg_advisory_xact_lock({_MIGRATION_LOCK})"))
            _upgrade(connection)
    except SQLAlchemyError as error:
        raise _unusable(engine, error) from error
    finally:
        engine.dispose()


def describe(url: str) -> str:
    """The database's kind, place and schema, looked at without changing it; raises as `upgrade`."""
    parsed = parse_url(url)
    if parsed.get_backend_name() == "sqlite" and not Path(str(parsed.database)).exists():
        return f"SQLite at {place(parsed)}; will be made at the first start"
    engine = open_engine(url)
    try:
        with reading(engine).connect() as connection:
            present, _ = _revisions(connection)
            kind = {"sqlite": "SQLite", "postgresql": "PostgreSQL"}[connection.dialect.name]
            number = ".".join(map(str, connection.dialect.server_version_info or ()))
        schema = f"schema {present}" if present else "no tables yet; made at the first start"
        return f"{kind} {number} at {place(parsed)}, {schema}"
    except SQLAlchemyError as error:
        raise _unusable(engine, error) from error
    finally:
        engine.dispose()


def _upgrade(connection: Connection) -> None:
    present, head = _revisions(connection)
    if present != head:
        command.upgrade(_config(connection), "head")
    if connection.dialect.name == "postgresql":
        _refuse_without_rights(connection)


def _config(connection: Connection) -> Config:
    config = Config(attributes={"connection": connection})
    config.set_main_option("script_location", str(MIGRATIONS).replace("%", "%%"))
    return config


def _revisions(connection: Connection) -> tuple[str | None, str | None]:
    """The database's and our newest; raises Conflict for a database that is not ours or newer."""
    scripts = ScriptDirectory.from_config(_config(connection))
    present = MigrationContext.configure(connection).get_current_revision()
    head = scripts.get_current_head()
    if present == head:
        return present, head
    _refuse_foreign(connection, present)
    if present not in {None, *(script.revision for script in scripts.walk_revisions())}:
        raise Conflict(
            f"{_shown(connection.engine)}: its schema {present} is newer than Dovetail "
            f"{version('dovetail')} knows (up to {head}); install the newer Dovetail again or "
            "name another database"
        )
    return present, head


def _refuse_foreign(connection: Connection, present: str | None) -> None:
    """Ours has either no table at all or, under one of our revisions, the jobs."""
    tables = sorted(set(inspect(connection).get_table_names()) - {"alembic_version"})
    if present is None and not tables:
        return
    if present is None or "jobs" not in tables:
        named = ", ".join(tables[:5]) + (", …" if len(tables) > 5 else "")
        raise Conflict(
            f"{_shown(connection.engine)}: holds the tables of something else "
            f"({named or 'alembic_version'}); name an empty database for Dovetail"
        )


def _refuse_read_only(connection: Connection) -> None:
    if connection.execute(text("SHOW transaction_read_only")).scalar() == "on":
        raise Conflict(
            f"{_shown(connection.engine)}: can only be read (a replica, or read-only by its "
            "settings); name the primary, or a user who may write"
        )


def _refuse_without_rights(connection: Connection) -> None:
    rights = " AND ".join(
        f"has_table_privilege(:name, '{right}')" for right in ("INSERT", "UPDATE", "DELETE")
    )
    refused = [
        name
        for name in Base.metadata.tables
        if not connection.execute(text(f"SELECT {rights}"), {"name": name}).scalar()
    ]
    if refused:
        raise Conflict(
            f"{_shown(connection.engine)}: its user may not write {', '.join(refused)}; "
            "grant INSERT, UPDATE and DELETE, or name another user"
        )


def _unusable(engine: Engine, error: SQLAlchemyError) -> DovetailError:
    said = cause(error, engine.url)
    if engine.dialect.name == "postgresql" and is_outage(error):
        return DatabaseLost(
            f"the database at {place(engine.url)} cannot be reached: {said}; "
            "start it, or correct DOVETAIL_DATABASE"
        )
    if "database is locked" in said:
        return DatabaseLost(
            f"the database at {place(engine.url)} is locked by another program; "
            "end that one, or name another file"
        )
    return DovetailError(
        f"{_shown(engine)}: the database cannot be opened: {said}; mend it or name another one"
    )


def _shown(engine: Engine) -> str:
    return engine.url.render_as_string(hide_password=True)
