"""Looks at a user's family module in a child process, so that neither CLI nor server imports it.

    python -P -m dovetail_jobs.family_probe MODULE WORKDIR   < {"params": {…}, "base": "…"}

The child prints one JSON object: `{"params": {…}}` or `{"problems": [{"key", "rule", "value"}]}`.
What the module itself prints goes nowhere, and the child ends without waiting for its threads.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import traceback
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import asdict
from importlib import import_module
from pathlib import Path
from typing import Any

from pydantic import BaseModel, JsonValue

from dovetail_jobs.catalog import FreeParams, known_keys
from dovetail_jobs.errors import Problem, SpecError
from dovetail_jobs.family_params import filled

TIME_LIMIT_S = 60.0


def probe(
    module: str,
    params: Mapping[str, JsonValue],
    *,
    workdir: Path,
    base: Path,
    limit_s: float = TIME_LIMIT_S,
) -> dict[str, JsonValue]:
    """The params that `module` fills in. Blocks for at most `limit_s`; raises SpecError."""
    child = subprocess.Popen(
        [sys.executable, "-P", "-m", "dovetail_jobs.family_probe", module, str(workdir)],
        cwd=workdir,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    )
    request = json.dumps({"params": dict(params), "base": str(base)}).encode()
    with child:
        try:
            answer, _ = child.communicate(request, timeout=limit_s)
        except subprocess.TimeoutExpired:
            rule = f"did not finish its import within {limit_s:g} s; {_way_out(module)}"
            raise SpecError([_refused(module, rule)]) from None
        finally:
            _end(child)
    if not answer:
        rule = f"ended its process at import ({_exit(child.returncode)}); {_way_out(module)}"
        raise SpecError([_refused(module, rule)])
    reply = json.loads(answer)
    if "problems" in reply:
        raise SpecError([Problem(**problem) for problem in reply["problems"]])
    filled_in: dict[str, JsonValue] = reply["params"]
    return filled_in


def inspect(
    module: str, params: Mapping[str, Any], *, workdir: Path, base: Path
) -> dict[str, JsonValue]:
    """Import `module` here and fill `params` by its `Params`. Raises SpecError."""
    sys.path.insert(0, str(workdir))
    try:
        found = import_module(module)
    except (
        BaseException
    ) as error:  # the module is the user's: it may raise anything, SystemExit too
        raise SpecError([_refused(module, _raised(error, module, workdir))]) from None
    if not callable(getattr(found, "build", None)):
        raise SpecError([_refused(module, "has no build(params, context); define that function")])
    model = getattr(found, "Params", FreeParams)
    if not (isinstance(model, type) and issubclass(model, BaseModel)):
        rule = "has a Params that is no pydantic model; derive it from FamilyParams"
        raise SpecError([_refused(module, rule)])
    try:
        return filled(model, params, base=base, keys=known_keys())
    except SpecError:
        raise
    except Exception as error:  # a validator or located() of the user's
        rule = _raised(error, module, workdir, "in its Params")
        raise SpecError([Problem(key="params", rule=rule)]) from None


def main(module: str, workdir: str) -> None:
    """The child: request on stdin, reply on stdout; exits without running the module's own end."""
    reply_to = os.dup(1)
    nowhere = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, 1)
    os.dup2(nowhere, 2)
    request = json.loads(sys.stdin.buffer.read())
    try:
        base = Path(request["base"])
        params = inspect(module, request["params"], workdir=Path(workdir), base=base)
        reply: dict[str, Any] = {"params": params}
    except SpecError as error:
        reply = {"problems": [asdict(problem) for problem in error.problems]}
    with os.fdopen(reply_to, "w") as stream:
        json.dump(reply, stream)
    os._exit(0)


def _raised(error: BaseException, module: str, workdir: Path, where: str = "at import") -> str:
    """`raised ImportError at import: no module named x (acme/vit.py:3); …`."""
    kind = type(error).__name__
    said = " ".join(str(error).split())
    if isinstance(error, SyntaxError):
        said, place = error.msg, _place(error.filename or "", error.lineno, workdir)
    else:
        frames = [
            frame
            for frame in traceback.extract_tb(error.__traceback__)
            if Path(frame.filename).is_relative_to(workdir)
            and "site-packages" not in frame.filename
        ] or traceback.extract_tb(error.__traceback__)[-1:]
        place = _place(frames[-1].filename, frames[-1].lineno, workdir)
    if isinstance(error, ModuleNotFoundError) and f"{module}.".startswith(f"{error.name}."):
        return f"is no module in {workdir} or on the Python path; correct its name or set workdir"
    return f"raised {kind} {where}{': ' if said else ''}{said} ({place}); {_way_out(module)}"


def _place(filename: str, line: int | None, workdir: Path) -> str:
    path = Path(filename)
    shown = path.relative_to(workdir) if path.is_relative_to(workdir) else path
    return f"{shown}:{line}" if line else str(shown)


def _refused(module: str, rule: str) -> Problem:
    return Problem(key="family", value=module, rule=rule)


def _way_out(module: str) -> str:
    return f"try it with: python -c 'import {module}'"


def _exit(code: int) -> str:
    return f"signal {signal.Signals(-code).name}" if code < 0 else f"exit code {code}"


def _end(child: subprocess.Popen[bytes]) -> None:
    """End what the module may have started: the child leads a process group of its own."""
    with suppress(ProcessLookupError):
        os.killpg(child.pid, signal.SIGKILL)
    child.wait()


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2])
