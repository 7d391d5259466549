"""pydantic's errors in our words: one short rule per key, with the way out.

`_RULES` maps pydantic's error types (https://docs.pydantic.dev/latest/errors/validation_errors/).
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping
from typing import Any

from pydantic import JsonValue, ValidationError
from pydantic_core import ErrorDetails

from dovetail_jobs.errors import Problem
from dovetail_jobs.outline import Key, nearest
from dovetail_jobs.spec import ENV_PATTERN, NAME_PATTERN, SECRET_PATTERN

_PATTERNS = {
    NAME_PATTERN: "must be letters, digits, '.', '_' and '-', with a letter or digit at both ends",
    ENV_PATTERN: "must be letters, digits and '_', and not start with a digit",
    SECRET_PATTERN: "must name its source, env:NAME or file:PATH, not the secret itself",
}


def problems_of(
    error: ValidationError, data: JsonValue, keys: Mapping[str, Key], *, prefix: str = ""
) -> list[Problem]:
    """One problem per key. `data` is what was validated, `keys` all that a spec may have.

    `prefix` (`params.`) comes before each key, for a model that is a part of the spec.
    """
    found: dict[str, tuple[JsonValue, list[str]]] = {}
    for detail in error.errors(include_url=False):
        key, value = _key(detail, data)
        rule = _rule(detail, f"{prefix}{key}", value, keys)
        found.setdefault(f"{prefix}{key}".rstrip("."), (value, []))[1].append(rule)
    return [
        Problem(key=key, rule=_joined(rules), value=_shown(key, value))
        for key, (value, rules) in found.items()
    ]


def _key(detail: ErrorDetails, data: JsonValue) -> tuple[str, JsonValue]:
    """The dotted key and its value: pydantic's location as far as the data goes.

    What lies past the data are pydantic's own words for the member of a union or for a key.
    """
    if detail["type"] == "rule":
        path: tuple[int | str, ...] = tuple(filter(None, detail["ctx"]["key"].split(".")))
    else:
        path = detail["loc"]
    found: list[str] = []
    for step in path:
        if isinstance(data, dict) and step in data:
            data = data[str(step)]
        elif isinstance(data, list) and isinstance(step, int) and step < len(data):
            data = data[step]
        else:
            if detail["type"] == "missing" and isinstance(step, str):
                return ".".join([*found, step]), None
            break
        found.append(str(step))
    return ".".join(found), data


def _rule(detail: ErrorDetails, key: str, value: JsonValue, keys: Mapping[str, Key]) -> str:
    if detail["type"] == "extra_forbidden":
        return _unknown(key, keys)
    rule = _RULES.get(detail["type"])
    if rule is None:
        return detail["msg"][:1].lower() + detail["msg"][1:]
    return rule(detail.get("ctx", {}), detail["loc"], value)


def _unknown(key: str, keys: Mapping[str, Key]) -> str:
    parent = key.rpartition(".")[0]
    owner = f"no key of {parent}" if parent else "no key of a job"
    if key in keys:
        return f"is written with a dot; nest it, as {parent}: {{{key.rpartition('.')[2]}: …}}"
    near = nearest(key, keys)
    if near:
        return f"{owner}; did you mean {' or '.join(near)}?"
    siblings = [name.rpartition(".")[2] for name in keys if name.rpartition(".")[0] == parent]
    return f"{owner}; it has {', '.join(siblings)}" if siblings else f"{owner}; remove it"


def _joined(rules: list[str]) -> str:
    """The rules of one union as one: `must be auto, true or false`."""
    if len(rules) > 1 and all(rule.startswith("must be ") for rule in rules):
        *others, last = dict.fromkeys(rule[8:] for rule in rules)
        return f"must be {', '.join(others)}{',' if ' or ' in last else ' or'} {last}"
    return rules[-1]


def _literal(ctx: Mapping[str, Any]) -> str:
    words = [word.strip("'") for word in re.split(r", | or ", str(ctx["expected"]))]
    return f"must be one of {', '.join(words)}" if len(words) > 1 else f"must be {words[0]}"


def _text(value: JsonValue) -> str:
    if isinstance(value, bool | int | float):
        return f'must be text; write "{json.dumps(value)}"'
    return "must be text"


def _number(limit: Any) -> str:
    return f"{limit:g}" if isinstance(limit, float) else str(limit)


def _shown(key: str, value: JsonValue) -> str | None:
    if value is None or not key or key.partition(".")[0] == "secrets":
        return None
    text = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
    if isinstance(value, dict | list):
        return text if len(text) <= 60 else None
    return text if len(text) <= 60 else text[:60] + "…"


_RULES: dict[str, Callable[[Mapping[str, Any], tuple[int | str, ...], JsonValue], str]] = {
    "missing": lambda ctx, loc, value: (
        "is missing; add it" if isinstance(loc[-1], str) else f"must have {loc[-1] + 1} items"
    ),
    "rule": lambda ctx, loc, value: str(ctx["rule"]),
    "value_error": lambda ctx, loc, value: str(ctx["error"]),
    "int_type": lambda ctx, loc, value: "must be a whole number",
    "int_from_float": lambda ctx, loc, value: "must be a whole number",
    "float_type": lambda ctx, loc, value: "must be a number",
    "finite_number": lambda ctx, loc, value: "must be a finite number",
    "bool_type": lambda ctx, loc, value: "must be true or false",
    "string_type": lambda ctx, loc, value: _text(value),
    "string_too_long": lambda ctx, loc, value: f"must have at most {ctx['max_length']} characters",
    "string_too_short": lambda ctx, loc, value: "must not be empty",
    "string_pattern_mismatch": lambda ctx, loc, value: _PATTERNS.get(
        ctx["pattern"], f"must match {ctx['pattern']}"
    ),
    "literal_error": lambda ctx, loc, value: _literal(ctx),
    "greater_than_equal": lambda ctx, loc, value: f"must be at least {_number(ctx['ge'])}",
    "greater_than": lambda ctx, loc, value: f"must be greater than {_number(ctx['gt'])}",
    "less_than_equal": lambda ctx, loc, value: f"must be at most {_number(ctx['le'])}",
    "less_than": lambda ctx, loc, value: f"must be less than {_number(ctx['lt'])}",
    "model_type": lambda ctx, loc, value: "must be a mapping of keys to values",
    "dict_type": lambda ctx, loc, value: "must be a mapping of keys to values",
    "list_type": lambda ctx, loc, value: "must be a list",
    "tuple_type": lambda ctx, loc, value: "must be a list",
    "too_long": lambda ctx, loc, value: f"must have at most {ctx['max_length']} items",
    "too_short": lambda ctx, loc, value: f"must have at least {ctx['min_length']} items",
    "none_required": lambda ctx, loc, value: (
        "is reserved: installing packages or choosing a Python is not yet here, "
        "jobs run with that of the workers; remove it"
    ),
}
