"""The JSON Schema of a job's YAML, for editors: completion, hover text and red underlines.

It is made from the models, so it says what `load` checks, except for what needs the machine (paths,
a user's own module) or arithmetic between keys (an indivisible batch).
"""

from __future__ import annotations

from typing import Any

from dovetail_jobs.catalog import DESCRIPTIONS, FAMILIES, params_model
from dovetail_jobs.spec import JobSpec

DIALECT = "https://json-schema.org/draft/2020-12/schema"


def json_schema() -> dict[str, Any]:
    """One JSON Schema (2020-12) of a whole job; the params of each built-in family are typed."""
    schema = JobSpec.model_json_schema(by_alias=True, mode="validation")
    definitions: dict[str, Any] = schema.pop("$defs")
    conditions: list[dict[str, Any]] = []
    for family in FAMILIES:
        params = params_model(family).model_json_schema(
            by_alias=True, mode="validation", ref_template=f"#/$defs/{family}.{{model}}"
        )
        for name, inner in params.pop("$defs", {}).items():
            definitions[f"{family}.{name}"] = inner
        definitions[f"{family}.Params"] = params
        conditions.append(
            {
                "if": _given("family", {"const": family}),
                "then": {
                    "properties": {"params": {"$ref": f"#/$defs/{family}.Params"}},
                    "required": ["params"],
                },
            }
        )
    schema["properties"]["family"] = _family_schema(schema["properties"]["family"])
    for free in ("env", "secrets"):
        schema["properties"][free]["additionalProperties"] = False
    definitions["Train"]["oneOf"] = [_present("steps"), _present("epochs")]
    is_family, is_script = _present("family"), _present("script")
    conditions.append({"if": is_family, "then": _present("train")})
    conditions.append({"if": is_script, "then": {"not": _present("train")}})
    return {
        "$schema": DIALECT,
        "$id": "urn:dovetail:job:1",
        **schema,
        "title": "Dovetail job",
        "description": "A training job: what to run, how to train it, and what it needs.",
        "oneOf": [is_family, is_script],
        "allOf": conditions,
        "$defs": definitions,
    }


def _family_schema(own: dict[str, Any]) -> dict[str, Any]:
    names = [{"const": name, "description": DESCRIPTIONS[name]} for name in FAMILIES]
    module = {
        "type": "string",
        "minLength": 1,
        "description": "a module of your own with build(params, context)",
    }
    return {
        **{key: value for key, value in own.items() if key != "anyOf"},
        "description": f"a built-in family ({', '.join(FAMILIES)}) or a module of your own",
        "anyOf": [*names, module, {"type": "null"}],
    }


def _given(key: str, value: dict[str, Any]) -> dict[str, Any]:
    return {"properties": {key: value}, "required": [key]}


def _present(key: str) -> dict[str, Any]:
    """The key is there and not null."""
    return _given(key, {"not": {"type": "null"}})
