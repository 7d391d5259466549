"""The migrations make the tables that the code expects, on both databases; a database that is not
ours, newer, or not to be written is refused and left alone.
"""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from importlib.metadata import version
from pathlib import Path
from threading import Barrier

import pytest
from alembic import command
from alembic.autogenerate import compare_metadata
from alembic.config import Config
from alembic.migration import MigrationContext
from sqlalchemy import Connection, inspect, make_url

from dovetail.store.engine import open_engine
from dovetail.store.schema import MIGRATIONS, describe, upgrade
from dovetail.store.store import Store
from dovetail.store.tables import Base
from dovetail_jobs.errors import Conflict, DatabaseLost, DovetailError, UserError
from helpers.build import at, spec_json
from helpers.databases import Postgres, run_statement


@contextmanager
def connected(url: str) -> Iterator[Connection]:
    engine = open_engine(url, foreign_keys=False)
    with engine.begin() as connection:
        yield connection
    engine.dispose()


def migrate(url: str, target: str) -> None:
    with connected(url) as connection:
        config = Config(attributes={"connection": connection})
        config.set_main_option("script_location", str(MIGRATIONS))
        (command.downgrade if target == "base" else command.upgrade)(config, target)


def tables(url: str) -> set[str]:
    with connected(url) as connection:
        return set(inspect(connection).get_table_names()) - {"alembic_version"}


def shown(url: str) -> str:
    return make_url(url).render_as_string(hide_password=True)


def test_the_migrations_make_exactly_the_tables_of_the_code(empty_database_url: str) -> None:
    upgrade(empty_database_url)
    with connected(empty_database_url) as connection:
        context = MigrationContext.configure(connection, opts={"compare_type": True})
        assert compare_metadata(context, Base.metadata) == []


def test_a_migration_can_be_taken_back_and_made_again(empty_database_url: str) -> None:
    for target in ("head", "base", "head"):
        migrate(empty_database_url, target)
        expected = set() if target == "base" else set(Base.metadata.tables)
        assert tables(empty_database_url) == expected


def test_opening_twice_keeps_what_is_there(database_url: str) -> None:
    with Store(database_url) as store:
        job, _ = store.submit(spec_json(), user="ada", key=None, now=at())
    upgrade(database_url)
    with Store(database_url) as store:
        assert store.jobs() == [job]


def test_jobs_of_an_older_schema_are_still_there_in_the_newest(empty_database_url: str) -> None:
    migrate(empty_database_url, "0001")
    run_statement(
        empty_database_url,
        'INSERT INTO jobs (id, name, project, "user", labels, digest, spec, state, reason, '
        "message, priority, created_at, version, metrics, memory) VALUES "
        "('abcdef', 'old', 'p', 'ada', '{}', 'd', '{}', 'CANCELLED', 'CANCELLED_BY_USER', "
        "'m', 50, '2026-01-05 12:00:00+00:00', 1, '{}', '{}')",
    )
    with Store(empty_database_url) as store:
        job = store.job("abcdef")
        assert (job.name, job.code, job.created_at) == ("old", None, at())


def test_servers_that_start_at_once_on_an_empty_database_migrate_it_once(
    empty_database_url: str,
) -> None:
    barrier = Barrier(3)

    def begin(_: int) -> None:
        barrier.wait()
        upgrade(empty_database_url)

    with ThreadPoolExecutor(3) as pool:
        list(pool.map(begin, range(3)))
    assert tables(empty_database_url) == set(Base.metadata.tables)


def test_a_migration_that_fails_half_way_leaves_nothing_and_can_be_made_later(
    empty_database_url: str,
) -> None:
    migrate(empty_database_url, "0001")
    run_statement(empty_database_url, "CREATE TABLE leases (in_the_way INTEGER)")
    with pytest.raises(DovetailError, match=r"leases.* already exists"):
        upgrade(empty_database_url)
    with connected(empty_database_url) as connection:
        columns = {column["name"] for column in inspect(connection).get_columns("jobs")}
        assert "code" not in columns
    run_statement(empty_database_url, "DROP TABLE leases")
    Store(empty_database_url).close()
    assert tables(empty_database_url) == set(Base.metadata.tables)


def test_a_database_of_a_newer_dovetail_is_refused_and_left_alone(database_url: str) -> None:
    upgrade(database_url)
    run_statement(database_url, "UPDATE alembic_version SET version_num = '9999'")
    with pytest.raises(Conflict) as caught:
        Store(database_url)
    assert str(caught.value) == (
        f"{shown(database_url)}: its schema 9999 is newer than Dovetail {version('dovetail')} "
        "knows (up to 0005); install the newer Dovetail again or name another database"
    )
    with pytest.raises(Conflict, match="is newer than"):
        describe(database_url)
    found = run_statement(database_url, "SELECT version_num FROM alembic_version")
    assert found == [("9999",)]


