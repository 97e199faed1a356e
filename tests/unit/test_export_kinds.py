"""Every kind of artefact is known in one place, and what processes are asked about them comes back as it was."""

from __future__ import annotations

import dataclasses
import json
import typing
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest

from job.export.adapted import AdaptedRequest
from job.export.compare import CompareReport, CompareRequest, Examined, ReopenedForm
from job.export.four_bit import Conversion
from job.export.kinds import EXPORTS, asked_for, kind_of, left_by_training, measured, variant_of
from job.export.logits import Comparison
from job.export.merge.write import MergeReport, MergeRequest, TrainedBase
from job.export.reference_logits import Measure
from job.export.reload import Reloaded, ReloadRequest
from job.gguf import worker
from job.gguf.check import Checked
from job.gguf.expected import Expected, Tokenised
from job.gguf.header import Written
from job.gguf.quality import Against, AskedIds, ModelStep, Quality
from job.gguf.readings import Reading
from job.gguf.sizes import Planned
from job.gguf.split import Parts
from job.gguf.types import TYPES
from job.gguf.vocabulary import Rehearsed
from job.host.records import build, encode
from job.hub.staging import PUSHED
from job.spec.strict import load_schema
from tests.specs import parse

EVERYTHING = {"merged": ["4bit", "16bit"], "gguf": [*reversed(TYPES)], "imatrix": True, "lora_gguf": "f16"}
README = Path(__file__).parents[2] / "job/export/README.md"


def test_all_that_can_be_asked_for_is_of_a_kind() -> None:
    names = asked_for(EVERYTHING, whole=False)
    assert {kind_of(name).name for name in names} | {left_by_training(False)} == set(EXPORTS)
    assert [name for name in names if variant_of(name)] == [
        f"gguf-{name}" for name in sorted(EVERYTHING["gguf"], key=bits)
    ]
    assert asked_for({}, whole=False) == asked_for({}, whole=True) == []
    assert set(names) - set(asked_for(EVERYTHING, whole=True)) == {"merged"}, "the training leaves it"


def bits(name: str) -> float:
    return -TYPES[name].bits_per_weight


@pytest.mark.parametrize(("key", "value", "name"), [
    ("merged", ["16bit"], "merged"), ("merged", ["4bit"], "merged_4bit"), ("gguf", ["q8_0"], "gguf-q8_0"),
    ("lora_gguf", "q8_0", "lora_gguf"),
])  # fmt: skip
def test_a_key_asks_for_one_artefact(key: str, value: Any, name: str) -> None:
    spec = parse({"/export": {key: value}})
    assert spec.artefacts == [name]
    assert spec.needs_merge
    assert all(limit > 0 for limit in spec.limits(name).values())
    assert spec.limits(name)


def test_an_imatrix_comes_with_types_that_it_can_serve() -> None:
    assert parse({"/export": {"imatrix": True}}).artefacts == []
    assert parse({"/export": {"imatrix": True, "gguf": ["q4_k_m"]}}).artefacts == ["imatrix", "gguf-q4_k_m"]


def test_limits_are_the_specs_own_or_those_of_the_type() -> None:
    given = {"merged_logits": 0.5, "merged_kl": 0.25, "merged_4bit_kl": 2, "gguf": [{"type": "q8_0", "kl": 0.125}]}
    spec = parse({"/export": {"merged": ["16bit"], "gguf": ["q8_0", "q4_0"], "lora_gguf": "f16", "limits": given}})
    assert spec.limits("merged") == {"logit_ratio": 0.5, "kl": 0.25}
    assert spec.limits("merged_4bit") == {"kl": 2.0}
    assert spec.limits("gguf-q8_0") == {"max_kl": 0.125, "max_perplexity_rise": TYPES["q8_0"].max_perplexity_rise}
    assert spec.limits("gguf-q4_0") == {
        "max_kl": TYPES["q4_0"].max_kl,
        "max_perplexity_rise": TYPES["q4_0"].max_perplexity_rise,
    }
    assert spec.limits("lora_gguf") == {
        "max_kl": TYPES["f16"].max_kl,
        "max_perplexity_rise": TYPES["f16"].max_perplexity_rise,
    }
    assert spec.limits("imatrix") == {}


def test_a_gate_can_be_about_each() -> None:
    gate = load_schema("job")["definitions"]["evaluation"]["properties"]["gates"]["items"]
    assert set(gate["properties"]["of"]["items"]["enum"]) == {"trained", *measured(EVERYTHING, whole=False)}
    assert measured({"gguf": ["q8_0", "q4_0"]}, whole=True) == ["merged", "gguf", "gguf-q8_0", "gguf-q4_0"]


