"""YAML text to plain JSON values, each with its place in the text.

The resolver is the core schema of YAML 1.2 (https://yaml.org/spec/1.2.2/#103-core-schema), not
PyYAML's 1.1: `1e-3` is a number, `on`, `yes` and `12:30` are text, `<<` merges nothing. What could
lead a reader astray (duplicate keys, tags, keys that are no text) is refused, and what could
exhaust memory (alias bombs, deep nesting) is refused before any value is built.
"""

from __future__ import annotations

import math
import re
from dataclasses import dataclass, field, replace
from typing import Any, NoReturn

import yaml
from pydantic import JsonValue

from dovetail_jobs.errors import Problem, SpecError

MAX_NODES = 10_000
MAX_DEPTH = 50

_HINTS = {
    "mapping values are not allowed here": "check the indentation, and quote text that holds ': '",
    "found character '\\t' that cannot start any token": "indent with spaces, not with tabs",
    "could not find expected ':'": "write it as key: value",
}
_SHOWN_CHARACTERS = 60


@dataclass(frozen=True, slots=True, kw_only=True)
class Place:
    """Where a value was written, and how; `written` is None for a value of several lines."""

    file: str
    line: int | None
    written: str | None


@dataclass(slots=True, kw_only=True)
class Document:
    """`places` maps dotted keys to places; `problems` are those that left the rest readable."""

    data: dict[str, JsonValue]
    places: dict[str, Place]
    problems: list[Problem] = field(default_factory=list)

    def locate(self, problem: Problem) -> Problem:
        """The problem with its place and value as written; a missing key has its parent's place."""
        if problem.file is not None:
            return problem
        key = problem.key
        while key not in self.places and key:
            key = key.rpartition(".")[0]
        place = self.places[key]
        written = problem.value
        if key == problem.key and key:
            written = None if problem.key.startswith("secrets") else place.written
        return replace(problem, file=place.file, line=place.line, value=written)


def read_document(text: str, *, file: str) -> Document:
    """The one mapping that `text` holds. Raises SpecError when there is none to read."""
    node = _compose(text, file)
    if node is None or (isinstance(node, yaml.ScalarNode) and node.tag == _tag("null")):
        raise SpecError(
            [_problem(file, 1, "is empty; a job needs at least name and family or script")]
        )
    if not isinstance(node, yaml.MappingNode) or node.tag != _tag("map"):
        line = _line(node.start_mark)
        raise SpecError([_problem(file, line, "must be a mapping such as name: my-job")])
    reader = _Reader(text=text, file=file)
    reader.places[""] = Place(file=file, line=_line(node.start_mark), written=None)
    data = reader.mapping(node, "")
    return Document(data=data, places=reader.places, problems=reader.problems)


def read_value(text: str, *, file: str, key: str) -> JsonValue:
    """One scalar, list or mapping, by the same rules. SpecError with all its problems."""
    reader = _Reader(text=text, file=file)
    try:
        node = _compose(text, file)
        value = None if node is None else reader.value(node, key)
    except SpecError as error:
        reader.problems += error.problems
    if reader.problems:
        raise SpecError([replace(problem, line=None) for problem in reader.problems])
    return value


def text_rule(text: str) -> str | None:
    """The rule that `text` breaks, if any: what no process, JSON file or database can carry."""
    if "\0" in text:
        return "must not hold a NUL character"
    if any("\ud800" <= character <= "\udfff" for character in text):
        return "must be valid Unicode text"
    return None


