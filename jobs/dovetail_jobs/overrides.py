"""`--set a.b=c`: values from the command line, merged into the document before it is checked.

A value is read as YAML, so `--set train.optimizer.betas=[0.9,0.95]` and `--set params={…}` work;
where the spec holds text it is taken as it stands (`--set name=123` is the text 123). A later one
wins, and `null` takes a key back.
"""

from __future__ import annotations

import copy
from collections.abc import Iterable, Mapping
from dataclasses import replace

from pydantic import JsonValue

from dovetail_jobs.catalog import known_keys
from dovetail_jobs.document import Document, Place, read_value, text_rule
from dovetail_jobs.errors import Problem, SpecError
from dovetail_jobs.outline import Key, key_of


def overridden(document: Document, settings: Iterable[str]) -> Document:
    """The document with every `KEY=VALUE`; what cannot be set is among its problems."""
    changed = Document(
        data=copy.deepcopy(document.data),
        places=dict(document.places),
        problems=list(document.problems),
    )
    for setting in settings:
        try:
            _set(changed, setting)
        except SpecError as error:
            changed.problems += error.problems
    return changed


def _set(document: Document, setting: str) -> None:
    key, equals, text = setting.partition("=")
    place = Place(file=_place(key, setting), line=None, written=text)
    if not equals or not all(key.split(".")):
        rule = "must be KEY=VALUE, such as train.steps=10"
        raise SpecError([Problem(key="", rule=rule, file=place.file)])
    family = document.data.get("family")
    keys = known_keys(family if isinstance(family, str) else None)
    value = _value(key, text, place, key_of(key, keys))
    *parents, last = _steps(key, keys)
    inner: dict[str, JsonValue] = document.data
    for depth, step in enumerate(parents, start=1):
        dotted = ".".join(parents[:depth])
        below = inner.get(step)
        if below is None:
            below = inner[step] = {}
            document.places[dotted] = replace(place, written=None)
        if not isinstance(below, dict):
            rule = f"is no mapping, so it has no key {last}; set {dotted} as a whole"
            raise SpecError([Problem(key=dotted, rule=rule, file=place.file)])
        inner = below
    inner[last] = value
    for under in [other for other in document.places if other.startswith(f"{key}.")]:
        del document.places[under]
    document.places[key] = place


def _value(key: str, text: str, place: Place, known: Key | None) -> JsonValue:
    if known is None or not known.text or known.free:
        return read_value(text, file=place.file, key=key)
    rule = text_rule(text)
    if rule is not None:
        raise SpecError([Problem(key=key, rule=rule, file=place.file)])
    return None if known.nullable and text == "null" else text


def _steps(key: str, keys: Mapping[str, Key]) -> list[str]:
    """The path to descend. A label may have dots of its own: `labels.team.name` is one label."""
    head, _, rest = key.partition(".")
    known = keys.get(head)
    if rest and known is not None and known.free and known.text:
        return [head, rest]
    return key.split(".")


def _place(key: str, setting: str) -> str:
    """The argument as given; a secret's value is never shown."""
    return f"--set {key}=…" if key.startswith("secrets") else f"--set {setting}"
