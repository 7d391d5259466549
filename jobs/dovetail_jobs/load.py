"""A job's YAML to a checked, resolved `JobSpec`; every problem at once, each with file and line."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path

from pydantic import JsonValue, ValidationError

from dovetail_jobs.catalog import known_keys
from dovetail_jobs.document import Document, read_document
from dovetail_jobs.errors import NotFound, Problem, SpecError
from dovetail_jobs.family_params import absolute
from dovetail_jobs.overrides import overridden
from dovetail_jobs.resolve import fill_params, resolve
from dovetail_jobs.rules import problems_of
from dovetail_jobs.spec import JobSpec

MAX_FILE_BYTES = 2**20


def load_file(path: Path, overrides: Sequence[str] = ()) -> JobSpec:
    """The job of a YAML file, with `--set` texts applied; relative paths start at its folder.

    Raises NotFound for a missing file and SpecError for what it says.
    """
    text = _read(path)
    return load_text(
        text, file=str(path), base=absolute(str(path), Path.cwd()).parent, overrides=overrides
    )


def load_text(text: str, *, file: str, base: Path, overrides: Sequence[str] = ()) -> JobSpec:
    """The job that `text` describes; `file` is what its problems name. Raises SpecError."""
    document = overridden(read_document(text, file=file), overrides)
    problems = list(document.problems)
    try:
        spec = resolve(load_data(document.data), base=base)
    except SpecError as error:
        problems += _readable(document, error.problems)
        if not any(problem.key.startswith(("params", "family")) for problem in problems):
            problems += _readable(document, _family_problems(document, base))
    if problems:
        raise SpecError(_in_order(document, problems))
    return spec


def load_data(data: Mapping[str, JsonValue]) -> JobSpec:
    """The job that plain JSON values describe, as strictly as YAML, not yet resolved.

    Raises SpecError, its keys dotted and without places.
    """
    plain = dict(data)
    text = json.dumps(plain)
    if "\\u0000" in text.replace("\\\\", ""):
        raise SpecError([Problem(key="", rule="must not hold a NUL character")])
    try:
        return JobSpec.model_validate_json(text, strict=True)
    except ValidationError as error:
        family = plain.get("family")
        keys = known_keys(family if isinstance(family, str) else None)
        raise SpecError(problems_of(error, plain, keys)) from None


def _readable(document: Document, problems: list[Problem]) -> list[Problem]:
    """Without those that only follow from a value that could not be read at all."""
    unread = {(problem.line, problem.key) for problem in document.problems}
    located = [document.locate(problem) for problem in problems]
    return [
        problem
        for problem in located
        if (problem.line, problem.key) not in unread and (problem.key or not unread)
    ]


def _family_problems(document: Document, base: Path) -> list[Problem]:
    """Those of the params, told also when another part of the spec is wrong."""
    family, params = document.data.get("family"), document.data.get("params", {})
    if not isinstance(family, str) or not isinstance(params, dict):
        return []
    workdir = document.data.get("workdir")
    located = absolute(workdir if isinstance(workdir, str) else "", base)
    if not os.path.isdir(located):
        return []
    try:
        fill_params(family, params, base=base, workdir=located)
    except SpecError as error:
        return error.problems
    return []


def _in_order(document: Document, problems: list[Problem]) -> list[Problem]:
    """With their places, in the order of the file, then those of `--set`."""
    located = [document.locate(problem) for problem in problems]
    return sorted(located, key=lambda problem: (problem.line is None, problem.line or 0))


def _read(path: Path) -> str:
    try:
        with path.open("rb") as stream:
            data = stream.read(MAX_FILE_BYTES + 1)
    except FileNotFoundError:
        raise NotFound(f"{path}  no such file; give the path of a job's YAML") from None
    except IsADirectoryError:
        raise _unreadable(path, "is a folder; give the path of a job's YAML") from None
    except OSError as error:
        raise _unreadable(path, f"cannot be read: {error.strerror}") from None
    if len(data) > MAX_FILE_BYTES:
        raise _unreadable(path, "is larger than 1 MiB; a job needs a few hundred bytes")
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        problem = Problem(
            key="", rule="is no UTF-8 text; save it as UTF-8", file=str(path), line=line
        )
        raise SpecError([problem]) from None


def _unreadable(path: Path, rule: str) -> SpecError:
    return SpecError([Problem(key="", rule=rule, file=str(path))])
