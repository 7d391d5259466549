"""Text and JSON that both databases keep alike, whatever a program reported.

PostgreSQL refuses NUL characters, NaN in JSON and names longer than their column; neither database
keeps half a surrogate pair. One report with any of these must not stop the reading of a journal.
"""

from __future__ import annotations

import hashlib
import json
import math
from typing import Any

from sqlalchemy import Dialect, String, Text
from sqlalchemy.types import TypeDecorator

NAME_LENGTH = 255
_MARK_LENGTH = 9  # of what stands for the end of a name that was cut


class Prose(TypeDecorator[str]):
    """Text of any length."""

    impl = Text
    cache_ok = True

    def process_bind_param(self, value: str | None, dialect: Dialect) -> str | None:
        return None if value is None else storable(value)


class Name(TypeDecorator[str]):
    """Text of at most `length` characters; of a longer one, its beginning and a hash.

    So two long names stay two names, and the same one is found again.
    """

    impl = String
    cache_ok = True

    def __init__(self, length: int = NAME_LENGTH) -> None:
        super().__init__(length)
        self.length = length

    def process_bind_param(self, value: str | None, dialect: Dialect) -> str | None:
        return None if value is None else name(value, self.length)


def storable(text: str) -> str:
    """With U+FFFD in the place of what a database would refuse."""
    if "\x00" not in text and text.isascii():
        return text
    return "".join("\ufffd" if _refused(each) else each for each in text)


def name(text: str, length: int = NAME_LENGTH) -> str:
    """The text as a `Name` of that length keeps it."""
    kept = storable(text)
    if len(kept) <= length:
        return kept
    digest = hashlib.sha256(kept.encode()).hexdigest()[: _MARK_LENGTH - 1]
    return f"{kept[: length - _MARK_LENGTH]}~{digest}"


def dumps(value: Any) -> str:
    """JSON that both databases read: null for numbers that are not finite, storable text."""
    return json.dumps(_plain(value), allow_nan=False)


def _plain(value: Any) -> Any:
    match value:
        case str():
            return storable(value)
        case float():
            return value if math.isfinite(value) else None
        case dict():
            return {_plain(key): _plain(item) for key, item in value.items()}
        case list() | tuple():
            return [_plain(item) for item in value]
        case _:
            return value


def _refused(character: str) -> bool:
    return character == "\x00" or "\ud800" <= character <= "\udfff"
