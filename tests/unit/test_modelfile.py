"""Modelfiles: the trained chat template in Ollama's language, against transformers' own rendering of the Jinja one."""

from __future__ import annotations

import dataclasses
from functools import cache
from pathlib import Path
from typing import Any

import pytest

from job.data.build import Prepared
from job.data.templates import NAMED
from job.errors import GateError, PolicyError
from job.publish.ollama import go_template
from job.publish.ollama.modelfile import TEMPLATE_OF_OLLAMA, write_modelfiles
from job.publish.ollama.ollama_template import translate
from tests.data_rows import byte_tokenizer_dir, prepare, turns
from tests.smollm2 import model_dir

SYSTEM = [{"role": "system", "content": "Be brief."}]
NO_SYSTEM = "a system message in front, for which the trained template has no place"
TALKS = {
    "question": turns("Hi?"),
    "second question": turns("Hi?", "Yes.", "Why?"),
    "third question": turns("a", "b", "c", "d", "e"),
    "system": [*SYSTEM, *turns("Hi?")],
    "system and two questions": [*SYSTEM, *turns("Hi?", "Yes.", "Why?")],
    "odd characters": [*SYSTEM, *turns('{{ "x" }} """', "\\n <|im_end|> é▁｜", "<b>&amp;\u200b</b>")],
}
CHATML = "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
PROMPT = "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
TAIL = "{% for m in (messages[1:] if messages[0].role == 'system' else messages) %}"
QUESTION, ANSWER = "{% if m.role == 'user' %}", "{% else %} {{ m.content }}</s>{% endif %}{% endfor %}"
TEMPLATES = {
    "system prompt in the first question": "<s>{% if messages[0].role == 'system' %}"
    + "{% set s = '<<SYS>>\n' + messages[0].content + '\n<<>>' %}{% endif %}" + TAIL + QUESTION
    + "[INST] {{ s if loop.first else '' }}{{ m.content }} [/INST]" + ANSWER,
    "system prompt in the last question": "<s>" + TAIL + QUESTION
    + "[INST] {% if loop.last and messages[0].role == 'system' %}"
    + "{{ messages[0].content + '\n\n' }}{% endif %}{{ m.content }}[/INST]" + ANSWER,
    "default system prompt": "{% if messages[0].role != 'system' %}<|im_start|>system\nHelp.<|im_end|>\n{% endif %}"
    + CHATML + PROMPT,
    "forced thinking": CHATML + "{% if add_generation_prompt %}<|im_start|>assistant\n<think>\n{% endif %}",
    "thinking in the last answer": "{% for m in messages %}<|im_start|>{{ m.role }}\n"
    + "{% if loop.last and m.role == 'assistant' %}<think>\n"
    + "\n</think>\n\n{% endif %}{{ m.content }}<|im_end|>\n{% endfor %}" + PROMPT,
    "no system role": "{% if messages[0].role == 'system' %}{{ raise_exception('no system') }}{% endif %}"
    + CHATML + PROMPT,
    "system left out": TAIL + "{{ m.role + ': ' + m.content + '\n' }}{% endfor %}assistant:",
    "no line ends": "{% for m in messages %}<|{{ m.role }}|>{{ m.content }}{% endfor %}<|assistant|>",
    "marks of Go and of Modelfiles": "{% for m in messages %}"
    + "{{ '{{' }}{{ m.role }} \"\"\" }}\\n\u200b\x07 \u2028🙂{{ m.content }}\n{% endfor %}>",
}  # fmt: skip


@cache
def prepared(template: str, model: Path | None = None) -> Prepared:
    import tempfile

    with tempfile.TemporaryDirectory() as folder:
        rows = [{"messages": turns("a", "b")}]
        return prepare(
            Path(folder), rows, "messages", model or byte_tokenizer_dir(), chat_template=template, length=65_536
        )


def jinja(template: Prepared, messages: list[Any]) -> str | None:
    from jinja2 import TemplateError

    try:
        return str(template.tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True))
    except TemplateError:
        return None


def read_modelfile(text: str) -> list[tuple[str, str]]:
    """Commands with their values, as the public description of Ollama's parser has it.

    A value ends with its line, or with three quotes if it begins so; quotes around it go, and characters that cannot
    be printed are dropped wherever they are.
    """
    text = "".join(c for c in text if c.isprintable() or c in "\n\t")
    commands = []
    while text := text.lstrip():
        name, _, text = text.partition(" ")
        if name.startswith("#"):
            text = (name + " " + text).partition("\n")[2]
            continue
        assert name in ("FROM", "TEMPLATE", "PARAMETER"), name
        if name == "PARAMETER":
            name, _, text = text.partition(" ")
        if text.startswith('"""'):
            value, closed, text = text[3:].partition('"""')
            assert closed
            assert text.startswith("\n")
        else:
            value, _, text = text.partition("\n")
            value = value[1:-1] if value.startswith('"') else value
        commands.append((name, value))
    return commands


