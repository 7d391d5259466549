"""What an attempt runs: the command line and the environment of its training process. Pure, apart
from reading secrets.
"""

from __future__ import annotations

import os
import shlex
import sys
from collections.abc import Mapping
from pathlib import Path

from dovetail_jobs.errors import UserError
from dovetail_jobs.spec import JobSpec
from dovetail_workers import cuda_fence, shared_device
from dovetail_workers.launch import Launch
from dovetail_workers.process_tree import ATTEMPT_VARIABLE

_SHELL_SYNTAX = set("|&;<>()$`\"'\\\n*?[]{}~#")
# Ray's own tokens and addresses are not the program's, nor is the way to our database.
# A Dovetail that was started inside a job does not share that job's device.
_NOT_INHERITED = (
    "RAY_", "PYTHONPATH", "DOVETAIL_DATABASE", "DOVETAIL_TOKEN", "DOVETAIL_URL",
    *shared_device.VARIABLES,
)  # fmt: skip


def command(launch: Launch, scratch: Path) -> list[str]:
    """A family runs in our rank process; a script by itself, through a shell only where it uses
    shell syntax.
    """
    spec = JobSpec.model_validate(launch.spec)
    python = [sys.executable, "-m"]
    if spec.script is None:
        return [*python, "dovetail_workers.rank", str(os.getpid()), str(scratch / "launch.json")]
    plain = not _SHELL_SYNTAX.intersection(spec.script) and "=" not in spec.script.split()[0]
    words = shlex.split(spec.script) if plain else ["/bin/sh", "-c", spec.script]
    return [*python, "dovetail_workers.exec_script", str(os.getpid()), *words]


def secret_values(launch: Launch, environment: Mapping[str, str]) -> dict[str, str]:
    """The job's secrets by name, read where the worker runs. Raises UserError naming the reference,
    never the value.
    """
    found: dict[str, str] = {}
    for name, reference in launch.spec.get("secrets", {}).items():
        kind, _, place = reference.partition(":")
        if kind == "env":
            if place not in environment:
                raise UserError(
                    f"secrets.{name}: {reference}  "
                    f"the worker's environment on {launch.node} has no {place}; "
                    "set it where Ray is started, or use file:PATH"
                )
            found[name] = environment[place]
        else:
            try:
                found[name] = Path(place).expanduser().read_text().strip()
            except OSError as error:
                raise UserError(
                    f"secrets.{name}: {reference}  {error.strerror} on {launch.node}"
                ) from None
    return found


def environment(
    launch: Launch,
    scratch: Path,
    folder: Path,
    inherited: Mapping[str, str],
    secrets: Mapping[str, str],
    resume_folder: Path | None,
    device_environment: Mapping[str, str],
) -> dict[str, str]:
    """The variables of the training process, which runs in `folder`. The thread count follows
    `resources.cpus`, so that numbers depend on the spec only. `device_environment` is how it shares
    its device (`shared_device.environment`).
    """
    spec = JobSpec.model_validate(launch.spec)
    kept = {k: v for k, v in inherited.items() if not k.startswith(_NOT_INHERITED)}
    threads = str(max(1, int(spec.resources.cpus)))
    kind, _, index = launch.device.partition(":")
    values = {
        **kept,
        "PATH": f"{Path(sys.executable).parent}{os.pathsep}{kept.get('PATH', os.defpath)}",
        "PYTHONUNBUFFERED": "1",
        "OMP_NUM_THREADS": threads,
        "MKL_NUM_THREADS": threads,
        "OPENBLAS_NUM_THREADS": threads,
        "CUDA_VISIBLE_DEVICES": index if kind == "cuda" else "",
        **spec.env,
        **cuda_fence.environment(launch, {**kept, **spec.env}.get(cuda_fence.VARIABLE)),
        **secrets,
        **device_environment,
        ATTEMPT_VARIABLE: launch.attempt_id,
        "DOVETAIL_JOB": launch.job_id,
        "DOVETAIL_ATTEMPT": str(launch.attempt),
        "DOVETAIL_RANK": "0",
        "DOVETAIL_WORLD_SIZE": "1",
        "DOVETAIL_DEVICE": "cuda:0" if kind == "cuda" else "cpu",
        "DOVETAIL_DEVICE_MEMORY": str(launch.device_bytes),
        "DOVETAIL_STORAGE": launch.storage_uri,
        "DOVETAIL_REPORTS": str(scratch / "reports"),
        "DOVETAIL_CHECKPOINTS": str(scratch / "checkpoints"),
    }
    if spec.workdir is not None:
        own = [str(folder), *filter(None, [spec.env.get("PYTHONPATH")])]
        values["PYTHONPATH"] = os.pathsep.join(own)
        values["DOVETAIL_SUBMIT_DIR"] = spec.workdir
    if resume_folder is not None:
        values["DOVETAIL_RESUME"] = str(resume_folder)
    return values
