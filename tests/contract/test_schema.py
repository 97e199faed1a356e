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

from job.data.worker.shape import FORMATS
from job.errors import TREE, SpecError
from job.errors.facts import failure_facts
from job.evaluation.metrics import METRICS
from job.gguf.types import TYPES
from job.spec import JobSpec, job_schema, parse_spec
from job.spec.evaluation_rules import DEFAULT
from job.spec.strict import faults_of_schema, load_schema
from job.training.methods import METHODS
from tests.specs import changed

ROOT = Path(__file__).parents[2]
SCHEMAS = sorted(path.name.removesuffix(".schema.json") for path in (ROOT / "schemas").glob("*.schema.json"))
Json = dict[str, Any]


def resolve(schema: Json, root: Json) -> Json:
    return root["definitions"][schema["$ref"].rsplit("/", 1)[1]] if "$ref" in schema else schema


def properties(schema: Json, root: Json, at: str = "") -> Iterator[tuple[str, Json]]:
    """Every property below `schema`, definitions followed, at its own pointer into a document (first of a list)."""
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


@pytest.mark.parametrize(
    "pointer", [p for p, s in JOB.items() if s.get("type") in ("integer", "number") and "const" not in s]
)
def test_every_number_has_two_limits(pointer: str) -> None:
    """So that none is too large for what it is handed to."""
    assert {"minimum", "exclusiveMinimum"} & set(JOB[pointer])
    assert {"maximum", "exclusiveMaximum"} & set(JOB[pointer])


@pytest.mark.parametrize(
    "pointer", [pointer for pointer, schema in JOB.items() if schema.get("type") in ("string", "array")]
)
def test_every_text_and_list_has_a_greatest_size(pointer: str) -> None:
    bounded = {"maxLength", "maxItems", "enum"} & set(JOB[pointer]) or re.search(
        r"\{0,\d+\}", JOB[pointer].get("pattern", "")
    )
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
        "anyOf": lambda: [5.5, "", *([] if any(map(is_free_text, limit)) else ["nothing of these"])],
        "additionalProperties": lambda: [{"nothing of these": 1}],
        "required": lambda: [{}],
    }[rule]()


def is_free_text(form: Json) -> bool:
    return form.get("type") == "string" and not form.keys() & {"pattern", "enum", "const"}


ANNOTATIONS = {"$schema", "$id", "title", "description", "examples", "default", "definitions", "properties", "items"}
ANNOTATIONS |= {"allOf"}  # the rules between two places, which have their own test
CONSTRAINTS = [(pointer, rule) for pointer, schema in JOB.items() for rule in schema if rule not in ANNOTATIONS]


@pytest.mark.parametrize(("pointer", "rule"), CONSTRAINTS, ids=[f"{pointer} {rule}" for pointer, rule in CONSTRAINTS])
def test_each_constraint_refuses_its_document(pointer: str, rule: str) -> None:
    """With the constraint in the schema the fault is found at the place or below it; without it, that fault is gone."""
    broken = 0
    without = copy.deepcopy(job_schema())
    del dict(properties(without, without))[pointer][rule]
    for value in breaking(rule, JOB[pointer][rule]):
        document = whole_document(pointer, value)
        found = [f for f in faults_of_schema(document, job_schema()) if f.where.startswith(pointer)]
        assert found, value
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


# ------------------------------------------------------------- rules between two places, as editors see them

FULL, PEFT, TRAIN = {"/model/precision": "full"}, {"/model/backend": "peft"}, "/data/train/0"
HELD_OUT = {"/data/held_out": {"rows": 5}, "/evaluation/exact_match_rows": 5}
PAIRS_OF_ROWS = {"/training/method": "dpo", f"{TRAIN}/format": "preference"}
TWO = [{"adapter": "x"}, {"adapter": "y", "weight": 0.5}]
BY_REWARD = {"/training/method": "grpo", f"{TRAIN}/format": "prompt_only", "/model/backend": "peft",
             "/training/grpo": {"rewards": [{"metric": "contains"}]}}  # fmt: skip