def written(tmp_path: Path, template: Prepared, begin: str = "") -> dict[str, str]:
    (path, _) = write_modelfiles(tmp_path, {"Q8_0": "demo-Q8_0.gguf"}, template.probes, begin, ["<|im_end|>"])
    return dict(read_modelfile(path.read_text("utf-8")))


@pytest.mark.parametrize("name", [*NAMED, *TEMPLATES])
@pytest.mark.parametrize("talk", TALKS)
def test_renders_what_the_trained_template_renders(tmp_path: Path, name: str, talk: str) -> None:
    template = prepared(TEMPLATES.get(name, name))
    expected = jinja(template, TALKS[talk])
    if expected is None:
        assert (name, "system" in TALKS[talk][0]["role"]) == ("no system role", True)
    else:
        assert go_template.render(written(tmp_path, template)["TEMPLATE"], TALKS[talk]) == expected


def test_the_models_own_template_with_its_default_system_prompt(tmp_path: Path) -> None:
    template = prepared("model", model_dir())
    go = written(tmp_path, template)["TEMPLATE"]
    assert "You are a helpful AI assistant named SmolLM" in go
    for talk in TALKS.values():
        assert go_template.render(go, talk) == jinja(template, talk)


@pytest.mark.parametrize("name", ["chatml", "qwen", "phi", "default system prompt"])
def test_an_answer_that_is_begun_stays_open(name: str) -> None:
    template = prepared(TEMPLATES.get(name, name))
    found = translate(template.probes, "")
    assert found
    begun = go_template.render(found.text, turns("Hi?", "I am"))
    assert begun == jinja(template, turns("Hi?")) + "I am"  # type: ignore[operator]


@pytest.mark.parametrize(
    ("name", "differences"),
    [
        ("chatml", ()),
        ("qwen", ("tools",)),
        ("llama-3", ("white space at the ends of a message",)),
        ("gemma", ("a system message after the first turn", "white space at the ends of a message")),
        ("alpaca", ("an Alpaca input in a question",)),
        ("forced thinking", ()),
        ("thinking in the last answer", ("an answer that is to be continued",)),
        ("no system role", (NO_SYSTEM,)),
        ("system left out", (NO_SYSTEM, "a system message after the first turn")),
    ],
)
def test_what_is_said_of_differences(tmp_path: Path, name: str, differences: tuple[str, ...]) -> None:
    template = prepared(TEMPLATES.get(name, name))
    found = translate(template.probes, "")
    assert found
    assert found.differences == differences
    written(tmp_path, template)
    comments = [line for line in (tmp_path / "Modelfile").read_text("utf-8").splitlines() if line.startswith("#   ")]
    assert comments == [f"#   {difference}" for difference in differences]


@pytest.mark.parametrize(
    "template",
    [
        "{% for m in messages %}{{ loop.index }}. {{ m.role }}: {{ m.content }}\n{% endfor %}"
        "{{ 'A:' if add_generation_prompt else '' }}",
        "{% for m in messages %}{{ m.role }}: {{ m.content | upper }}\n{% endfor %}"
        "{% if add_generation_prompt %}A: {% endif %}",
        "{% for m in messages %}{{ m.role }}: {{ m.content }}\n{% endfor %}"
        "{{ 'first' if messages | length == 1 else 'later' }}:",
        "{% for m in messages %}{{ 'x' * 40000 if loop.first else '' }}{{ m.role }}: {{ m.content }}\n{% endfor %}",
    ],
    ids=["numbered turns", "changed letters", "prompt by length", "too long"],
)
def test_what_go_cannot_say_is_left_to_ollama(tmp_path: Path, template: str) -> None:
    found = prepared(template)
    assert translate(found.probes, "") is None
    commands = written(tmp_path, found)
    assert commands == {"FROM": "./demo-Q8_0.gguf", "stop": "<|im_end|>"}
    assert TEMPLATE_OF_OLLAMA in (tmp_path / "Modelfile").read_text("utf-8")


def test_nothing_is_said_of_chats_that_were_never_rendered() -> None:
    """Every everyday probe refused, one other rendered: there is nothing to prove a template with."""
    probes = prepared("chatml").probes
    assert (
        translate([dataclasses.replace(probe, text=probe.text if probe.about else None) for probe in probes], "")
        is None
    )


def test_the_begin_token_is_left_to_llama_cpp(tmp_path: Path) -> None:
    template = prepared("<s>" + CHATML + PROMPT)
    go = written(tmp_path, template, "<s>")["TEMPLATE"]
    assert "<s>" + go_template.render(go, TALKS["system"]) == jinja(template, TALKS["system"])
    assert "#" not in (tmp_path / "Modelfile").read_text("utf-8")
    written(tmp_path, prepared("chatml"), "<s>")
    assert '#   the beginning: llama.cpp puts "<s>" there\n' in (tmp_path / "Modelfile").read_text("utf-8")


