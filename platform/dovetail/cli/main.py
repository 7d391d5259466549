"""The program `dovetail`: its commands, and how every failure becomes one line and an exit code."""

from __future__ import annotations

import os
import sys
import tempfile
import time
import traceback
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Annotated, Any

import typer

from dovetail.cli import catalog, devices, doctor, jobs, logs, memory, node, server, submit
from dovetail_jobs.errors import DovetailError

COMMANDS: dict[str, Callable[..., None]] = {
    "up": server.up,
    "down": server.down,
    "status": server.status,
    "submit": submit.submit,
    "ps": jobs.ps,
    "show": jobs.show,
    "logs": logs.logs,
    "events": jobs.events,
    "cancel": jobs.cancel,
    "retry": jobs.retry,
    "devices": devices.devices,
    "top": devices.top,
    "families": catalog.families,
    "schema": catalog.schema,
    "validate": catalog.validate,
    "doctor": doctor.doctor,
}
UNEXPECTED = 70  # EX_SOFTWARE of sysexits.h

app = typer.Typer(
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
    no_args_is_help=True,
    help="Train models on devices that several jobs share.",
)
for _name, _command in COMMANDS.items():
    app.command(_name)(_command)
app.add_typer(node.app, name="node", help=node.ABOUT)
app.add_typer(memory.app, name="memory", help=memory.ABOUT)


def _version(wanted: bool) -> None:
    if wanted:
        from importlib.metadata import version

        print(f"dovetail {version('dovetail')}")
        raise typer.Exit()


@app.callback()
def _program(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version.")
    ] = False,
) -> None:
    pass


# Typer carries its own copy of click, under a private name; its usage errors are reached from here.
_UsageError: type[Exception] = typer.BadParameter.__bases__[0]


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command and return its exit code (docs/cli.md)."""
    given = sys.argv[1:] if arguments is None else list(arguments)
    try:
        code = app(given, prog_name="dovetail", standalone_mode=False)
        sys.stdout.flush()
        return code or 0
    except DovetailError as error:
        return _complain(error.message, error.exit_code)
    except BrokenPipeError:
        # Whoever read our output has seen enough; nothing is left to flush into the closed pipe.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except _UsageError as error:
        if given:
            return _complain(_usage(error), 2)
        print(error, file=sys.stderr)  # Without a command: the help, as Typer made it.
        return 2
    except Exception as error:
        return _complain(_unexpected(error), UNEXPECTED)


def _complain(text: str, code: int) -> int:
    for line in text.splitlines():
        print(f"error: {line}", file=sys.stderr)
    return code


def _usage(error: Any) -> str:
    path = error.ctx.command_path if error.ctx else "dovetail"
    return f"{error.format_message().rstrip('.')}; `{path} --help` shows the usage"


def _unexpected(error: Exception) -> str:
    """One line, and where the whole traceback is."""
    from dovetail.settings import Settings

    story = f"{time.strftime('%Y-%m-%dT%H:%M:%S%z')} {sys.argv}\n{traceback.format_exc()}\n"
    try:
        settings = Settings.from_environment()
        settings.create_folders()
        place = settings.cli_log
        with place.open("a") as file:
            file.write(story)
    except (OSError, DovetailError):
        handle, name = tempfile.mkstemp(prefix="dovetail-", suffix=".log", text=True)
        place = Path(name)
        with os.fdopen(handle, "w") as file:
            file.write(story)
    return f"unexpected {type(error).__name__}: {error} (the traceback is in {place})"
