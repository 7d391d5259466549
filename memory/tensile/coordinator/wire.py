"""Events and commands as lines of JSON, `{"type": "Wanted", "number": 3, "job": "a", …}`.

A job numbers what it says. What it hears bears the number of the last word that was taken in before
it was said, so that a grant from before a return is not mistaken for one after it.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict
from typing import Any, get_args, get_type_hints

from tensile.coordinator import messages
from tensile.coordinator.apportion import Member
from tensile.coordinator.coordinator import Share
from tensile.coordinator.messages import Command, Event
from tensile.coordinator.profile import Profile, Rung

LONGEST_LINE_BYTES = 2**20
Message = Event | Command | Share | messages.Bare | messages.Look | messages.Device

_KINDS: dict[str, type[Any]] = {
    kind.__name__: kind
    for kind in (
        messages.Joined,
        messages.Left,
        messages.Wanted,
        messages.Returned,
        messages.Drifted,
        messages.Beginning,
        messages.Renewed,
        messages.Ticked,
        messages.Bare,
        messages.Look,
        messages.Device,
        messages.Admitted,
        messages.Refused,
        messages.Target,
        messages.Granted,
        messages.Begin,
        messages.Renew,
        Share,
    )
}

_TYPES = {kind: get_type_hints(kind) for kind in (*_KINDS.values(), Rung)}


class WireError(ValueError):
    """A line that is no message of this version."""


def encode(message: Message, number: int) -> bytes:
    fields = {"type": type(message).__name__, "number": number, **asdict(message)}
    return json.dumps(fields).encode() + b"\n"


def decode(line: bytes) -> tuple[int, Message]:
    """Raises WireError for a line that is no message, or one with a value of another kind."""
    try:
        fields = json.loads(line)
        kind, number = _KINDS[fields.pop("type")], fields.pop("number")
        if "member" in fields:
            fields["member"] = _member(fields["member"])
        _check("number", number, int)
        for name, value in fields.items():
            _check(name, value, _TYPES[kind][name])
        message: Message = kind(**fields)
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise WireError(f"{line[:80]!r} is no message of this version: {error}") from error
    return number, message


def _member(fields: Mapping[str, Any]) -> Member:
    rungs = fields["profile"]["rungs"]
    for rung in rungs:
        for name, value in rung.items():
            if name == "curve":
                for held_bytes in value:
                    _check(name, held_bytes, int)
            else:
                _check(name, value, _TYPES[Rung][name])
    return Member(**{**fields, "profile": Profile.from_json(rungs)})


def _check(name: str, value: object, hint: Any) -> None:
    """JSON has no types of ours: true is no number, and a number without a point may be one of
    seconds.
    """
    allowed = get_args(hint) or (hint,)
    is_number = type(value) is int and abs(value) < 2**63
    if is_number and (int in allowed or float in allowed):
        return
    if type(value) is int or type(value) not in allowed:
        raise TypeError(f"{name}: {value!r:.40} is no {getattr(hint, '__name__', hint)}")
