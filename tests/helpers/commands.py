"""Commands run in this process, and their texts held against those that are kept."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from helpers.fake_service import FakeService

GOLDEN = Path(__file__).parents[1] / "golden" / "cli"


@dataclass(frozen=True)
class Said:
    code: int
    out: str
    err: str

    @property
    def json(self) -> Any:
        return json.loads(self.out)


Run = Callable[..., Said]


def golden(name: str, text: str, service: FakeService, tmp_path: Path) -> None:
    """Compare with a text in tests/golden/cli, in which what differs from run to run has a name."""
    for value, shown in ((service.url, "URL"), (str(tmp_path), "TMP")):
        text = text.replace(value, shown)
    now = tmp_path / name
    now.write_text(text)
    expected = GOLDEN / name
    assert expected.exists(), f"if this is wanted: cp {now} {expected}"
    assert expected.read_text() == text, f"if this is wanted: cp {now} {expected}"
