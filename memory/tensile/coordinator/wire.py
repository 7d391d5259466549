"""Events and commands as lines of JSON, `{"type": "Wanted", "number": 3, "job": "a", …}`.

A job numbers what it says. What it hears bears the number of the last word that was taken in before
it was said, so that a grant from before a return is not mistaken for one after it.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

from tensile.coordinator import messages
from tensile.coordinator.apportion import Member
from tensile.coordinator.coordinator import Share
from tensile.coordinator.messages import Command, Event
from tensile.coordinator.profile import Profile

LONGEST_LINE_BYTES = 2**20
Message = Event | Command | Share | messages.Look | messages.Device

_KINDS: dict[str, type[Any]] = {
    kind.__name__: kind
    for kind in (
        messages.Joined,
        messages.Left,
        messages.Wanted,
        messages.Returned,
        messages.Drifted,
        messages.Beginning,
        messages.Ticked,
        messages.Look,
        messages.Device,
        messages.Admitted,
        messages.Refused,
        messages.Target,
        messages.Granted,
        messages.Begin,
        Share,
    )
}


class WireError(ValueError):
    """A line that is no message of this version."""


def encode(message: Message, number: int) -> bytes:
    fields = {"type": type(message).__name__, "number": number, **asdict(message)}
    return json.dumps(fields).encode() + b"\n"


def decode(line: bytes) -> tuple[int, Message]:
    """Raises WireError."""
    try:
        fields = json.loads(line)
        kind, number = _KINDS[fields.pop("type")], int(fields.pop("number"))
        if "member" in fields:
            fields["member"] = _member(fields["member"])
        message: Message = kind(**fields)
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise WireError(f"{line[:80]!r} is no message of this version: {error}") from error
    return number, message


def _member(fields: Mapping[str, Any]) -> Member:
    return Member(**{**fields, "profile": Profile.from_json(fields["profile"]["rungs"])})
