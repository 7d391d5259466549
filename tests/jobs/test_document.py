"""The YAML reader: the core schema of YAML 1.2, and bounds that hold before any value is built."""

import time
from typing import Any

import pytest
from hypothesis import given

from dovetail_jobs.document import MAX_DEPTH, MAX_NODES, read_document, read_value
from dovetail_jobs.errors import SpecError
from helpers.specs import to_yaml, values


def value(text: str) -> Any:
    return read_value(text, file="--set", key="key")


@given(values)
def test_any_json_value_is_read_as_it_was_written(written: Any) -> None:
    assert value(to_yaml(written)) == written
    assert value(to_yaml(written, flow=True)) == written


# https://yaml.org/spec/1.2.2/#103-core-schema, with the words of YAML 1.1 that are text there.
@pytest.mark.parametrize(
    ("text", "read"),
    [
        ("", None), ("~", None), ("null", None), ("Null", None), ("NULL", None), ("nUll", "nUll"),
        ("true", True), ("False", False), ("TRUE", True), ("tRue", "tRue"),
        ("yes", "yes"), ("on", "on"), ("off", "off"), ("y", "y"), ("no", "no"),
        ("0", 0), ("-12", -12), ("+7", 7), ("007", 7), ("0o17", 15), ("0xFf", 255),
        ("1_000", "1_000"), ("0b11", "0b11"), ("12:30:45", "12:30:45"),
        ("1e3", 1000.0), ("1e-3", 0.001), ("-1.5E+2", -150.0), (".5", 0.5), ("5.", 5.0),
        ("1.2.3", "1.2.3"), ("1e", "1e"), (".", "."), ("-", [None]), ("+", "+"),
        ("2024-01-01", "2024-01-01"), ("=", "="), ("<<", "<<"),
        ("'12'", "12"), ('"true"', "true"), ("!!str 12", "12"), ("!!float 1", 1.0),
        ("[1, a, {b: 2.0}]", [1, "a", {"b": 2.0}]),
    ],
)  # fmt: skip
def test_a_plain_scalar_is_what_the_core_schema_says(text: str, read: Any) -> None:
    found = value(text)
    assert found == read
    assert type(found) is type(read)


@pytest.mark.parametrize(
    "text", [".inf", "-.INF", ".nan", "1e999", "9" * 301, "!!int x", "!!bool 3"]
)
def test_what_json_cannot_carry_is_refused(text: str) -> None:
    with pytest.raises(SpecError):
        value(text)


def test_as_many_values_as_allowed_are_read_and_one_more_is_not() -> None:
    def document(count: int) -> str:
        return "[" + "1," * (count - 1) + "]"

    assert len(value(document(MAX_NODES))) == MAX_NODES - 1
    with pytest.raises(SpecError, match="values"):
        value(document(MAX_NODES + 1))


def test_as_deep_as_allowed_is_read_and_one_deeper_is_not() -> None:
    value("[" * MAX_DEPTH + "]" * MAX_DEPTH)
    with pytest.raises(SpecError, match="nested deeper"):
        value("[" * (MAX_DEPTH + 1) + "]" * (MAX_DEPTH + 1))


def test_aliases_do_not_make_a_way_round_the_depth() -> None:
    chain = "\n".join(f"k{n}: &a{n} [*a{n - 1}]" for n in range(1, MAX_DEPTH + 1))
    with pytest.raises(SpecError, match="through its aliases"):
        read_document(f"k0: &a0 [1]\n{chain}\n", file="job.yaml")


@pytest.mark.parametrize(
    "text",
    [
        "[" * 2**20,
        "k: 1\n" * 200_000,
        "{a: " * 2**18,
        "\n".join(f"k{n}: [{','.join('1' * 40)}]" for n in range(10_000)),
        "a: &a [" + "x," * 9_000 + "]\n" + "\n".join(f"b{n}: *a" for n in range(20_000)),
    ],
    ids=["brackets", "keys", "braces", "lists", "aliases"],
)
def test_a_megabyte_of_malice_is_refused_in_a_moment(text: str) -> None:
    started_s = time.process_time()
    with pytest.raises(SpecError):
        read_document(text[: 2**20], file="job.yaml")
    assert time.process_time() - started_s < 10


def test_each_value_has_its_line() -> None:
    document = read_document("a:\n  b: [1,\n    2]\n  c: text\n", file="job.yaml")
    assert {key: place.line for key, place in document.places.items()} == {
        "": 1, "a": 1, "a.b": 2, "a.b.0": 2, "a.b.1": 3, "a.c": 4,
    }  # fmt: skip
    assert document.places["a.c"].written == "text"
