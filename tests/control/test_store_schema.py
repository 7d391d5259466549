"""The migrations make the tables that the code expects, and an unknown schema is left alone."""

from __future__ import annotations

import sqlite3
from importlib.metadata import version
from pathlib import Path
from typing import Any

import pytest
from alembic import command
from alembic.autogenerate import compare_metadata
from alembic.config import Config
from alembic.migration import MigrationContext
from sqlalchemy import create_mock_engine, inspect
from sqlalchemy.dialects import postgresql

from dovetail.store.engine import open_engine
from dovetail.store.schema import MIGRATIONS, upgrade
from dovetail.store.store import Store
from dovetail.store.tables import Base
from dovetail_jobs.errors import Conflict
from helpers.build import at, spec_json


def url_of(tmp_path: Path) -> str:
    return f"sqlite:///{tmp_path}/store.sqlite3"


def test_the_migrations_make_exactly_the_tables_of_the_code(tmp_path: Path) -> None:
    upgrade(url_of(tmp_path))
    engine = open_engine(url_of(tmp_path))
    with engine.connect() as connection:
        context = MigrationContext.configure(connection, opts={"compare_type": True})
        assert compare_metadata(context, Base.metadata) == []
    engine.dispose()


def test_a_migration_can_be_taken_back_and_made_again(tmp_path: Path) -> None:
    engine = open_engine(url_of(tmp_path), foreign_keys=False)
    for target in ("head", "base", "head"):
        with engine.begin() as connection:
            config = Config(attributes={"connection": connection})
            config.set_main_option("script_location", str(MIGRATIONS))
            (command.downgrade if target == "base" else command.upgrade)(config, target)
        with engine.connect() as connection:
            tables = set(inspect(connection).get_table_names()) - {"alembic_version"}
            assert tables == (set() if target == "base" else set(Base.metadata.tables))
    engine.dispose()


def test_opening_twice_keeps_what_is_there(tmp_path: Path) -> None:
    with Store(url_of(tmp_path)) as store:
        job, _ = store.submit(spec_json(), user="ada", key=None, now=at())
    upgrade(url_of(tmp_path))
    with Store(url_of(tmp_path)) as store:
        assert store.jobs() == [job]


def test_a_database_of_a_newer_dovetail_is_refused_and_left_alone(tmp_path: Path) -> None:
    upgrade(url_of(tmp_path))
    connection = sqlite3.connect(tmp_path / "store.sqlite3")
    with connection:
        connection.execute("UPDATE alembic_version SET version_num = '9999'")
    with pytest.raises(Conflict) as caught:
        Store(url_of(tmp_path))
    assert str(caught.value) == (
        f"{url_of(tmp_path)}: its schema 9999 is newer than Dovetail {version('dovetail')} knows "
        "(up to 0002); install the newer Dovetail again or name another database"
    )
    assert connection.execute("SELECT version_num FROM alembic_version").fetchall() == [("9999",)]
    connection.close()


def test_the_tables_say_nothing_that_postgresql_does_not_understand() -> None:
    statements: list[str] = []

    def collect(sql: Any, *_: object, **__: object) -> None:
        statements.append(str(sql.compile(dialect=postgresql.dialect())))

    engine = create_mock_engine("postgresql+psycopg://", collect)
    Base.metadata.create_all(engine, checkfirst=False)
    jobs = next(text for text in statements if "CREATE TABLE jobs" in text)
    assert "seq BIGSERIAL NOT NULL" in jobs
    assert "created_at TIMESTAMP WITH TIME ZONE NOT NULL" in jobs


def test_the_pragmas_that_keep_jobs_safe_are_in_force(tmp_path: Path) -> None:
    engine = open_engine(url_of(tmp_path))
    with engine.connect() as connection:
        assert {
            name: connection.exec_driver_sql(f"PRAGMA {name}").scalar()
            for name in ("journal_mode", "synchronous", "foreign_keys", "busy_timeout")
        } == {"journal_mode": "wal", "synchronous": 2, "foreign_keys": 1, "busy_timeout": 20_000}
    engine.dispose()