def test_one_for_each_quant_and_the_best_by_the_plain_name(tmp_path: Path) -> None:
    files = {"Q8_0": "demo-Q8_0.gguf", "Q4_K_M": "demo-Q4_K_M.gguf", "F16": "demo-F16-00001-of-00003.gguf"}
    tokens = ["<|im_end|>", 'a"b', "end of text", "\u200b", "new\nline", '""x', ""]
    paths = write_modelfiles(tmp_path, files, prepared("chatml").probes, "", tokens)
    assert [path.name for path in paths] == ["Modelfile", "Modelfile.Q8_0", "Modelfile.Q4_K_M", "Modelfile.F16"]
    plain, best, small, parts = (path.read_text("utf-8") for path in paths)
    assert plain == best
    assert small == best.replace("Q8_0", "Q4_K_M")
    assert parts.startswith(
        "# Join the parts first: llama-gguf-split --merge demo-F16-00001-of-00003.gguf demo-F16.gguf\n"
        "FROM ./demo-F16.gguf\n"
    )
    assert [command for command in read_modelfile(plain) if command[0] != "TEMPLATE"] == [
        ("FROM", "./demo-Q8_0.gguf"),
        ("stop", "<|im_end|>"),
        ("stop", 'a"b'),
        ("stop", "end of text"),
    ]
    assert write_modelfiles(tmp_path, {}, (), "", []) == []


@pytest.mark.parametrize("name", ["x.gguf\nADAPTER ./y", "../x.gguf", "x y.gguf", "-x.gguf", "x.bin", '"x.gguf'])
def test_a_file_name_that_would_be_read_otherwise_is_refused(tmp_path: Path, name: str) -> None:
    with pytest.raises(GateError, match="a Modelfile cannot name this file"):
        write_modelfiles(tmp_path, {"Q8_0": name}, (), "", [])
    assert list(tmp_path.iterdir()) == []


def test_raw_text_goes_on_from_the_prompt(tmp_path: Path) -> None:
    raw = prepare(tmp_path, [{"text": "some text to learn"}], "text", byte_tokenizer_dir())
    assert raw.probes == ()
    assert written(tmp_path, raw)["TEMPLATE"] == "{{ .Prompt }}"


def test_probes_run_in_the_sandbox_only() -> None:
    """A template that turns on the probes, which hold what no row does, is refused as on rows."""
    bomb = "{% if 'Aa' in messages[0].content %}{% for i in range(99999) %}{{ 'x' * 1000 }}{% endfor %}{% endif %}"
    with pytest.raises(PolicyError, match="/data/chat_template: the template is refused"):
        prepared(bomb + CHATML + PROMPT)
    half = prepared("{% if messages | length == 1 %}{{ '\\ud800' }}{% endif %}" + CHATML + PROMPT)
    assert [probe.text is None for probe in half.probes if len(probe.messages) == 1] == [True, True, True]


@pytest.mark.parametrize(
    ("template", "expected"),  # as Go 1.27's text/template renders them
    [
        ("a {{- .System -}} b", "aSb"),
        ("a {{ .System }} b", "a S b"),
        ("{{ range .Messages }}{{ .Role }},{{ end }}", "system,user,"),
        ("{{ range $i, $m := .Messages }}{{ $i }}{{ $m.Content }}{{ end }}", None),
        (
            "{{ range $i, $m := .Messages }}{{ if eq (len (slice $.Messages $i)) 1 }}{{ .Content }}{{ end }}{{ end }}",
            "Q",
        ),
        ('{{ $x := "1" }}{{ range .Messages }}{{ $x = .Role }}{{ end }}{{ $x }}', "user"),
        ('{{ if eq .System "a" "S" }}y{{ else }}n{{ end }}', "y"),
        ('{{ if ne .System "S" }}y{{ else if and .System (eq .System "S") }}z{{ end }}', "z"),
        ('{{ "a\\n\\"}}{{\\\\ \\u00e9\\U0001f642\\t" }}', 'a\n"}}{{\\ é🙂\t'),
        ("{{ printf .System }}", None),
        ("{{ if .System }}", None),
        ("{{ end }}", None),
        ("{{ }}", None),
        ("{{ .System", None),
        ("{{ ( }}", None),
        ("{{ .System .System }}", None),
        ("{{ | }}", None),
    ],
)
def test_the_part_of_go_that_is_understood(template: str, expected: str | None) -> None:
    messages = [{"role": "system", "content": "S"}, {"role": "user", "content": "Q"}]
    if expected is None:
        with pytest.raises(go_template.NotUnderstoodError):
            go_template.render(template, messages)
    else:
        assert go_template.render(template, messages) == expected


def test_strings_come_back_and_hold_only_what_a_modelfile_keeps() -> None:
    text = "".join(map(chr, [*range(0x300), 0x2028, 0xFEFF, 0xE000, 0x1F642, 0xE0001, *range(0x2581, 0x2590)]))
    literal = go_template.quoted(text)
    assert literal.isprintable()
    assert go_template.unquoted(literal) == text
    assert '"""' not in go_template.quoted('"""')
