"""Views of every kind that the contract allows, with each field filled in or null."""

from __future__ import annotations

from datetime import UTC, datetime
from types import UnionType
from typing import Annotated, Any, Union, get_args, get_origin

from hypothesis import strategies as st
from pydantic import AwareDatetime, BaseModel

TEXT = st.text(st.characters(codec="utf-8", exclude_categories=["C", "Z"]), max_size=8)
_SIMPLE: dict[Any, st.SearchStrategy[Any]] = {
    int: st.integers(0, 2**45),
    float: st.floats(0, 1e9, allow_nan=False),
    str: TEXT,
    AwareDatetime: st.datetimes(datetime(2000, 1, 1), datetime(2100, 1, 1), timezones=st.just(UTC)),
}


def any_view(model: type[BaseModel], **chosen: st.SearchStrategy[Any]) -> st.SearchStrategy[Any]:
    """Any `model`, but for the fields that are `chosen`."""
    fields = {name: _any(field.annotation) for name, field in model.model_fields.items()}
    return st.builds(model, **{**fields, **chosen})


def _any(kind: Any) -> st.SearchStrategy[Any]:
    whole, parts = get_origin(kind), get_args(kind)
    if whole is tuple:
        return st.lists(_any(parts[0]), max_size=2).map(tuple)
    if whole is dict:
        return st.dictionaries(TEXT, _any(parts[1]), max_size=2)
    if whole in (Union, UnionType):
        return st.one_of(*map(_any, parts))
    if whole is Annotated:
        return _any(parts[0])
    if isinstance(kind, type) and issubclass(kind, BaseModel):
        return any_view(kind)
    return _SIMPLE[kind] if kind in _SIMPLE else st.from_type(kind)
