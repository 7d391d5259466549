"""Every error that a user of Dovetail can meet.

DovetailError                 exit code 1
├── UserError                 2   what was written is refused, nothing was changed
│   └── SpecError             2   one or more problems in a job's YAML, each with its place
├── NotFound                  3   no such job, family, file
├── AuthError                 4   missing or wrong token
├── Unreachable               5   the server or the cluster does not answer
│   └── DatabaseLost          5   the server answers, but its database does not
└── Conflict                  6   the request does not fit the present state

A message says place, value, rule and way out. All of them cross process boundaries, so all of
them pickle.
"""

from __future__ import annotations

from dataclasses import dataclass


class DovetailError(Exception):
    """A failure that has a sentence for the user; `exit_code` is what the CLI returns for it."""

    exit_code = 1
    code = "error"

    def __init__(self, message: str) -> None:
        super().__init__(message)
        self.message = message

    def __str__(self) -> str:
        return self.message


class UserError(DovetailError):
    exit_code = 2
    code = "refused"


class NotFound(DovetailError):
    exit_code = 3
    code = "not_found"


class AuthError(DovetailError):
    exit_code = 4
    code = "unauthorized"


class Unreachable(DovetailError):
    exit_code = 5
    code = "unreachable"


class DatabaseLost(Unreachable):
    code = "database_lost"


class Conflict(DovetailError):
    exit_code = 6
    code = "conflict"


@dataclass(frozen=True, slots=True)
class Problem:
    """One thing wrong with a spec: `key` is dotted (`train.steps`), `value` as written.

    `rule` says what holds and the way out.
    """

    key: str
    rule: str
    value: str | None = None
    file: str | None = None
    line: int | None = None

    def __str__(self) -> str:
        place = f"{self.file}:{self.line}" if self.file and self.line else (self.file or "")
        head = f"{place}  " if place else ""
        shown = f"{self.key}: {self.value}" if self.value is not None else self.key
        return f"{head}{shown}  {self.rule}" if shown else f"{head}{self.rule}"


class SpecError(UserError):
    """All problems of one spec, one per line."""

    code = "bad_spec"

    def __init__(self, problems: list[Problem]) -> None:
        super().__init__("\n".join(str(problem) for problem in problems))
        self.problems = problems

    def __reduce__(self) -> tuple[type[SpecError], tuple[list[Problem]]]:
        return (SpecError, (self.problems,))
