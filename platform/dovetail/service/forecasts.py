"""Device memory of a job, foreseen before it runs: traced in a short-lived child process, and kept
by configuration.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import signal
import subprocess
import sys
import threading
from importlib.metadata import version
from pathlib import Path
from typing import Any

from dovetail.service.outlooks import foreseen
from dovetail_jobs.errors import UserError
from dovetail_jobs.spec import JobSpec

TIME_LIMIT_S = 300.0
_NICE = 10
_SHAPES = ("name", "momentum", "weight_decay")  # of an optimizer: what it keeps and what it makes
_MEASURED = ("measured_bytes", "measured_busy", "measured_overrun")
Answer = dict[str, Any]


class Forecasts:
    """`folder` keeps the answers; a damaged one is found out again."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def of(
        self,
        spec: JobSpec,
        *,
        workdir: Path | None = None,
        code: str | None = None,
        in_background: bool = False,
        limit_s: float = TIME_LIMIT_S,
    ) -> Answer:
        """The forecast of a resolved family's job. Blocks for seconds where it is not kept yet, at
        most for `limit_s`. `in_background` leaves the processors to others.

        Raises UserError for a script, and where the step cannot be foreseen.
        """
        answer = self.kept(spec, code)
        if answer is not None and "profile" in answer:  # an older Dovetail's has none
            return answer
        measured = {name: value for name, value in (answer or {}).items() if name in _MEASURED}
        answer = rehearse(
            spec, workdir=workdir, profile=True, in_background=in_background, limit_s=limit_s
        )
        answer |= measured
        self._keep(spec, code, answer)
        return answer

    def remember(
        self,
        spec: JobSpec,
        code: str | None,
        *,
        measured_bytes: int | None = None,
        measured_busy: float | None = None,
        measured_overrun: float | None = None,
    ) -> None:
        """A job of this configuration was measured to peak at so much, to keep so much of its
        device busy, and to hold so many times what a plan of it foresees: the highest is kept,
        under the same names in the answer, and forgotten with it. Of a script its peak alone.
        """
        answer = self.kept(spec, code)
        if answer is None and spec.family is None and measured_bytes is not None:
            answer = {}
        if answer is None:
            return
        given = dict(zip(_MEASURED, (measured_bytes, measured_busy, measured_overrun), strict=True))
        higher = {
            name: value
            for name, value in given.items()
            if value is not None and value > (answer.get(name) or 0)
        }
        if higher:
            self._keep(spec, code, {**answer, **higher})

    def _keep(self, spec: JobSpec, code: str | None, answer: Answer) -> None:
        kept = self._file(spec, code)
        kept.parent.mkdir(parents=True, exist_ok=True)
        temporary = kept.with_suffix(f".{os.getpid()}-{threading.get_ident()}")
        temporary.write_text(json.dumps(answer))
        temporary.replace(kept)

    def kept(self, spec: JobSpec, code: str | None) -> Answer | None:
        """What was found out before; answers at once."""
        with contextlib.suppress(OSError, ValueError, KeyError, TypeError):
            answer: Answer = json.loads(self._file(spec, code).read_text())
            foreseen(spec.name, answer)  # or else it is damaged
            return answer
        return None

    def _file(self, spec: JobSpec, code: str | None) -> Path:
        return self._folder / f"{_configuration(spec, code)}.json"


def rehearse(
    spec: JobSpec,
    *,
    workdir: Path | None = None,
    budget: str | int | None = None,
    picture: Path | None = None,
    steps: int = 0,
    profile: bool = False,
    in_background: bool = False,
    limit_s: float = TIME_LIMIT_S,
) -> Answer:
    """Ask a child process, which imports torch and the job's own code, and ends.

    With a `budget` there is a plan in the answer too, and its timeline in files named `picture`
    with .png and .svg; with `steps` the child trains so many of them and says what it measured;
    with `profile` it says what the job asks of a device that it shares.
    Raises UserError with the child's sentence.
    """
    request = {
        "spec": spec.to_json(),
        "workdir": str(workdir or spec.workdir or "") or None,
        "budget": budget,
        "picture": None if picture is None else str(picture),
        "steps": steps,
        "profile": profile,
        "parent": os.getpid(),
    }
    child = subprocess.Popen(
        [sys.executable, "-m", "dovetail_workers.rehearsal"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        start_new_session=True,
    )
    with child:
        if in_background:
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.setpriority(os.PRIO_PROCESS, child.pid, _NICE)
        try:
            out, err = child.communicate(json.dumps(request).encode(), timeout=limit_s)
        except subprocess.TimeoutExpired:
            raise UserError(
                f"job {spec.name}: its memory was not foreseen within {limit_s:g} s"
            ) from None
        finally:
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.killpg(child.pid, signal.SIGKILL)
    if not out:
        lines = err.decode(errors="replace").strip().splitlines()
        cause = lines[-1] if lines else f"exit code {child.returncode}"
        raise UserError(f"job {spec.name}: its memory cannot be foreseen: {cause}")
    answer: Answer = json.loads(out)
    if "refused" in answer:
        raise UserError(answer["refused"])
    return answer


def _configuration(spec: JobSpec, code: str | None) -> str:
    """Equal for jobs whose steps are equal: what does not shape a step is left out. The world size
    is in it, since the batch is divided by it; and who manages memory, since what a job took
    without a manager, with all that its heap keeps, says little of what it takes with one.
    """
    known = spec.to_json()
    train = {**known["train"]} if known["train"] else {}
    if train:
        train["optimizer"] = {name: train["optimizer"][name] for name in _SHAPES}
    for other in ("steps", "epochs", "seed", "validate", "checkpoint", "schedule"):
        train.pop(other, None)
    versions = {name: version(name) for name in ("torch", "dovetail")}
    size = {name: known["resources"][name] for name in ("devices", "cpus")}
    policy = known["memory"]["policy"]
    parts = [known["family"], known["params"], train, size, code, versions, policy]
    if spec.script is not None:
        parts += [known["script"], known["env"]]
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()[:32]
