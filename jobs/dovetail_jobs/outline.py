"""The keys that a spec may have, read from its pydantic models.

Hints to the nearest key and the typing of `--set` look here, so neither can disagree with the spec.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from difflib import SequenceMatcher
from types import NoneType, UnionType
from typing import Annotated, Any, Union, get_args, get_origin

from pydantic import BaseModel


@dataclass(frozen=True, slots=True, kw_only=True)
class Key:
    """`free`: a mapping whose keys the user chooses. `nullable`: may be null.

    `text`: its value, or each value in it when `free`, is text as it stands.
    """

    text: bool = False
    free: bool = False
    nullable: bool = False


def outline(model: type[BaseModel], prefix: str = "") -> dict[str, Key]:
    """Every dotted key of `model` and of the models in it, by its name in YAML, in their order."""
    keys: dict[str, Key] = {}
    for name, field in model.model_fields.items():
        dotted = f"{prefix}{field.alias or name}"
        members = _members(field.annotation)
        values = [member for member in members if member is not NoneType]
        free = [get_args(value) for value in values if get_origin(value) is dict]
        keys[dotted] = Key(
            text=_members(free[0][1]) == [str] if free else values == [str],
            free=bool(free),
            nullable=NoneType in members,
        )
        for member in values:
            if isinstance(member, type) and issubclass(member, BaseModel):
                keys |= outline(member, f"{dotted}.")
    return keys


def key_of(dotted: str, keys: Mapping[str, Key]) -> Key | None:
    """What is known of a key, also of one inside a free mapping (`labels.team`)."""
    if dotted in keys:
        return keys[dotted]
    parent = keys.get(dotted.partition(".")[0])
    return Key(text=parent.text) if parent is not None and parent.free else None


def nearest(dotted: str, keys: Iterable[str]) -> list[str]:
    """Up to three dotted keys that an unknown one may have meant, the likeliest first.

    First a slip of a letter beside it, then a key of this very name elsewhere (`lr` for
    `train.optimizer.lr`), a slip of a letter elsewhere, and last what is only somewhat alike.
    """
    parent, _, leaf = dotted.rpartition(".")
    beside: dict[str, float] = {}
    elsewhere: dict[str, float] = {}
    for key in keys:
        key_parent, _, key_leaf = key.rpartition(".")
        likeness = _likeness(leaf, key_leaf)
        if key == dotted or key.endswith(f".{dotted}"):
            likeness = 2.0  # `optimizer.lr` for `train.optimizer.lr` alone
        (beside if key_parent == parent else elsewhere)[key] = likeness
    for known, least in ((beside, 0.8), (elsewhere, 0.8), (beside, 0.6)):
        best = max(known.values(), default=0.0)
        if best >= least:
            return [key for key, likeness in known.items() if likeness == best][:3]
    return []


def nearest_name(name: str, names: Iterable[str], *, cutoff: float = 0.6) -> list[str]:
    """The one name spelt most like `name`, or none."""
    likeness = {other: _likeness(name, other) for other in names}
    best = max(likeness, key=likeness.__getitem__, default=None)
    return [best] if best is not None and likeness[best] >= cutoff else []


def _likeness(one: str, other: str) -> float:
    return SequenceMatcher(None, one.lower(), other.lower()).ratio()


def _members(annotation: Any) -> list[Any]:
    """The alternatives of a type, without `Annotated`."""
    origin = get_origin(annotation)
    if origin is Annotated:
        return _members(get_args(annotation)[0])
    if origin in (Union, UnionType):
        return [member for part in get_args(annotation) for member in _members(part)]
    return [annotation]
