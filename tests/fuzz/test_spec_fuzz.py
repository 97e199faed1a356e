"""Random specs: whatever the bytes, a spec is read or refused with `SpecError`, quickly and in printable words.

A few seconds in the normal run; more with TUNEJOB_FUZZ_EXAMPLES=100000.
"""

from __future__ import annotations

import json
import os
import statistics
import time
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from job.errors import Fault, SpecError
from job.spec import JobSpec, job_schema, parse_spec
from job.spec.strict import faults_of_schema
from tests.specs import MINIMAL, changed

EXAMPLES = int(os.environ.get("TUNEJOB_FUZZ_EXAMPLES", "150"))
SPECS = [path.read_bytes() for path in sorted((Path(__file__).parents[2] / "schemas" / "examples").glob("*.json"))]
fuzz = settings(max_examples=EXAMPLES, deadline=None, suppress_health_check=list(HealthCheck), database=None)
seconds: list[float] = []


@pytest.fixture(scope="module", autouse=True)
def _each_is_quick() -> Any:
    """Half of all documents take less than 0.1 s."""
    yield
    assert statistics.median(seconds) < 0.1


def read(raw: bytes) -> JobSpec | None:
    """The spec, or None if it was refused as it should be; any other exception fails the test."""
    start = time.perf_counter()
    spec: JobSpec | None = None
    faults: tuple[Fault, ...] = ()
    try:
        spec = parse_spec(raw)
    except SpecError as error:
        faults = error.faults
    seconds.append(time.perf_counter() - start)
    assert (spec is None) == bool(faults)
    assert all(fault.message for fault in faults)
    assert all(character.isprintable() for fault in faults for character in str(fault))
    return spec


@fuzz
@given(st.binary(max_size=2000))
@example(b"")
@example(b"\x00")
@example(b'{"a":' * 999)
@example(b"[" * 990 + b"]" * 990)
def test_any_bytes(raw: bytes) -> None:
    assert read(raw) is None


@fuzz
@given(
    st.sampled_from(SPECS),
    st.lists(st.tuples(st.integers(0, 4000), st.integers(0, 40), st.binary(max_size=12)), min_size=1, max_size=4),
)
def test_damaged_examples(raw: bytes, cuts: list[tuple[int, int, bytes]]) -> None:
    for at, length, put in cuts:
        raw = raw[:at] + put + raw[at + length :]
    read(raw)


NUMBERS = st.one_of(st.integers(), st.floats(), st.sampled_from([-0.0, 1e-320, 2**63, 10**400, -(10**400), 1e308]))
VALUES = st.recursive(
    st.none() | st.booleans() | NUMBERS | st.text(max_size=40),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=5,
)


@fuzz
@given(st.dictionaries(st.text(max_size=8) | st.sampled_from(sorted(job_schema()["properties"])), VALUES, max_size=10))
def test_any_json(document: dict[str, Any]) -> None:
    assert read(json.dumps(document).encode()) is None


def pointers(schema: dict[str, Any], at: str = "") -> list[str]:
    """Every place of a spec, one entry of each list."""
    if "$ref" in schema:
        schema = job_schema()["definitions"][schema["$ref"].rsplit("/", 1)[1]]
    below = [f"{at}/{key}" for key in schema.get("properties", {})]
    for key, sub in schema.get("properties", {}).items():
        below += pointers(sub, f"{at}/{key}")
    if "properties" in schema.get("items", {}) or "$ref" in schema.get("items", {}):
        below += [f"{at}/0", *pointers(schema["items"], f"{at}/0")] if at == "/data/train" else []
    return below


# A section is replaced before a value is put inside it.
PLACES = sorted(pointers(job_schema()), key=lambda pointer: pointer.count("/"))


