"""`memory forecast`, `memory plan`: what a job will take of a device, before it runs. No server is
needed.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from dovetail.cli.options import AsJson
from dovetail.cli.output import Json, print_facts, print_json, say
from dovetail_jobs.errors import UserError
from dovetail_jobs.units import at_least, format_bytes

if TYPE_CHECKING:
    from dovetail_jobs.spec import JobSpec

ABOUT = "Foresee the device memory of a job, and plan it under a budget."
app = typer.Typer(rich_markup_mode=None, no_args_is_help=True, help=ABOUT)

File = Annotated[Path, typer.Argument(metavar="FILE", help="A job's YAML.")]
Changes = Annotated[
    list[str] | None,
    typer.Option("--set", metavar="KEY=VALUE", help="Override a key: params.batch_size=64."),
]


@app.command("forecast")
def forecast(file: File, changes: Changes = None, as_json: AsJson = False) -> None:
    """Say how much device memory a training step takes, and how little it could take."""
    answer = _rehearse(file, changes)
    if as_json:
        print_json(answer)
    else:
        print_facts(forecast_facts(answer["forecast"]))
        _say_notes(answer)


@app.command("plan")
def plan(
    file: File,
    budget: Annotated[
        str,
        typer.Option(metavar="SIZE", help="1GiB, 800MB, plain bytes, or 60% of the forecast peak."),
    ],
    picture: Annotated[
        Path | None,
        typer.Option(help="Draw the step's timeline into this file, as .png and .svg."),
    ] = None,
    steps: Annotated[
        int, typer.Option(min=0, help="Train so many steps here, and measure the peak.")
    ] = 0,
    changes: Changes = None,
    as_json: AsJson = False,
) -> None:
    """Plan a training step under a budget: what moves, and what it costs."""
    if picture is not None:
        _check_picture(picture)
    answer = _rehearse(file, changes, budget=budget, picture=picture, steps=steps)
    if as_json:
        print_json(answer)
        return
    found = answer["plan"]
    moves = f"{found['swaps']} swaps ({format_bytes(found['moved_bytes'])} each way)"
    stall = f"{found['stall_s'] / max(found['step_s'], 1e-9):.0%} of it waiting"
    print_facts(
        [
            *forecast_facts(answer["forecast"]),
            ("budget", format_bytes(found["budget_bytes"])),
            (
                "planned",
                f"peak {format_bytes(found['peak_bytes'])}, and "
                f"{format_bytes(found['spared_bytes'])} left free",
            ),
            ("by", f"{moves}, {found['recomputations']} recomputations"),
            ("step", f"{found['step_s']:.3g} s by estimate, {stall}"),
            *_measured(answer.get("measured")),
            ("picture", ", ".join(answer.get("pictures", ()))),
        ]
    )
    _say_notes(answer)


def forecast_facts(found: Json) -> list[tuple[str, str]]:
    """The lines that `memory` and `submit --dry-run` print of a forecast."""
    classes = ", ".join(
        f"{kind.replace('_', ' ')} {format_bytes(size)}"
        for kind, size in sorted(found["by_class"].items(), key=lambda item: -item[1])
    )
    margin = format_bytes(found["margin_bytes"])
    return [
        ("forecast", f"peak {format_bytes(found['peak_bytes'])} (± {margin})"),
        ("at the peak", classes),
        ("floor", f"{at_least(found['floor_bytes'])} is the least that a plan can keep"),
    ]


def _measured(found: Json | None) -> list[tuple[str, str]]:
    if found is None:
        return []
    peak, moved = format_bytes(found["peak_bytes"]), format_bytes(found["moved_bytes"])
    return [
        ("measured", f"peak {peak}, {found['step_s']:.3g} s for a step, {moved} out in each"),
    ]


def _check_picture(picture: Path) -> None:
    """Before the work. Raises UserError."""
    from tensile.picture_files import PictureError, picture_files

    try:
        picture_files(picture)
    except PictureError as error:
        raise UserError(f"--picture {error}") from None


def _rehearse(file: Path, changes: list[str] | None, **asked: Any) -> Json:
    from dovetail.service.forecasts import rehearse

    return rehearse(_spec(file, changes or []), **asked)


def _spec(file: Path, changes: list[str]) -> JobSpec:
    from dovetail_jobs.load import load_file

    return load_file(file, changes)


def _say_notes(answer: Json) -> None:
    for note in answer["notes"]:
        say(f"note: {note}")
