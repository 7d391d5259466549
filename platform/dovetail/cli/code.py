"""The code of submitted jobs: their workdirs, packed before anything is submitted."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from dovetail.cli.output import Json, say
from dovetail_jobs.errors import Problem, SpecError
from dovetail_jobs.units import format_bytes

if TYPE_CHECKING:
    from dovetail.client import Client

LARGE_BYTES = 10 * 2**20


@dataclass(frozen=True, slots=True, kw_only=True)
class PackedCode:
    """An archive on this machine, there for as long as `packed_code` lasts."""

    sha256: str
    archive: Path

    def send(self, client: Client) -> None:
        """Let the server keep it, if it does not yet."""
        client.keep_code(self.sha256, self.archive)


@contextmanager
def packed_code(files: Sequence[Path], specs: Sequence[Json]) -> Iterator[list[PackedCode | None]]:
    """The code of each spec, None for a job that brings none; one archive per workdir.

    Says what is large or left out. Raises SpecError with what is wrong in any of the workdirs.
    """
    import tempfile

    with tempfile.TemporaryDirectory(prefix="dovetail-submit-") as scratch:
        packed: dict[str, PackedCode] = {}
        problems: list[Problem] = []
        for file, spec in zip(files, specs, strict=True):
            workdir = spec["workdir"]
            if workdir is None or workdir in packed:
                continue
            try:
                packed[workdir] = _pack(Path(workdir), Path(scratch, str(len(packed))))
            except SpecError as error:
                problems += [
                    Problem(key=one.key, value=one.value, rule=one.rule, file=str(file))
                    for one in error.problems
                ]
        if problems:
            raise SpecError(problems)
        yield [packed.get(spec["workdir"]) for spec in specs]


def _pack(workdir: Path, archive: Path) -> PackedCode:
    from dovetail.settings import Settings
    from dovetail_jobs.snapshot.archive import pack
    from dovetail_jobs.snapshot.workdir import WorkdirRefused, survey

    settings = Settings.from_environment()
    try:
        found = survey(
            workdir, limit_bytes=settings.code_limit_bytes, leave_out=settings.own_folders
        )
        snapshot = pack(found, archive)
    except WorkdirRefused as error:
        problem = Problem(key="workdir", value=error.folder, rule=error.rule)
        raise SpecError([problem]) from None
    for sentence in found.left_out:
        say(f"{workdir}: {sentence}")
    if snapshot.bytes > LARGE_BYTES:
        size = format_bytes(snapshot.bytes)
        say(f"{workdir}: {snapshot.files} files of {size} are sent with the job")
    return PackedCode(sha256=snapshot.sha256, archive=archive)