@fuzz
@given(
    st.dictionaries(
        st.sampled_from([p for p in PLACES if p.count("/") >= 2 and "/held_out/" not in p]),
        VALUES,
        min_size=1,
        max_size=5,
    )
)
def test_any_value_at_any_place(changes: dict[str, Any]) -> None:
    nested = {p: v for p, v in changes.items() if not any(p != q and p.startswith(f"{q}/") for q in changes)}
    read(json.dumps(changed(nested)).encode())


ADDRESSES = st.sampled_from(
    ["hf://org/name", "hf://org/name@main", "hf://datasets/org/name", "s3://bucket/prefix", "rows.jsonl"]
)


def fitting(schema: dict[str, Any], name: str = "") -> st.SearchStrategy[Any]:
    """Values that `schema` allows, lists short; `name` is the property's."""
    if "$ref" in schema:
        return fitting(job_schema()["definitions"][schema["$ref"].rsplit("/", 1)[1]], name)
    if "const" in schema or "enum" in schema:
        return st.sampled_from(schema.get("enum", [schema.get("const")]))
    if "anyOf" in schema:
        common = {"type": "string"} | {key: value for key, value in schema.items() if key != "anyOf"}
        return st.one_of([fitting(common | option) for option in schema["anyOf"]])
    return {
        "boolean": st.booleans,
        "integer": lambda: st.integers(schema["minimum"], schema["maximum"]),
        "number": lambda: numbers(schema),
        "string": lambda: texts(schema, name),
        "array": lambda: st.lists(
            fitting(schema["items"]), min_size=schema.get("minItems", 0), max_size=3, unique_by=json.dumps
        ),
        "object": lambda: objects(schema),
    }[schema["type"]]()


def numbers(schema: dict[str, Any]) -> st.SearchStrategy[Any]:
    low, high = (
        schema.get("minimum", schema.get("exclusiveMinimum")),
        schema.get("maximum", schema.get("exclusiveMaximum")),
    )
    return st.floats(low, high, exclude_min="exclusiveMinimum" in schema, exclude_max="exclusiveMaximum" in schema)


def texts(schema: dict[str, Any], name: str) -> st.SearchStrategy[str]:
    if name in ("source", "uri"):
        return ADDRESSES | st.text(min_size=1, max_size=30)
    if "pattern" in schema:
        return st.from_regex(schema["pattern"].replace("$", r"\Z"), fullmatch=schema["pattern"].startswith("^"))
    return st.text(min_size=schema.get("minLength", 0), max_size=30)


KEYWORDS = st.sampled_from(
    ["$schema", "$id", "$ref", "$defs", "type", "pattern", "enum", "allOf", "not", "items", "required"]
)


def objects(schema: dict[str, Any]) -> st.SearchStrategy[dict[str, Any]]:
    if "properties" not in schema:  # a JSON Schema in the spec
        return st.dictionaries(KEYWORDS, VALUES, max_size=4)
    known = {key: fitting(sub, key) for key, sub in schema["properties"].items() if key != "$schema"}
    if schema.get("maxProperties") == 1:
        return st.one_of([st.fixed_dictionaries({key: value}) for key, value in known.items()])
    required = {key: value for key, value in known.items() if key in schema.get("required", ())}
    return st.fixed_dictionaries(required, optional={key: value for key, value in known.items() if key not in required})


@fuzz
@given(fitting(job_schema()))
def test_specs_that_fit_the_schema(document: dict[str, Any]) -> None:
    """What fits is read, unless a cross-rule says no; what was read resolves to itself."""
    assert faults_of_schema(document, job_schema()) == []
    spec = read(json.dumps(document).encode())
    if spec is not None:
        again = parse_spec(json.dumps(spec.resolved).encode())
        assert (again.run_id, again) == (spec.run_id, spec)


@fuzz
@given(
    st.fixed_dictionaries(
        {}, optional={name: fitting(job_schema()["properties"][name]) for name in ("lora", "tracking")}
    )
)
def test_sections_without_cross_rules_are_read(sections: dict[str, Any]) -> None:
    assert read(json.dumps(MINIMAL | sections).encode()) is not None
