"""schemas/guide.md beside the code: its forms of rows are read as it says, the code has its messages and exit codes.

Its commands are run by `tests/flow/test_init.py`.
"""

from __future__ import annotations

import ast
import json
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest

from job import errors
from job.data.worker.shape import FORMATS, Columns, shape
from job.errors import TREE, InputError
from job.preview.seen import look
from job.training.methods import METHODS
from tests.elsewhere.test_readme import rows, section
from tests.forking import ROOT
from tests.specs import parse

GUIDE = "schemas/guide.md"
FORMS = rows(section(GUIDE, "Which format your rows have").partition("\n\n|")[2].partition("\n\n")[0])
SYMPTOMS = [
    (int(code), words.strip("`"))
    for code, words, _ in rows(section(GUIDE, "When something goes wrong").partition("\n\n|")[2].partition("\n\n")[0])
]
READ_AS = {"Chat": "conversation", "Pair": "raw text", "Document": "document", "Preference": "pair of answers",
           "Labelled": "answer with a label"}  # fmt: skip
SPEC = frozenset({errors.SpecError.exit_code})
EXIT_CODES = {kind.__name__: kind.exit_code for kind in TREE}


# What a method cannot do without
NEEDS = {"grpo": {"/training/grpo": {"rewards": [{"metric": "contains"}]}, "/model/backend": "peft"}}


@pytest.mark.parametrize("form", FORMS, ids=[form[0] for form in FORMS])
def test_a_row_is_read_as_the_guide_says(form: list[str], tmp_path: Path) -> None:
    row, kind, beside = (cell.strip("`") for cell in form[:3])
    (tmp_path / "rows.jsonl").write_text(row + "\n", "utf-8")
    more = {} if beside == "–" else json.loads(beside)
    method = next(method.name for method in METHODS.values() if kind in method.formats)
    spec = parse(
        {
            "/data/train/0": {"source": str(tmp_path / "rows.jsonl"), "format": kind, **more},
            "/training/method": method,
            **NEEDS.get(method, {}),
        }
    )
    assert look(spec).failure() is None
    if kind == "template":
        assert (FORMATS[kind].is_chat, form[3]) == (True, "conversation")
    else:
        example = shape(kind, json.loads(row), Columns(spec.data.train[0].columns))
        assert READ_AS[type(example).__name__] == form[3]


def test_every_format_is_in_the_table() -> None:
    assert {form[1].strip("`") for form in FORMS} == set(FORMATS)


def test_a_format_is_not_taken_for_another(tmp_path: Path) -> None:
    """What the first test looks at does tell them apart."""
    (tmp_path / "rows.jsonl").write_text(FORMS[0][0].strip("`") + "\n", "utf-8")
    failure = look(parse({"/data/train/0": {"source": str(tmp_path / "rows.jsonl"), "format": "alpaca"}})).failure()
    assert isinstance(failure, InputError)


@cache
def said() -> list[tuple[str, frozenset[int]]]:
    """Each text in the code that is not a docstring, with the exit codes that it may come with: that of the error it is
    said in, else those of the errors that its module names. What is wrong with a spec is collected by modules that name
    none."""
    modules = [(path, ast.parse(path.read_text("utf-8"))) for path in sorted((ROOT / "job").rglob("*.py"))]
    return [
        text for path, module in modules for text in _texts(module, SPEC if path.parent.name == "spec" else frozenset())
    ]


def _texts(module: ast.Module, otherwise: frozenset[int]) -> Iterator[tuple[str, frozenset[int]]]:
    named = frozenset(
        EXIT_CODES[node.id] for node in ast.walk(module) if isinstance(node, ast.Name) and node.id in EXIT_CODES
    )

    def visit(node: ast.AST, codes: frozenset[int]) -> Iterator[tuple[str, frozenset[int]]]:
        if isinstance(node, ast.Constant) and isinstance(node.value, str):
            yield node.value, codes
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id in EXIT_CODES:
            codes = frozenset({EXIT_CODES[node.func.id]})
        for child in ast.iter_child_nodes(node):
            if not (isinstance(child, ast.Expr) and isinstance(child.value, ast.Constant)):
                yield from visit(child, codes)

    return visit(module, named or otherwise)


@pytest.mark.parametrize(("code", "words"), SYMPTOMS)
def test_a_symptom_is_a_message_of_the_code(code: int, words: str) -> None:
    found = [codes for text, codes in said() if words in text]
    assert found, f"no message in job/ has: {words}"
    assert any(code in codes for codes in found), f"{words}: exit codes {sorted(frozenset().union(*found))}"


def test_the_symptoms_are_many_and_of_every_class_that_has_a_name() -> None:
    assert len({words for _, words in SYMPTOMS}) == len(SYMPTOMS) >= 12
    assert {code for code, _ in SYMPTOMS} == {kind.exit_code for kind in TREE} - {errors.JobError.exit_code}