@pytest.mark.parametrize("revision", [None, "3f2a9c"])
def test_a_database_of_something_else_is_refused_and_left_alone(
    empty_database_url: str, revision: str | None
) -> None:
    run_statement(empty_database_url, "CREATE TABLE invoices (number INTEGER)")
    if revision:
        run_statement(empty_database_url, "CREATE TABLE alembic_version (version_num TEXT)")
        run_statement(empty_database_url, f"INSERT INTO alembic_version VALUES ('{revision}')")
    with pytest.raises(Conflict) as caught:
        Store(empty_database_url)
    assert str(caught.value) == (
        f"{shown(empty_database_url)}: holds the tables of something else (invoices); "
        "name an empty database for Dovetail"
    )
    assert tables(empty_database_url) == {"invoices"}


def test_a_user_who_may_only_read_is_refused_at_the_start(postgres: Postgres) -> None:
    database = postgres.new_database(migrated=True)
    try:
        postgres.run("CREATE ROLE reader LOGIN")
        postgres.run("GRANT SELECT ON ALL TABLES IN SCHEMA public TO reader", database)
        with pytest.raises(Conflict, match=r"its user may not write jobs, attempts.*; grant "):
            Store(postgres.url(database, user="reader"))
        postgres.run("ALTER ROLE reader SET default_transaction_read_only = on")
        with pytest.raises(Conflict, match=r"can only be read .*; name the primary"):
            Store(postgres.url(database, user="reader"))
    finally:
        postgres.drop(database)
        postgres.run("DROP ROLE reader")


def test_a_user_who_may_not_make_tables_is_told_so(postgres: Postgres) -> None:
    database = postgres.new_database(migrated=False)
    try:
        postgres.run("CREATE ROLE guest LOGIN")
        with pytest.raises(DovetailError, match=r"permission denied for schema public; mend it"):
            Store(postgres.url(database, user="guest"))
        assert postgres.run("SELECT 1", database) == [(1,)]
    finally:
        postgres.drop(database)
        postgres.run("DROP ROLE guest")


def test_a_server_that_is_not_there_is_named_with_host_and_cause_but_no_password() -> None:
    url = "postgresql+psycopg://ada:s3cret@/jobs?host=/nowhere"
    for look in (upgrade, describe):
        with pytest.raises(DatabaseLost) as caught:
            look(url)
        assert str(caught.value).startswith("the database at /nowhere/jobs cannot be reached: ")
        assert str(caught.value).endswith("; start it, or correct DOVETAIL_DATABASE")
        assert "No such file or directory" in str(caught.value)
        assert "s3cret" not in str(caught.value)


def test_a_database_that_does_not_exist_on_its_server_is_named(postgres: Postgres) -> None:
    with pytest.raises(DatabaseLost, match=r'database "nobody" does not exist; start it, or'):
        Store(postgres.url("nobody"))


@pytest.mark.long  # it waits for as long as a busy SQLite is waited for
def test_a_file_that_another_program_locks_is_named(tmp_path: Path) -> None:
    url = f"sqlite:///{tmp_path}/store.sqlite3"
    upgrade(url)
    with connected(url), pytest.raises(DatabaseLost, match="is locked by another program; end"):
        upgrade(url)


def test_looking_at_a_database_changes_nothing(empty_database_url: str, tmp_path: Path) -> None:
    before = sorted(tmp_path.iterdir())
    said = describe(empty_database_url)
    assert "made at the first start" in said
    assert sorted(tmp_path.iterdir()) == before
    upgrade(empty_database_url)
    assert describe(empty_database_url).endswith(", schema 0005")


def test_other_drivers_are_refused_without_a_word_of_the_url() -> None:
    with pytest.raises(UserError, match="is not understood; use sqlite:///FILE or") as caught:
        upgrade("postgresql+asyncpg://ada:s3cret@db/jobs")
    assert "s3cret" not in str(caught.value)


def test_the_pragmas_that_keep_jobs_safe_are_in_force(tmp_path: Path) -> None:
    engine = open_engine(f"sqlite:///{tmp_path}/store.sqlite3")
    with engine.connect() as connection:
        assert {
            name: connection.exec_driver_sql(f"PRAGMA {name}").scalar()
            for name in ("journal_mode", "synchronous", "foreign_keys", "busy_timeout")
        } == {"journal_mode": "wal", "synchronous": 2, "foreign_keys": 1, "busy_timeout": 20_000}
    engine.dispose()
