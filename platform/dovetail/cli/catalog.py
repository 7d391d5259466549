"""`families`, `schema`, `validate`: what can be written in a job's YAML. They need no server."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from dovetail.cli.job_files import job_files
from dovetail.cli.options import AsJson
from dovetail.cli.output import print_json, print_table, say
from dovetail_jobs.errors import DovetailError, SpecError


def families(as_json: AsJson = False) -> None:
    """List the built-in model families."""
    from dovetail_jobs.catalog import DESCRIPTIONS, FAMILIES

    if as_json:
        print_json([{"name": name, "description": DESCRIPTIONS[name]} for name in FAMILIES])
    else:
        print_table(("NAME", "DESCRIPTION"), [(name, DESCRIPTIONS[name]) for name in FAMILIES])


def schema(as_json: AsJson = False) -> None:
    """Print the JSON Schema of a job.

    Version 2020-12, for editors; it is JSON in any case.
    """
    from dovetail_jobs.schema import json_schema

    print_json(json_schema())


def validate(
    files: Annotated[
        list[Path],
        typer.Argument(metavar="FILE...", help="YAML files, one job each, or folders of them."),
    ],
    changes: Annotated[
        list[str] | None,
        typer.Option("--set", metavar="KEY=VALUE", help="Override a key: train.steps=10."),
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Say everything that is wrong with job files."""
    verdicts = [_verdict(file, changes or []) for file in job_files(files)]
    if as_json:
        print_json([verdict for verdict, _ in verdicts])
    for verdict, error in verdicts:
        if error is not None:
            for line in error.message.splitlines():
                say(f"error: {line}")
        elif not as_json:
            print(f"{verdict['file']}: ok")
    code = max((error.exit_code for _, error in verdicts if error is not None), default=0)
    if code:
        raise typer.Exit(code)


def _verdict(file: Path, changes: list[str]) -> tuple[dict[str, Any], DovetailError | None]:
    from dataclasses import asdict

    from dovetail_jobs.load import load_file

    try:
        load_file(file, changes)
    except SpecError as error:
        found = [asdict(problem) for problem in error.problems]
        return {"file": str(file), "ok": False, "problems": found}, error
    except DovetailError as error:
        missing = {"key": "", "rule": error.message, "value": None, "file": str(file), "line": None}
        return {"file": str(file), "ok": False, "problems": [missing]}, error
    return {"file": str(file), "ok": True, "problems": []}, None