def test_each_lies_where_the_hub_takes_it_from_and_has_its_row_in_the_readme() -> None:
    assert set(PUSHED) == {"adapter", "merged", "merged_4bit", "gguf", "README.md"}
    rows = [
        line.split("`")[1]
        for line in README.read_text("utf-8").splitlines()
        if line.startswith("| `") and line.count("|") == 4
    ]
    assert rows == [*EXPORTS, "Modelfile"]


@pytest.mark.parametrize("name", [kind.name for kind in EXPORTS.values() if kind.form])
def test_a_form_is_made_by_a_module_of_its_own(name: str) -> None:
    form = EXPORTS[name].form
    assert form
    module = import_module(form.module)
    assert typing.get_type_hints(module.handle)["request"] is Conversion
    assert callable(module.reopen)


# ------------------------------------------------------------------------------------------- requests and answers

PATH = Path("/scratch/a")
READINGS = [Reading([1, 2], [[(1, 5), (0, 2)], []])]
MEASURE = Measure([[1, 2, 3], [4, 5]], [0, 3], [1], [[7, 8]], 0, [2], 8, READINGS)
STEP = ModelStep(1.5, 1e-4, 0.75)
COMPARED = Comparison(0.1, 40.0, 1e-5, 1.0)
EXAMINED = Examined(2.5, STEP, [[1], []], COMPARED, [[-1.5], []])
EXPECTED = Expected(49152, None, 2, 0, False, "{{ messages }}", [Tokenised("é", [1, 2], "é")])
AGAINST = Against(PATH / "d", PATH / "e", AskedIds([[1, 2], []], [8, 0], READINGS), {"max_kl": 0.1}, 2)
WRITTEN = Written(10, 0.5, 2, {"F32": 1, "Q8_0": 1})
QUALITY = Quality(2.0, 1.9, 0.01, 0.9, 100.0, True, 3, 3, STEP, [[4], []], [[-2.5]])
OPERATIONS = (
    worker.Convert(PATH, PATH / "b", "bf16", "tuned", 2),
    worker.Quantise(PATH, PATH / "b", "q8_0", None, 2, "cpu"),
    worker.Check(PATH, "gguf/a.gguf", "q8_0", PATH / "c", EXPECTED, AGAINST),
    worker.CheckLora(PATH, PATH / "b", "gguf/l.gguf", "f16", AGAINST),
    worker.WriteLora(PATH, PATH / "b", PATH / "c", "f16", "tuned"),
    worker.Split(PATH, 5),
    worker.GgufPlan(PATH, PATH / "b", ["q8_0"], True),
    worker.Rehearse(PATH, PATH / "b", EXPECTED),
)
RECORDS = [
    ReloadRequest(MEASURE, PATH, None, "4bit", "cpu", PATH / "probe", PATH / "t"),
    Reloaded(["model.layers.0"], ModelStep(1.5), [[1]], COMPARED, [[-1.5]]),
    AdaptedRequest(MEASURE, PATH, PATH / "b", "cuda", PATH / "c", PATH / "d", True),
    MergeRequest(PATH, PATH / "b", PATH / "c", [2], "cpu", TrainedBase(PATH, ["a"])),
    MergeReport(1, 2, 3, 0.5, 0.25),
    Conversion(PATH, PATH / "b", "cpu"),
    CompareRequest(
        MEASURE, PATH, (ReopenedForm("f", PATH / "f", "m", 1.0),), None,
        PATH / "t", [[1]], "cpu", PATH / "r", PATH / "i", 0.1, 0.01
    ),
    CompareReport(EXAMINED, {"f": dataclasses.replace(EXAMINED, comparison=None)}, True),
    *OPERATIONS,
    worker.GgufRequest(OPERATIONS),
    worker.GgufAnswer((WRITTEN, Checked(WRITTEN, QUALITY, 3), Parts(["a"], [1]), Planned({"q8_0": 5}),
                       Rehearsed(None))),
]  # fmt: skip


@pytest.mark.parametrize("record", RECORDS, ids=lambda record: type(record).__name__)
def test_what_travels_comes_back_equal_and_nothing_else_is_taken(record: Any) -> None:
    kind, document = type(record), json.loads(encode(record))
    assert build(kind, document) == record
    with pytest.raises(TypeError, match="another"):
        build(kind, document | {"another": 1})
    for field in dataclasses.fields(kind):
        if field.default is dataclasses.MISSING:
            with pytest.raises(TypeError, match=field.name):
                build(kind, {name: value for name, value in document.items() if name != field.name})


@pytest.mark.parametrize("operation", OPERATIONS, ids=lambda operation: type(operation).__name__)
def test_an_operation_that_nobody_knows_is_refused(operation: Any) -> None:
    document = json.loads(encode(operation))
    with pytest.raises(TypeError, match="no record has the fields"):
        build(worker.GgufRequest, {"steps": [document | {"another": 1}]})