OF_METHOD = {"grpo": BY_REWARD}
CHOICE = {"/evaluation/metrics": ["choice"], "/evaluation/choices": ["A", "B"]}
JUDGED = {"/evaluation/prompts": ["Hello."], "/evaluation/judge": {"model": "m"}}
RULES: list[Json] = [
    FULL | {"/lora": {}}, FULL | {"/data/packing": True},
    FULL | {"/model/merge_base": "x"}, FULL | {"/export/lora_gguf": "f16"},
    FULL | {"/model/adapters": TWO}, {"/model/combine": {}}, {"/model/adapters": TWO, "/model/adapter": "x"},
    *({"/model/adapters": TWO} | changes for changes in (
        {"/lora": {"seed": 1}}, {"/lora": {"dora": True}}, {"/lora": {"rslora": True}}, {"/lora": {"bias": "all"}},
        {"/lora": {"dropout": 0.1}}, {"/lora": {"modules_to_save": ["lm_head"]}}, {"/training": {"epochs": 2}},
        {"/model/combine": {"method": "ties"}}, {"/model/combine": {"density": 0.5}},
        {"/model/combine": {"method": "dare_linear", "density": 0.5, "sign": "total"}},
        {"/model/combine": {"sign": "total"}})),
    FULL | {"/model/adapter": "x"}, {"/model/adapter": "x", "/lora": {"seed": 1}},
    {"/model/adapter": "x", "/lora": {"init": "gaussian"}},
    FULL | {"/export/merge_onto": "original"}, {"/model/precision": "8bit", "/export/merge_onto": "trained"},
    {"/model/precision": "16bit", "/export/merge_onto": "trained"}, PEFT | {"/data/packing": True},
    PEFT | {"/training/gradient_checkpointing": "unsloth"}, {"/export/lora_gguf": "f16", "/lora/dora": True},
    {"/export/lora_gguf": "f16", "/lora/modules_to_save": ["lm_head"]},
    {"/export/lora_gguf": "f16", "/lora/bias": "all"},
    {f"{TRAIN}/format": "template"}, {f"{TRAIN}/template": {"user": "a", "assistant": "b"}},
    {f"{TRAIN}/format": "template", f"{TRAIN}/template": {"user": "a", "assistant": "b"},
     f"{TRAIN}/columns": {"text": "a"}},
    *(OF_METHOD.get(method.name, {}) | {f"{TRAIN}/format": name, f"{TRAIN}/columns": {column: "x"},
                                        "/training/method": method.name}
      for name, kind in FORMATS.items() if kind.example for method in METHODS.values() if name in method.formats
      for column in JOB[f"{TRAIN}/columns"]["properties"] if column not in kind.columns),
    {f"{TRAIN}/subset": "en"}, {"/training": {"epochs": 1, "max_steps": 2}},
    {"/training": {"warmup_steps": 1, "warmup_ratio": 0.1}},
    {"/training": {"lr_scheduler": "constant", "warmup_steps": 5}},
    {"/training": {"lr_scheduler": "constant", "warmup_ratio": 0.5}},
    HELD_OUT | {"/training/early_stopping": {"patience": 3}}, HELD_OUT | {"/training/keep": "best"},
    *(HELD_OUT | {"/evaluation/gates": [gate]} for gate in (
        {"metric": "perplexity"}, {"metric": "exact_match", "of": ["trained"]},
        {"metric": "exact_match", "rise_at_most": 0.1},
        {"metric": "exact_match", "at_least": 1.1}, {"metric": "exact_match", "at_most": -0.1},
        {"metric": "exact_match", "gain_at_least": 2}, {"metric": "held_out_loss", "at_most": 0},
        {"metric": "perplexity", "at_most": 1.0}, {"metric": "preference_accuracy", "at_least": 0.5},
        {"metric": "reward_margin", "at_least": 0})),
    *(JUDGED | {"/evaluation/gates": [{"metric": "judge_win_rate"} | bounds]} for bounds in (
        {"at_least": 1.1}, {"at_most": -0.1}, {"gain_at_least": 2},
        {"rise_at_most": 0.1}, {"at_least": 0.5, "of": ["adapter"]})),
    HELD_OUT | {"/evaluation/metrics": ["chrf"], "/evaluation/gates": [{"metric": "chrf", "at_least": 101}]},
    HELD_OUT | CHOICE | {"/evaluation/gates": [{"metric": "choice", "at_least": 1.1}]},
    {f"{TRAIN}/format": "preference"}, {"/training/method": "dpo"},
    {"/training/dpo": {}}, {"/training/orpo": {}}, {"/training/simpo": {}},
    {"/training/kto": {}},
    {f"{TRAIN}/format": "kto"}, {"/training/method": "kto"},
    {"/training/method": "kto", f"{TRAIN}/format": "kto", "/training/batch_size": 1},
    {"/training/method": "kto", f"{TRAIN}/format": "kto",
     "/data/held_out": {"sources": [{"source": "x", "format": "preference"}]}},
    {"/training/dpo": {"beta": 0.2}, "/training/method": "sft"},
    {f"{TRAIN}/format": "prompt_only"}, {"/training/grpo": {"rewards": [{"metric": "contains"}]}},
    *(BY_REWARD | changes for changes in (
        {f"{TRAIN}/format": "messages"}, {"/training/eval_steps": 5}, {"/data/packing": True},
        {"/data/train_on": "all"}, {"/model/precision": "full"}, {"/training": {"method": "grpo"}},
        {"/data/held_out": {"sources": [{"source": "x", "format": "messages"}]}},
        *({"/training/grpo": {"rewards": [reward]}} for reward in (
            {"metric": "regex"}, {"metric": "format"}, {"metric": "length"}, {"metric": "file"}, {"metric": "judge"},
            {"metric": "contains", "regex": "(a)"},
            {"metric": "contains", "at_most": 1}, {"metric": "contains", "file": "a.py"},
            {"metric": "contains", "judge": {"model": "m"}},
             {"metric": "contains", "json_schema": {}})))),
    *(PAIRS_OF_ROWS | changes for changes in (
        {"/model/precision": "full"}, {"/data/packing": True}, {"/data/train_on": "all"},
        {"/data/held_out": {"sources": [{"source": "x", "format": "messages"}]}},
        {"/training/dpo": {"label_smoothing": 0.1}}, {"/training/dpo": {"loss_type": "exo_pair"}},
        {"/training/dpo": {"loss_type": "hinge", "label_smoothing": 0.1}},
        {"/evaluation/gates": [{"metric": "preference_accuracy", "at_least": 1.1}]},
        {"/evaluation/gates": [{"metric": "preference_accuracy", "rise_at_most": 0.1}]},
        {"/evaluation/gates": [{"metric": "reward_margin", "rise_at_most": 0.1}]},
        {"/evaluation/gates": [{"metric": "reward_margin", "at_least": 0, "of": ["adapter"]}]})),
    {"/data/replay": {"fraction": 0.1}, "/data/shuffle": False}, PAIRS_OF_ROWS | {"/data/replay": {"fraction": 0.1}},
    {"/data/replay": {"fraction": 0.1, "sources": [{"source": "x", "format": "kto"}]}},
    {"/evaluation/forgetting": {"sources": [{"source": "x", "format": "preference"}]}},
    {"/evaluation/gates": [{"metric": "general_loss", "rise_at_most": 0.1}]},
    {"/evaluation": {"forgetting": {}, "gates": [{"metric": "general_loss", "at_most": 0}]}},
    *({"/export/gguf": [name]} for name, kind in TYPES.items() if kind.needs_imatrix),
]  # fmt: skip
GOOD: list[Json] = [
    {}, FULL, PEFT, {"/model/adapters": TWO, "/training": {"seed": 1}},
    {"/model/adapters": TWO, "/model/combine": {"method": "svd"}},
    {"/model/adapters": TWO, "/model/combine": {"method": "ties", "density": 0.5, "sign": "frequency"}},
    {"/export": {"gguf": list(TYPES), "imatrix": True}}, {"/model/precision": "4bit", "/export/merge_onto": "trained"},
    {f"{TRAIN}/source": "hf://datasets/org/rows", f"{TRAIN}/subset": "en"},
    {"/training": {"lr_scheduler": "constant", "warmup_steps": 0}},
    {"/export/lora_gguf": "f16", "/lora": {"dora": False, "modules_to_save": [], "bias": "none"}},
    *(OF_METHOD.get(method.name, {})
      | {f"{TRAIN}/format": name, f"{TRAIN}/columns": dict.fromkeys(kind.columns, "x"), "/training/method": method.name}
      for name, kind in FORMATS.items() if kind.example for method in METHODS.values() if name in method.formats),
    PAIRS_OF_ROWS | {"/training/dpo": {"loss_type": "robust", "label_smoothing": 0.1}},
    PAIRS_OF_ROWS | {"/training/dpo": {"loss_type": "exo_pair", "label_smoothing": 0.001}},
    PAIRS_OF_ROWS | {"/evaluation/gates": [{"metric": "reward_margin", "at_least": 0, "of": ["trained"]}]},
    {"/export/gguf": [name for name, kind in TYPES.items() if not kind.needs_imatrix]},
    HELD_OUT | {"/evaluation/gates": [{"metric": "exact_match", "at_least": 1, "at_most": 1, "gain_at_least": 1}]},
    *(HELD_OUT | CHOICE | {"/evaluation/gates": [{"metric": "choice", "at_least": 0.5} | of]} for of in (
        {}, {"of": ["trained", "adapter"]})),
    *({"/evaluation": {"forgetting": {}, "gates": [{"metric": "general_loss", "rise_at_most": 0.1} | of]}} for of in (
        {}, {"of": ["trained", "adapter"]})),
    PAIRS_OF_ROWS | {"/evaluation/forgetting": {"sources": [{"source": "x", "format": "messages"}]}},
    {"/data/replay": {"fraction": 0.1, "sources": [{"source": "x", "format": "text"}]}},
    {"/evaluation/tasks": [{"name": "arc_easy", "merged": True}], "/export": {"merged": ["16bit"]},
     "/evaluation/gates": [{"metric": "arc_easy:acc", "at_least": 0.1, "of": ["trained", "merged"]}]},
    JUDGED, HELD_OUT | {"/evaluation/judge": {"model": "m"}}, JUDGED | {"/data/held_out": False} | {
        "/evaluation/gates": [{"metric": "judge_win_rate", "at_least": 0.5, "gain_at_least": 0, "of": ["trained"]}]},
    HELD_OUT | {"/evaluation/metrics": ["bleu"],
                "/evaluation/gates": [{"metric": "bleu", "at_least": 30, "gain_at_least": 5}]},
]  # fmt: skip