class CoreLoader(yaml.SafeLoader):
    """Composes nodes by the core schema; bounds their number, aliases expanded, while it does."""

    yaml_implicit_resolvers = {}  # noqa: RUF012

    def __init__(self, text: str) -> None:
        super().__init__(text)
        self._sizes: dict[int, tuple[int, int]] = {}
        self._depth = 0

    def compose_node(self, parent: yaml.Node | None, index: Any) -> yaml.Node | None:
        event = _next_event(self)
        if len(self._sizes) > MAX_NODES:
            self._refuse(f"holds more than {MAX_NODES} values; a job needs far fewer", event)
        self._depth += 1
        if self._depth > MAX_DEPTH:
            self._refuse(f"is nested deeper than {MAX_DEPTH} levels", event)
        node: yaml.Node | None = super().compose_node(parent, index)
        self._depth -= 1
        if not isinstance(event, yaml.AliasEvent):
            self._measure(node, event)
        elif id(node) not in self._sizes:
            self._refuse("has an alias to a value that contains it", event)
        return node

    def _measure(self, node: yaml.Node | None, event: yaml.Event) -> None:
        """Note the node's number of values and of levels with every alias in it expanded."""
        children: list[yaml.Node] = []
        if isinstance(node, yaml.MappingNode):
            children = [child for pair in node.value for child in pair]
        elif isinstance(node, yaml.SequenceNode):
            children = node.value
        sizes = [self._sizes[id(child)] for child in children]
        values = 1 + sum(size[0] for size in sizes)
        levels = 1 + max((size[1] for size in sizes), default=0)
        self._sizes[id(node)] = (values, levels)
        if values > MAX_NODES:
            self._refuse(f"expands to more than {MAX_NODES} values through its aliases", event)
        if levels > MAX_DEPTH:
            self._refuse(f"is nested deeper than {MAX_DEPTH} levels through its aliases", event)

    def _refuse(self, rule: str, event: yaml.Event) -> NoReturn:
        raise _Refused(rule, _line(event.start_mark))


class _Refused(Exception):
    """Well-formed YAML that no job needs and that could exhaust memory: rule and line."""


def _tag(kind: str) -> str:
    return f"tag:yaml.org,2002:{kind}"


for _kind, _pattern, _first in (
    ("null", r"~|null|Null|NULL|", ["~", "n", "N", ""]),
    ("bool", r"true|True|TRUE|false|False|FALSE", list("tTfF")),
    ("int", r"[-+]?[0-9]+|0o[0-7]+|0x[0-9a-fA-F]+", list("-+0123456789")),
    (
        "float",
        r"[-+]?(\.[0-9]+|[0-9]+(\.[0-9]*)?)([eE][-+]?[0-9]+)?"
        r"|[-+]?\.(inf|Inf|INF)|\.(nan|NaN|NAN)",
        list("-+.0123456789"),
    ),
):
    CoreLoader.add_implicit_resolver(_tag(_kind), re.compile(rf"(?:{_pattern})\Z"), _first)


def _next_event(loader: CoreLoader) -> yaml.Event:
    event: yaml.Event = loader.peek_event()  # type: ignore[no-untyped-call]
    return event


def _problem(file: str, line: int, rule: str) -> Problem:
    return Problem(key="", rule=rule, file=file, line=line)


def _compose(text: str, file: str) -> yaml.Node | None:
    try:
        loader = CoreLoader(text)
        node: yaml.Node | None = loader.get_node() if loader.check_node() else None
        if node is not None and loader.check_node():
            line = _line(_next_event(loader).start_mark)
            rule = "starts a second document; give each job a file of its own"
            raise SpecError([_problem(file, line, rule)])
        return node
    except _Refused as error:
        rule, line = error.args
        raise SpecError([_problem(file, line, rule)]) from None
    except yaml.MarkedYAMLError as error:
        hint = _HINTS.get(error.problem or "")
        rule = f"is not valid YAML: {error.problem}" + (f"; {hint}" if hint else "")
        line = _line(error.problem_mark or error.context_mark)
        raise SpecError([_problem(file, line, rule)]) from None
    except yaml.reader.ReaderError as error:
        line = text.count("\n", 0, error.position) + 1
        rule = f"is not valid YAML: character U+{ord(text[error.position]):04X} is not allowed"
        raise SpecError([_problem(file, line, rule)]) from None


def _line(mark: Any) -> int:
    """The line of a mark, counted from 1; PyYAML has two classes of marks, and may have none."""
    return int(mark.line) + 1 if mark else 1


