"""`python -m tensile`: what a step will take, for a user who has no platform."""

import json
import re
import runpy
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

import tensile
from tensile.__main__ import main
from tensile.budget import at_least, budget_bytes
from tensile.preview import preview

PROGRAM = """
import torch
from torch import nn

def build():
    model = nn.Sequential(*[m for _ in range(8) for m in (nn.Linear(256, 256), nn.GELU())])
    optimizer = torch.optim.AdamW(model.parameters())

    def step(batch):
        model(batch).square().mean().backward()
        optimizer.step()
        optimizer.zero_grad()

    return step, model, optimizer, torch.randn(2048, 256)
"""


@pytest.fixture
def program(tmp_path: Path) -> str:
    file = tmp_path / "program.py"
    file.write_text(PROGRAM)
    return str(file)


def test_a_plan_at_half_the_peak_keeps_it_and_is_drawn(
    program: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    picture = tmp_path / "step.png"
    assert main(["plan", program, "--budget", "50%", "--picture", str(picture), "--json"]) == 0
    answer = json.loads(capsys.readouterr().out)
    forecast, plan = answer["forecast"], answer["plan"]
    assert sum(forecast["by_class"].values()) == forecast["peak_bytes"]
    assert max(forecast["floor_bytes"], plan["peak_bytes"]) <= plan["budget_bytes"]
    assert plan["budget_bytes"] == forecast["peak_bytes"] // 2
    assert plan["peak_bytes"] + plan["spared_bytes"] <= plan["budget_bytes"]
    assert plan["swaps"] + plan["recomputations"] > 0
    assert answer["pictures"] == [str(picture), str(picture.with_suffix(".svg"))]
    assert picture.read_bytes().startswith(b"\x89PNG")
    assert "<svg" in picture.with_suffix(".svg").read_text()


@pytest.mark.long
def test_a_trial_of_the_plan_measures_what_was_foreseen(
    program: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    picture = tmp_path / "step.png"
    asked = ["plan", program, "--budget", "60%", "--steps", "2", "--picture", str(picture)]
    assert main([*asked, "--json"]) == 0
    answer = json.loads(capsys.readouterr().out)
    measured = answer["measured"]
    assert measured["steps"] == 2
    assert measured["moved_bytes"] > 0
    budget_bytes = answer["plan"]["budget_bytes"]
    assert budget_bytes == int(0.6 * answer["forecast"]["peak_bytes"])
    assert 0 < measured["peak_bytes"] <= 1.05 * budget_bytes
    assert "measured peak" in picture.with_suffix(".svg").read_text()
    assert main(["plan", program, "--budget", "60%", "--steps", "1"]) == 0
    assert "measured     peak" in capsys.readouterr().out


def test_the_plan_is_the_one_that_a_session_begins_with(program: str) -> None:
    parts = runpy.run_path(program)["build"]()
    trace = tensile.trace(*parts)
    found = preview(trace, "60%")["plan"]
    with tensile.Session(*parts[1:3], "60%") as session:
        session.prepare(parts[0], parts[3])
        assert session.stats().budget_bytes == found["budget_bytes"]
        (schedule,) = session._adoption.schedules
        assert schedule.plan.peak_bytes == found["peak_bytes"]
        assert schedule.plan.budget_bytes == found["budget_bytes"] - found["spared_bytes"]


def test_the_floor_that_is_shown_is_the_least_that_is_planned_and_trained_with(
    program: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["forecast", program, "--json"]) == 0
    floor = json.loads(capsys.readouterr().out)["forecast"]["floor_bytes"]
    assert main(["plan", program, "--budget", str(floor), "--steps", "1"]) == 0
    shown = re.search(r"floor +(.*) is the least budget", capsys.readouterr().out)
    assert shown is not None
    assert main(["plan", program, "--budget", shown[1]]) == 0
    for steps in ("0", "1"):
        assert main(["plan", program, "--budget", str(floor - 1), "--steps", steps]) == 2
        assert f"below the floor of {floor} bytes" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("place", "said"),
    [
        ("nowhere/step.png", "there is no folder"),
        ("step.pdf", "must end in .png or .svg"),
        ("folder.png", "is a folder"),
        ("folder", "is a folder"),
        ("other", "is a folder"),
    ],
)
def test_a_picture_that_cannot_be_written_is_refused_before_the_work(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], place: str, said: str
) -> None:
    for name in ("folder", "folder.png", "other.svg"):
        (tmp_path / name).mkdir()
    program = tmp_path / "program.py"
    program.write_text("raise OSError('this was run')")
    asked = ["plan", str(program), "--budget", "60%", "--picture", str(tmp_path / place)]
    assert main(asked) == 2
    error = capsys.readouterr().err
    assert error.startswith(f"error: --picture {tmp_path / place}  ")
    assert said in error


@given(size_bytes=st.integers(1, 2**45))
def test_a_size_that_is_said_to_be_enough_is_enough(size_bytes: int) -> None:
    enough = budget_bytes(at_least(size_bytes))
    assert enough is not None
    assert size_bytes <= enough <= 1.1 * size_bytes + 1


def test_a_forecast_is_told_in_lines(program: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["forecast", program]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].startswith("forecast")
    assert any(line.startswith("floor") for line in lines)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("x = 1", "has no function build()"),
        ("raise OSError('no data here')", "failed: OSError: no data here"),
        ("def build():\n    return 1, 2", "must return (train_step, model, optimizer, batch)"),
    ],
)
def test_a_file_that_cannot_be_used_is_named_with_its_cause(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], text: str, said: str
) -> None:
    file = tmp_path / "mine.py"
    file.write_text(text)
    assert main(["forecast", str(file)]) == 2
    error = capsys.readouterr().err
    assert error.startswith(f"error: {file}: ")
    assert said in error


@pytest.mark.parametrize(
    ("budget", "said"),
    [
        ("1KiB", "below the floor"),
        ("a lot", "is no size"),
        ("0%", "is no size"),
        ("101%", "is no size"),
        ("1.5", "has no unit"),
    ],
)
def test_a_budget_that_cannot_be_kept_is_refused(
    program: str, capsys: pytest.CaptureFixture[str], budget: str, said: str
) -> None:
    assert main(["plan", program, "--budget", budget]) == 2
    assert said in capsys.readouterr().err
