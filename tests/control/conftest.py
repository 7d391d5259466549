"""What control tests share: a running server with a scripted service, and databases of both kinds.

A test with `database_url` (or a fixture made of it) runs on SQLite and on a real PostgreSQL.
"""

from collections.abc import Iterator
from pathlib import Path

import pytest
from typer.main import get_command

from dovetail.cli.main import app, main
from helpers.commands import Run, Said
from helpers.databases import KINDS, Kind, Postgres, migrated_sqlite, running_postgres
from helpers.fake_server import TOKEN, Stage, staged
from helpers.fake_service import FakeService


@pytest.fixture(scope="module")
def stage() -> Iterator[Stage]:
    with staged() as stage:
        yield stage


@pytest.fixture
def service(stage: Stage) -> Iterator[FakeService]:
    with stage.play() as service:
        yield service


@pytest.fixture(scope="session")
def commands() -> object:
    """All of them, as a process makes them once of `app`."""
    return get_command(app)


@pytest.fixture
def dovetail(
    service: FakeService,
    commands: object,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> Run:
    """Runs a command in this process, against `service`."""
    monkeypatch.setenv("DOVETAIL_HOME", str(tmp_path / "home"))
    monkeypatch.setenv("DOVETAIL_URL", service.url)
    monkeypatch.setenv("DOVETAIL_TOKEN", TOKEN)
    monkeypatch.setattr("dovetail.cli.main.app", commands)

    def run(*arguments: str) -> Said:
        capfd.readouterr()
        code = main(arguments)
        text = capfd.readouterr()
        return Said(code, text.out, text.err)

    return run


@pytest.fixture(scope="session")
def postgres_session() -> Iterator[Postgres]:
    with running_postgres() as server:
        yield server


@pytest.fixture
def postgres(postgres_session: Postgres) -> Postgres:
    """The running server; started again if a test left it stopped."""
    postgres_session.start()
    return postgres_session


@pytest.fixture(params=KINDS)
def database_kind(request: pytest.FixtureRequest) -> Kind:
    kind: Kind = request.param
    return kind


@pytest.fixture
def database_url(
    database_kind: Kind, tmp_path: Path, request: pytest.FixtureRequest
) -> Iterator[str]:
    """A database of its own, with our tables."""
    yield from _database(database_kind, tmp_path, request, migrated=True)


@pytest.fixture
def empty_database_url(
    database_kind: Kind, tmp_path: Path, request: pytest.FixtureRequest
) -> Iterator[str]:
    """A database without any table."""
    yield from _database(database_kind, tmp_path, request, migrated=False)


def _database(
    kind: Kind, folder: Path, request: pytest.FixtureRequest, *, migrated: bool
) -> Iterator[str]:
    if kind == "sqlite":
        file = folder / "store.sqlite3"
        yield migrated_sqlite(file) if migrated else f"sqlite:///{file}"
        return
    server: Postgres = request.getfixturevalue("postgres")
    database = server.new_database(migrated=migrated)
    yield server.url(database)
    server.start()
    server.drop(database)
