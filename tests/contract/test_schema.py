"""The schema is the source: its own form, its documents, and the dataclasses that mirror it."""

from __future__ import annotations

import copy
import dataclasses
import json
import re
import types
import typing
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jsonschema
import pytest

from job.errors import TREE
from job.errors.facts import failure_facts
from job.spec import JobSpec, job_schema, parse_spec
from job.spec.strict import faults_of_schema, load_schema
from tests.specs import changed

ROOT = Path(__file__).parents[2]
SCHEMAS = sorted(path.name.removesuffix(".schema.json") for path in (ROOT / "schemas").glob("*.schema.json"))
Json = dict[str, Any]


def resolve(schema: Json, root: Json) -> Json:
    return root["definitions"][schema["$ref"].rsplit("/", 1)[1]] if "$ref" in schema else schema


def properties(schema: Json, root: Json, at: str = "") -> Iterator[tuple[str, Json]]:
    """Every property below `schema`, definitions followed, each at its own pointer into a document (first entries of lists)."""
    schema = resolve(schema, root)
    for key, sub in schema.get("properties", {}).items():
        yield f"{at}/{key}", resolve(sub, root)
        yield from properties(sub, root, f"{at}/{key}")
    if "items" in schema:
        yield f"{at}/0", resolve(schema["items"], root)
        yield from properties(schema["items"], root, f"{at}/0")


JOB = dict(properties(job_schema(), job_schema()))
NAMED = {pointer: schema for pointer, schema in JOB.items() if not pointer.endswith("/0")}


@pytest.mark.parametrize("name", SCHEMAS)
def test_a_schema_is_valid_closed_and_described(name: str) -> None:
    schema = load_schema(name)
    jsonschema.Draft7Validator.check_schema(schema)
    objects = [("", schema), *properties(schema, schema)]
    for pointer, sub in objects:
        if "properties" in sub:
            assert sub["additionalProperties"] is False, pointer
            assert set(sub.get("required", ())) <= set(sub["properties"]), pointer
        if not pointer.endswith("/0"):
            assert len(sub["description"]) >= 10, pointer
            assert sub["description"].endswith("."), pointer


@pytest.mark.parametrize("pointer", NAMED)
def test_every_property_has_an_example_that_holds(pointer: str) -> None:
    schema = NAMED[pointer]
    assert schema["examples"], pointer
    for example in schema["examples"]:
        assert faults_of_schema(example, schema | {"definitions": job_schema()["definitions"]}) == []


@pytest.mark.parametrize("pointer", [pointer for pointer, schema in NAMED.items() if "default" in schema])
def test_every_default_holds(pointer: str) -> None:
    schema = NAMED[pointer]
    assert faults_of_schema(schema["default"], schema | {"definitions": job_schema()["definitions"]}) == []


@pytest.mark.parametrize("pointer", [p for p, s in JOB.items() if s.get("type") in ("integer", "number") and "const" not in s])
def test_every_number_has_two_limits(pointer: str) -> None:
    """So that none is too large for what it is handed to."""
    assert {"minimum", "exclusiveMinimum"} & set(JOB[pointer])
    assert {"maximum", "exclusiveMaximum"} & set(JOB[pointer])


@pytest.mark.parametrize("pointer", [pointer for pointer, schema in JOB.items() if schema.get("type") in ("string", "array")])
def test_every_text_and_list_has_a_greatest_size(pointer: str) -> None:
    bounded = {"maxLength", "maxItems", "enum"} & set(JOB[pointer]) or re.search(r"\{0,\d+\}", JOB[pointer].get("pattern", ""))
    assert bounded or pointer == "/$schema"


# ----------------------------------------------------------------------- one failing document a constraint


def breaking(rule: str, limit: Any) -> list[Any]:
    """Values just outside one constraint, or of another kind."""
    return {
        "type": lambda: {
            "integer": [1.5, True, "1", None],
            "number": [True, "1", None],
            "string": [1, None, []],
            "boolean": [0, 1, "true", None],
            "array": [{}, "x", None],
            "object": [[], "x", None],
        }[limit],
        "const": lambda: [limit + 1 if isinstance(limit, int) else f"{limit}x"],
        "enum": lambda: ["nothing of these", 0, None, [limit[0]]],
        "minimum": lambda: [limit - 1],
        "maximum": lambda: [limit + 1],
        "exclusiveMinimum": lambda: [limit, limit - 1],
        "exclusiveMaximum": lambda: [limit, limit + 1],
        "minLength": lambda: [""],
        "maxLength": lambda: ["{{" + "x" * (limit - 1), "x" * (limit + 1)],
        "minItems": lambda: [[]],
        "maxItems": lambda: [[f"x{i}" for i in range(limit + 1)]],
        "uniqueItems": lambda: [["wandb", "wandb"], ["lm_head", "lm_head"], ["merged", "merged"]],
        "minProperties": lambda: [{}],
        "maxProperties": lambda: [{"fraction": 0.5, "rows": 5}],
        "pattern": lambda: ["", " ", "é\n", "a b!"],
        "anyOf": lambda: ["nothing of these", ""],
        "additionalProperties": lambda: [{"nothing of these": 1}],
        "required": lambda: [{}],
    }[rule]()


ANNOTATIONS = {"$schema", "$id", "title", "description", "examples", "default", "definitions", "properties", "items"}
CONSTRAINTS = [(pointer, rule) for pointer, schema in JOB.items() for rule in schema if rule not in ANNOTATIONS]