@dataclass(slots=True, kw_only=True)
class _Reader:
    """Builds values from nodes and notes where each was written."""

    text: str
    file: str
    places: dict[str, Place] = field(default_factory=dict)
    problems: list[Problem] = field(default_factory=list)

    def value(self, node: yaml.Node, key: str) -> JsonValue:
        if isinstance(node, yaml.MappingNode) and node.tag == _tag("map"):
            return self.mapping(node, key)
        if isinstance(node, yaml.SequenceNode) and node.tag == _tag("seq"):
            items = []
            for number, item in enumerate(node.value):
                self._place(f"{key}.{number}", item, item)
                items.append(self.value(item, f"{key}.{number}"))
            return items
        if isinstance(node, yaml.ScalarNode):
            try:
                return _scalar(node)
            except ValueError as error:
                self._refuse(key, node, str(error), node)
                return None
        self._refuse(key, node, f"has the tag {_short_tag(node)}; write a plain value", node)
        return None

    def mapping(self, node: yaml.MappingNode, key: str) -> dict[str, JsonValue]:
        values: dict[str, JsonValue] = {}
        lines: dict[str, int] = {}
        for name_node, value_node in node.value:
            name = self._name(name_node, key)
            if name is None:
                continue
            inner = f"{key}.{name}" if key else name
            if name in lines:
                rule = f"is given twice, first on line {lines[name]}; remove one of them"
                self._refuse(inner, name_node, rule, value_node)
                continue
            lines[name] = _line(name_node.start_mark)
            self._place(inner, value_node, name_node)
            values[name] = self.value(value_node, inner)
        return values

    def _name(self, node: yaml.Node, key: str) -> str | None:
        if not isinstance(node, yaml.ScalarNode):
            self._refuse(key, node, "has a list or a mapping as a key; a key must be text")
            return None
        if node.tag != _tag("str"):
            written = self._written(node) or "''"
            self._refuse(key, node, f'has the key {written}; a key must be text, write "{written}"')
            return None
        name = _text(node)
        rule = text_rule(name)
        if rule is not None:
            self._refuse(key, node, f"has a key that {rule}")
            return None
        return name

    def _place(self, key: str, node: yaml.Node, marked: yaml.Node) -> None:
        self.places[key] = Place(
            file=self.file, line=_line(marked.start_mark), written=self._written(node)
        )

    def _written(self, node: yaml.Node) -> str | None:
        source = self.text[node.start_mark.index : node.end_mark.index].strip()
        first, *rest = source.splitlines() or [""]
        if not isinstance(node, yaml.ScalarNode):
            flow = first[:1] in ("[", "{", "*", "&", "!") and not rest
            return first if flow and len(first) <= _SHOWN_CHARACTERS else None
        cut = bool(rest) or len(first) > _SHOWN_CHARACTERS
        return first[:_SHOWN_CHARACTERS] + "…" if cut else first or None

    def _refuse(
        self, key: str, marked: yaml.Node, rule: str, value: yaml.Node | None = None
    ) -> None:
        shown = None if value is None or key.startswith("secrets") else self._written(value)
        line = _line(marked.start_mark)
        self.problems.append(Problem(key=key, rule=rule, value=shown, file=self.file, line=line))


def _scalar(node: yaml.ScalarNode) -> JsonValue:
    """The value of a scalar; ValueError with the rule."""
    text = _text(node)
    if node.tag == _tag("str"):
        rule = text_rule(text)
        if rule is not None:
            raise ValueError(rule)
        return text
    if node.tag == _tag("null") and text in ("", "~", "null", "Null", "NULL"):
        return None
    if node.tag == _tag("bool") and text.lower() in ("true", "false"):
        return text.lower() == "true"
    if node.tag == _tag("int") and re.fullmatch(r"[-+]?[0-9]{1,300}", text):
        return int(text)
    if node.tag == _tag("int") and re.fullmatch(r"0[ox][0-9a-fA-F]{1,250}", text):
        return int(text, 0)
    if node.tag == _tag("int"):
        raise ValueError("must be a whole number of at most 300 digits")
    if node.tag == _tag("float"):
        number = float(text.lower().replace(".inf", "inf").replace(".nan", "nan"))
        if not math.isfinite(number):
            raise ValueError("must be a finite number")
        return number
    raise ValueError(f"has the tag {_short_tag(node)}; write a plain value")


def _text(node: yaml.ScalarNode) -> str:
    """With pairs of surrogate escapes as the one character that JSON writers mean by them."""
    text = str(node.value)
    return text.encode("utf-16", "surrogatepass").decode("utf-16", "surrogatepass")


def _short_tag(node: yaml.Node) -> str:
    return str(node.tag).replace("tag:yaml.org,2002:", "!!")