def test_the_metrics_are_those_that_there_are_with_their_bounds() -> None:
    evaluation = job_schema()["definitions"]["evaluation"]["properties"]
    gate = evaluation["gates"]["items"]
    assert gate["properties"]["metric"]["anyOf"][0]["enum"] == list(METRICS)
    about_rows = [name for name, metric in METRICS.items() if metric.needs_rows]
    assert evaluation["metrics"]["items"]["enum"] == about_rows
    assert evaluation["metrics"]["maxItems"] == len(about_rows)
    assert evaluation["metrics"]["default"] == DEFAULT
    options = {metric.option for metric in METRICS.values()} - {""}
    assert options <= evaluation.keys()
    for rule in gate["allOf"]:
        about = rule.get("if", {}).get("properties", {}).get("metric", {})
        bounds = rule.get("then", rule).get("properties", {})
        for name in set(about.get("enum", ())) & set(about_rows):
            assert METRICS[name].highest == bounds["at_least"]["maximum"] == bounds["gain_at_least"]["maximum"]
    bounded = [
        name
        for rule in gate["allOf"]
        for name in rule.get("if", {}).get("properties", {}).get("metric", {}).get("enum", ())
    ]
    alone = [name for name, metric in METRICS.items() if metric.trained_alone]
    assert sorted(bounded) == sorted([*about_rows, *alone]), "some are of the trained model alone"


