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
    """`text`: its value, or each value in it when `free`, is text as it stands. `free`: a mapping

    whose keys the user chooses. `nullable`: may be null.
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

    A key of exactly this name elsewhere (`lr` for `train.optimizer.lr`) counts before one that
    is only spelt alike beside it, unless that is a slip of a letter.
    """
    parent, _, leaf = dotted.rpartition(".")
    known = list(keys)
    slips, alike = [], []
    for key in known:
        key_parent, _, key_leaf = key.rpartition(".")
        likeness = SequenceMatcher(None, leaf.lower(), key_leaf.lower()).ratio()
        if key_parent == parent and likeness >= 0.8:
            slips.append((-likeness, key))
        elif key_parent == parent and likeness >= 0.6:
            alike.append((-likeness, key))
    if slips:
        return [min(slips)[1]]
    whole = [key for key in known if key == dotted or key.endswith(f".{dotted}")]
    same = whole or [key for key in known if key.rpartition(".")[2] == leaf]
    if same:
        return same[:3]
    if alike:
        return [min(alike)[1]]
    return nearest_name(dotted, known, cutoff=0.8)


def nearest_name(name: str, names: Iterable[str], *, cutoff: float = 0.6) -> list[str]:
    """The one name spelt most like `name`, or none."""
    ratios = [
        (-SequenceMatcher(None, name.lower(), other.lower()).ratio(), other) for other in names
    ]
    best = min(ratios, default=(0.0, ""))
    return [best[1]] if -best[0] >= cutoff else []


def _members(annotation: Any) -> list[Any]:
    """The alternatives of a type, without `Annotated`."""
    origin = get_origin(annotation)
    if origin is Annotated:
        return _members(get_args(annotation)[0])
    if origin in (Union, UnionType):
        return [member for part in get_args(annotation) for member in _members(part)]
    return [annotation]