@pytest.mark.parametrize(("pointer", "rule"), CONSTRAINTS, ids=[f"{pointer} {rule}" for pointer, rule in CONSTRAINTS])
def test_each_constraint_refuses_its_document(pointer: str, rule: str) -> None:
    """In the schema with the constraint the fault is found at the place or below it; without the constraint, that fault is gone."""
    broken = 0
    for value in breaking(rule, JOB[pointer][rule]):
        document = whole_document(pointer, value)
        found = [f for f in faults_of_schema(document, job_schema()) if f.where.startswith(pointer)]
        assert found, value
        without = copy.deepcopy(job_schema())
        target = dict(properties(without, without))[pointer]
        del target[rule]
        broken += found != [f for f in faults_of_schema(document, without) if f.where.startswith(pointer)]
    assert broken, "the constraint changes nothing"


def whole_document(pointer: str, value: Any) -> Json:
    """A document with `value` at `pointer`; objects and lists on the way are made."""
    document: Any = {}
    place = document
    parts = pointer.split("/")[1:]
    for part, following in zip(parts, [*parts[1:], None], strict=True):
        inner = value if following is None else [] if following == "0" else {}
        if isinstance(place, list):
            place.append(inner)
        else:
            place[part] = inner
        place = inner
    return document


def test_the_document_itself_is_closed() -> None:
    assert [f.message for f in faults_of_schema(changed({}) | {"nothing": 1}, job_schema())] == ["unknown key"]


# --------------------------------------------------------------------------------- schema and dataclasses


def dataclass_of(hint: Any) -> Any:
    """The dataclass in `X`, `X | None`, `tuple[X, ...]`, or None."""
    for option in (hint, *typing.get_args(hint)):
        if dataclasses.is_dataclass(option):
            return option
        for inner in typing.get_args(option):
            if dataclasses.is_dataclass(inner):
                return inner
    return None


def pairs(cls: Any, schema: Json) -> Iterator[tuple[Any, Json]]:
    """Every dataclass with the object that it mirrors."""
    yield cls, schema
    for name, hint in typing.get_type_hints(cls).items():
        if name in schema["properties"] and (inner := dataclass_of(hint)):
            sub = resolve(schema["properties"][name], job_schema())
            yield from pairs(inner, resolve(sub["items"], job_schema()) if "items" in sub else sub)


PAIRS = list({cls: (cls, schema) for cls, schema in pairs(JobSpec, job_schema())}.values())


def test_every_section_has_its_dataclass() -> None:
    sections = [
        p for p, s in JOB.items() if "properties" in s and not p.startswith("/data/held_out/sources") and not p.endswith("/columns")
    ]
    assert len(PAIRS) == len(sections) + 1


@pytest.mark.parametrize(("cls", "schema"), PAIRS, ids=[cls.__name__ for cls, _ in PAIRS])
def test_fields_are_the_properties_with_their_types(cls: Any, schema: Json) -> None:
    hints = typing.get_type_hints(cls)
    assert set(hints) - {"resolved"} == set(schema["properties"]) - {"$schema"}
    for name, hint in hints.items():
        if name == "resolved":
            continue
        sub = resolve(schema["properties"][name], job_schema())
        always = name in schema.get("required", ()) or "default" in sub or ("$ref" in schema["properties"][name] and name != "lora")
        assert (type(None) not in typing.get_args(hint)) == always, name
        python = {"integer": int, "number": float, "boolean": bool}.get(sub.get("type", ""))
        if python:
            assert python in (hint, *typing.get_args(hint)), name
        literals = literals_of(hint)
        if literals and "enum" in sub:
            assert literals | ({True, False} if bool in typing.get_args(hint) else set()) == set(sub["enum"]), name


def literals_of(hint: Any) -> set[Any]:
    options = typing.get_args(hint) if isinstance(hint, types.UnionType) or typing.get_origin(hint) is typing.Union else (hint,)
    return {value for option in options if typing.get_origin(option) is typing.Literal for value in typing.get_args(option)}


def test_values_have_the_types_of_their_fields() -> None:
    raw = (ROOT / "schemas" / "examples" / "everything.json").read_bytes()
    check_types(parse_spec(raw))
    check_types(parse_spec(json.dumps(changed({"/training": {"epochs": 1}, "/lora": {"alpha": 8}})).encode()))


def check_types(value: Any) -> None:
    for name, hint in typing.get_type_hints(type(value)).items():
        inner = getattr(value, name)
        if float in (hint, *typing.get_args(hint)) and inner is not None:
            assert type(inner) is float, name
        if dataclasses.is_dataclass(inner):
            check_types(inner)
        for item in inner if isinstance(inner, tuple) else ():
            if dataclasses.is_dataclass(item):
                check_types(item)


# ------------------------------------------------------------------------------------- failure.schema.json


@pytest.mark.parametrize("kind", TREE)
def test_every_failure_fits_its_schema(kind: type) -> None:
    facts = failure_facts(kind("it did not work"), "train", "0123456789abcdef")
    assert faults_of_schema(facts, load_schema("failure")) == []


def test_the_failure_schema_lists_the_classes_and_their_codes() -> None:
    schema = load_schema("failure")["properties"]
    assert schema["class"]["enum"] == [kind.__name__ for kind in TREE]
    assert schema["exit_code"]["enum"] == [kind.exit_code for kind in TREE]