def conditions(schema: Any) -> Iterator[list[Json]]:
    """The lists of rules in a schema."""
    inner = schema.values() if isinstance(schema, dict) else schema if isinstance(schema, list) else ()
    if isinstance(schema, dict) and isinstance(schema.get("allOf"), list):
        yield schema["allOf"]
    for value in inner:
        yield from conditions(value)


def test_an_editor_knows_the_rules_between_two_places() -> None:
    """Any reader of JSON Schema refuses what ours refuses in words, for the rule's sake alone; no rule is silent."""
    schema, without = job_schema(), copy.deepcopy(job_schema())
    for rules in conditions(without):
        rules.clear()
    editor, lax = jsonschema.Draft7Validator(schema), jsonschema.Draft7Validator(without)
    bad = [changed(changes) for changes in RULES]
    for document in bad:
        assert lax.is_valid(document), document
        assert not editor.is_valid(document), document
        with pytest.raises(SpecError):
            parse_spec(json.dumps(document).encode())
    for changes in GOOD:
        parse_spec(json.dumps(changed(changes)).encode())
        assert editor.is_valid(changed(changes)), changes
    for rules in conditions(lacking := copy.deepcopy(schema)):
        for index in range(len(rules)):
            rule, rules[index] = rules[index], {}
            assert any(jsonschema.Draft7Validator(lacking).is_valid(document) for document in bad), rule
            rules[index] = rule


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
    sections = [p for p, s in JOB.items() if "properties" in s and "/sources" not in p and not p.endswith("/columns")]
    assert len(PAIRS) == len(sections) + 1


@pytest.mark.parametrize(("cls", "schema"), PAIRS, ids=[cls.__name__ for cls, _ in PAIRS])
def test_fields_are_the_properties_with_their_types(cls: Any, schema: Json) -> None:
    hints = typing.get_type_hints(cls)
    assert set(hints) - {"resolved"} == set(schema["properties"]) - {"$schema"}
    for name, hint in hints.items():
        if name == "resolved":
            continue
        sub = resolve(schema["properties"][name], job_schema())
        always = (
            name in schema.get("required", ())
            or "default" in sub
            or ("$ref" in schema["properties"][name] and name != "lora")
        )
        assert (type(None) not in typing.get_args(hint)) == always, name
        python = {"integer": int, "number": float, "boolean": bool}.get(sub.get("type", ""))
        if python:
            assert python in (hint, *typing.get_args(hint)), name
        literals = literals_of(hint)
        if literals and "enum" in sub:
            assert literals | ({True, False} if bool in typing.get_args(hint) else set()) == set(sub["enum"]), name


def literals_of(hint: Any) -> set[Any]:
    options = (
        typing.get_args(hint)
        if isinstance(hint, types.UnionType) or typing.get_origin(hint) is typing.Union
        else (hint,)
    )
    return {
        value for option in options if typing.get_origin(option) is typing.Literal for value in typing.get_args(option)
    }


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
