"""Which version of the tables a database has, and how it is brought to ours."""

from __future__ import annotations

from importlib.metadata import version
from pathlib import Path

from alembic import command
from alembic.config import Config
from alembic.migration import MigrationContext
from alembic.script import ScriptDirectory
from sqlalchemy import Connection
from sqlalchemy.exc import DBAPIError

from dovetail.store.engine import open_engine
from dovetail_jobs.errors import Conflict, DovetailError

MIGRATIONS = Path(__file__).parent / "migrations"


def upgrade(url: str) -> None:
    """Bring the database to the newest schema, in one transaction; one that has it is left alone.

    Raises Conflict for a database of a newer Dovetail, DovetailError for one that cannot be read.
    """
    # SQLite alters a table by making it anew, and foreign keys would delete rows with the old one.
    engine = open_engine(url, foreign_keys=False)
    try:
        with engine.begin() as connection:
            _upgrade(connection)
    except DBAPIError as error:
        shown = engine.url.render_as_string(hide_password=True)
        raise DovetailError(
            f"{shown}: the database cannot be opened: {error.orig}; mend it or name another one"
        ) from error
    finally:
        engine.dispose()


def _upgrade(connection: Connection) -> None:
    config = Config(attributes={"connection": connection})
    config.set_main_option("script_location", str(MIGRATIONS).replace("%", "%%"))
    scripts = ScriptDirectory.from_config(config)
    present = MigrationContext.configure(connection).get_current_revision()
    head = scripts.get_current_head()
    if present == head:
        return
    if present is not None and present not in {each.revision for each in scripts.walk_revisions()}:
        shown = connection.engine.url.render_as_string(hide_password=True)
        raise Conflict(
            f"{shown}: its schema {present} is newer than Dovetail {version('dovetail')} knows "
            f"(up to {head}); install the newer Dovetail again or name another database"
        )
    command.upgrade(config, "head")
