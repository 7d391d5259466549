"""The families by name. To add one: a folder under `families/` and one line here.

A family is named by text, because its `workload` pulls in torch, which neither the CLI nor the
server may load: `params_model` of a built-in family imports only its torch-free `params`. Any other
importable module is a family of the user's own: `build(params, context)` and, optionally, `Params`.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from importlib import import_module
from importlib.machinery import PathFinder
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict

from dovetail_jobs.errors import NotFound
from dovetail_jobs.outline import Key, nearest_name, outline
from dovetail_jobs.spec import JobSpec

FAMILIES: dict[str, str] = {
    "image_classification": "dovetail_jobs.families.image_classification",
}
DESCRIPTIONS: dict[str, str] = {
    "image_classification": "Swin Transformer on handwritten digits or an ImageNet-style folder",
}

_DOTTED = re.compile(r"[^\W\d]\w*(\.[^\W\d]\w*)*")


class FreeParams(BaseModel):
    """The params of a user's module that declares none: whatever the YAML gives, as attributes."""

    model_config = ConfigDict(frozen=True, extra="allow")


@dataclass(frozen=True, slots=True, kw_only=True)
class Family:
    """`own`: a module of the user's, which only a worker or a short-lived child may import."""

    name: str
    module: str
    own: bool


def find(name: str, *, workdir: Path | None = None) -> Family:
    """The family of this name, without importing anything of the user's.

    A name without a dot is a user's module if `workdir` or the Python path has it. Raises NotFound
    with the nearest name.
    """
    if name in FAMILIES:
        return Family(name=name, module=FAMILIES[name], own=False)
    if _DOTTED.fullmatch(name) and ("." in name or _importable(name, workdir)):
        return Family(name=name, module=name, own=True)
    near = nearest_name(name, FAMILIES) or [", ".join(FAMILIES)]
    raise NotFound(
        f"no such family; did you mean {near[0]}, or the dotted name of a module of your own?"
    )


def params_model(name: str, *, workdir: Path | None = None) -> type[BaseModel]:
    """The model of the family's params: torch-free for a built-in family.

    For a user's module it imports that module, so only a worker may ask. Raises NotFound.
    """
    family = find(name, workdir=workdir)
    if family.own:
        model = getattr(import_module(family.module), "Params", FreeParams)
    else:
        model = import_module(f"{family.module}.params").Params
    if not (isinstance(model, type) and issubclass(model, BaseModel)):
        raise TypeError(f"{family.module}.Params must be a pydantic model, not {model!r}")
    return model


def build(name: str, *, workdir: Path | None = None) -> Callable[..., Any]:
    """The family's `build(params, context) -> Workload`; imports torch. Raises NotFound."""
    family = find(name, workdir=workdir)
    module = import_module(family.module if family.own else f"{family.module}.workload")
    builder: Callable[..., Any] = module.build
    return builder


@cache
def known_keys(family: str | None = None) -> dict[str, Key]:
    """Every key that a spec may have, with those of the params of a built-in family."""
    keys = outline(JobSpec)
    if family in FAMILIES:
        model = params_model(family)
        keys |= outline(model, "params.")
    return keys


def _importable(name: str, workdir: Path | None) -> bool:
    """Whether a top-level module of this name exists; looking for one runs nothing of it."""
    path = [str(workdir)] if workdir else []
    return (
        name in sys.builtin_module_names or PathFinder.find_spec(name, path + sys.path) is not None
    )
