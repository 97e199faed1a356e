"""Ids and masks, token for token, against two independent references.

transformers: `apply_chat_template(return_assistant_tokens_mask=True)` on a template of the same meaning that is written
here with generation tags around each answer and its end token. Unsloth: `train_on_responses_only` on ChatML, in a
process of its own.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from job.data.tokenizer import end_tokens, load_tokenizer, write_tokenizer
from job.data.worker.batch import answer
from job.data.worker.wire import Job, Request, Source
from tests.data_rows import SHARED, Row, byte_tokenizer_dir, prepare, turns
from tests.forking import environment, run_forked
from tests.smollm2 import model_dir
from tests.tiny import tiny_dir

END = "<|im_end|>"
SYSTEM = "You are a helpful AI assistant named SmolLM, trained by Hugging Face"

# Each: what comes before the conversation, then for each role its opening, then the answer's opening and close.
TAGGED = """{{ bos }}{% for m in messages %}
{%- if m.role == 'assistant' %}{{ open_answer }}{% generation %}{{ m.content + close }}{% endgeneration %}{{ after }}
{%- else %}{{ open[m.role] + m.content + close_turn }}{% endif %}{% endfor %}"""

CHATML = {
    "open": {role: f"<|im_start|>{role}\n" for role in ("system", "user")},
    "close_turn": f"{END}\n",
    "open_answer": "<|im_start|>assistant\n",
    "close": END,
    "after": "\n",
}
LLAMA_3 = {
    "open": {role: f"<|start_header_id|>{role}<|end_header_id|>\n\n" for role in ("system", "user")},
    "close_turn": "<|eot_id|>",
    "open_answer": "<|start_header_id|>assistant<|end_header_id|>\n\n",
    "close": "<|eot_id|>",
    "after": "",
}
GEMMA = {
    "open": {"user": "<start_of_turn>user\n"},
    "close_turn": "<end_of_turn>\n",
    "open_answer": "<start_of_turn>model\n",
    "close": "<end_of_turn>",
    "after": "\n",
}
PHI = {
    "open": {role: f"<|{role}|>\n" for role in ("system", "user")},
    "close_turn": "<|end|>\n",
    "open_answer": "<|assistant|>\n",
    "close": "<|end|>",
    "after": "\n",
}
FORMS = {"chatml": CHATML, "qwen": CHATML, "llama-3": LLAMA_3, "gemma": GEMMA, "phi": PHI}
MARKERS = ["<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>", "<start_of_turn>", "<end_of_turn>", "<|user|>",
           "<|assistant|>", "<|system|>", "<|end|>", "[INST]", "[/INST]"]  # fmt: skip


def reference(tokenizer: Any, messages: list[Row], form: dict[str, Any]) -> tuple[list[int], list[int]]:
    found = tokenizer.apply_chat_template(
        messages, chat_template=TAGGED, return_assistant_tokens_mask=True, return_dict=True, bos="", **form
    )
    return found["input_ids"], found["assistant_masks"]


def masked(ids: list[int], mask: list[int]) -> list[int]:
    return [token if learned else -100 for token, learned in zip(ids, mask, strict=True)]


def assert_equals_reference(
    prepared: Any, conversations: list[list[Row]], form: dict[str, Any], length: int = 100_000
) -> None:
    assert len(prepared.train) == len(conversations)
    for row, messages in zip(prepared.train, conversations, strict=True):
        ids, mask = reference(prepared.tokenizer, messages, form)
        assert row["input_ids"] == ids[:length]
        assert row["labels"] == masked(ids, mask)[:length]
        assert any(mask)


def with_system(messages: list[Row]) -> list[Row]:
    """SmolLM2's own template opens a conversation without a system prompt with its own."""
    return messages if messages[0]["role"] == "system" else [{"role": "system", "content": SYSTEM}, *messages]


CONVERSATIONS = [
    turns("hi", "hello"),
    turns("one", "two", "three", "four", "five", "six"),
    [{"role": "system", "content": "Be brief."}, *turns("Why?", "Because.\n\nIt is 😀 so.")],
    turns("  spaces  ", " leading and trailing \n"),
    turns("markers <|im_start|>assistant\nfake<|im_end|>", "the answer <|im_start|>user\nalso fake"),
    [*turns("ends with", "an answer"), {"role": "user", "content": "and a question"}],
    [{"role": "assistant", "content": "I begin."}, *turns("fine", "good")],
    turns("中文问题", "答案是四十二。"),
]
SYSTEM_FREE = [
    c for c in CONVERSATIONS if c[0]["role"] == "user" and all(m["content"] == m["content"].strip() for m in c)
]


def test_messages_with_the_models_own_template(tmp_path: Path) -> None:
    prepared = prepare(tmp_path, [{"messages": c} for c in CONVERSATIONS], "messages", length=100_000)
    assert_equals_reference(prepared, [with_system(c) for c in CONVERSATIONS], CHATML)
    tokenizer = load_tokenizer(tiny_dir())
    for row, messages in zip(prepared.train, CONVERSATIONS, strict=True):
        assert row["input_ids"] == tokenizer.apply_chat_template(messages)["input_ids"]


def test_sharegpt(tmp_path: Path) -> None:
    speakers = {"system": "system", "user": "human", "assistant": "gpt"}
    rows = [{"conversations": [{"from": speakers[m["role"]], "value": m["content"]} for m in c]} for c in CONVERSATIONS]
    prepared = prepare(tmp_path, rows, "sharegpt", length=100_000)
    assert_equals_reference(prepared, [with_system(c) for c in CONVERSATIONS], CHATML)


def test_alpaca(tmp_path: Path) -> None:
    rows = [
        {"instruction": "Add.", "input": "1 and 2", "output": "3"},
        {"instruction": "Greet.", "input": "", "output": "Hello."},
    ]
    prepared = prepare(tmp_path, rows, "alpaca", length=100_000)
    assert_equals_reference(
        prepared, [with_system(turns("Add.\n\n1 and 2", "3")), with_system(turns("Greet.", "Hello."))], CHATML
    )


def test_alpaca_with_the_alpaca_prompt(tmp_path: Path) -> None:
    rows = [
        {"instruction": "Add.", "input": "1 and 2", "output": "3"},
        {"instruction": "Greet.", "input": "", "output": "Hello."},
    ]
    prepared = prepare(tmp_path, rows, "alpaca", chat_template="alpaca")
    prompts = [
        "Below is an instruction that describes a task, paired with an input that provides further context. "
        "Write a response that appropriately completes the request.\n\n"
        "### Instruction:\nAdd.\n\n### Input:\n1 and 2\n\n### Response:\n",
        "Below is an instruction that describes a task. "
        "Write a response that appropriately completes the request.\n\n### Instruction:\nGreet.\n\n### Response:\n",
    ]
    form = {"open": {"user": ""}, "close_turn": "", "open_answer": "", "close": END, "after": ""}
    assert_equals_reference(prepared, [turns(p, r["output"]) for p, r in zip(prompts, rows, strict=True)], form)


def test_prompt_completion_messages(tmp_path: Path) -> None:
    rows = [
        {"prompt": turns("a", "context, not learned", "b"), "completion": [{"role": "assistant", "content": "learned"}]}
    ]
    row = prepare(tmp_path, rows, "prompt_completion").train[0]
    tokenizer = load_tokenizer(tiny_dir())
    assert row["input_ids"] == tokenizer.apply_chat_template(rows[0]["prompt"] + rows[0]["completion"])["input_ids"]
    assert tokenizer.decode([label for label in row["labels"] if label != -100]) == f"learned{END}"


def test_prompt_completion_strings(tmp_path: Path) -> None:
    rows = [{"prompt": "The capital of France is", "completion": " Paris."}, {"prompt": "2+2=", "completion": "4"}]
    prepared = prepare(tmp_path, rows, "prompt_completion")
    for row, source in zip(prepared.train, rows, strict=True):
        prompt, completion = (prepared.tokenizer(source[key])["input_ids"] for key in ("prompt", "completion"))
        assert row["input_ids"] == [*prompt, *completion, 2]
        assert row["labels"] == [*[-100] * len(prompt), *completion, 2]


def test_text(tmp_path: Path) -> None:
    text = "A document. " * 100
    prepared = prepare(tmp_path, [{"text": text}], "text", length=64)
    whole = [*prepared.tokenizer(text)["input_ids"], 2]
    assert [token for row in prepared.train for token in row["input_ids"]] == whole
    assert all(row["labels"][1:] == row["input_ids"][1:] for row in prepared.train)
    assert {row["labels"][0] for row in prepared.train} == {-100}


def test_template_over_columns(tmp_path: Path) -> None:
    rows = [{"question": "Which?", "options": {"A": "this", "B": "that"}, "answer": "that"}]
    template = {
        "system": "You answer.",
        "user": "{{ question }}\n{% for key, value in options.items() %}{{ key }}. {{ value }}\n{% endfor %}",
        "assistant": "It is {{ answer }}.",
    }
    prepared = prepare(tmp_path, rows, "template", source={"template": template})
    expected = [{"role": "system", "content": "You answer."}, *turns("Which?\nA. this\nB. that\n", "It is that.")]
    assert_equals_reference(prepared, [expected], CHATML)


@pytest.fixture(scope="module")
def marked_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """SmolLM2's tokenizer with every named template's markers as tokens."""
    folder = tmp_path_factory.mktemp("marked")
    tokenizer = load_tokenizer(model_dir())
    tokenizer.add_special_tokens({"additional_special_tokens": MARKERS})
    tokenizer.save_pretrained(folder)
    return folder


@pytest.mark.parametrize("name", FORMS)
def test_named_templates(name: str, marked_model: Path, tmp_path: Path) -> None:
    prepared = prepare(tmp_path, [{"messages": c} for c in SYSTEM_FREE], "messages", marked_model, chat_template=name)
    assert len(SYSTEM_FREE) == 5
    assert_equals_reference(prepared, SYSTEM_FREE, FORMS[name])
    assert prepared.tokenizer.eos_token == FORMS[name]["close"]
    assert not any("plain text" in note for note in prepared.report.notes)
    for row, messages in zip(prepared.train, SYSTEM_FREE, strict=True):
        assert row["input_ids"] == prepared.tokenizer.apply_chat_template(messages)["input_ids"]


def test_mistral(marked_model: Path, tmp_path: Path) -> None:
    prepared = prepare(
        tmp_path, [{"messages": c} for c in SYSTEM_FREE], "messages", marked_model, chat_template="mistral"
    )
    form = {"open": {"user": "[INST] "}, "close_turn": "[/INST]", "open_answer": "", "close": END, "after": ""}
    spaced = [
        [m | ({"content": f" {m['content']}"} if m["role"] == "assistant" else {}) for m in c] for c in SYSTEM_FREE
    ]
    assert_equals_reference(prepared, spaced, form)


TOOLS = [{"type": "function", "function": {"name": "add", "parameters": {"type": "object", "properties": {}}}}]
CALL = {"type": "function", "function": {"name": "add", "arguments": {"a": 1, "b": "é"}}}


def test_tool_calls(tmp_path: Path) -> None:
    messages = [
        {"role": "user", "content": "1+1?"},
        {"role": "assistant", "content": "Let me see.", "tool_calls": [CALL, CALL]},
        {"role": "tool", "content": "2"},
        {"role": "assistant", "content": "It is 2."},
    ]
    prepared = prepare(tmp_path, [{"messages": messages, "tools": TOOLS}], "messages", chat_template="qwen")
    call = '<tool_call>\n{"name": "add", "arguments": {"a": 1, "b": "é"}}\n</tool_call>'
    opening = prepared.tokenizer.apply_chat_template(
        messages[:1], tools=TOOLS, add_generation_prompt=False, tokenize=False
    )
    flat = [
        {"role": "user", "content": opening},
        {"role": "assistant", "content": f"Let me see.\n{call}\n{call}"},
        {"role": "user", "content": f"<|im_start|>user\n<tool_response>\n2\n</tool_response>{END}\n"},
        {"role": "assistant", "content": "It is 2."},
    ]
    assert_equals_reference(prepared, [flat], CHATML | {"open": {"user": ""}, "close_turn": ""})
    assert json.dumps(TOOLS[0]) in opening


def test_train_on_all_learns_everything_after_the_first_token(tmp_path: Path) -> None:
    row = prepare(tmp_path, [{"messages": turns("a", "b")}], "messages", train_on="all").train[0]
    assert row["labels"] == [-100, *row["input_ids"][1:]]


MARKED = TAGGED.replace("m.role == 'assistant'", "m.role == 'assistant' and m.weight != 0").replace(
    "{%- else %}", "{%- elif m.role == 'assistant' %}{{ open_answer + m.content + close + after }}{%- else %}"
)


@pytest.mark.parametrize("kind", ["messages", "sharegpt"])
def test_answers_that_are_marked_are_context_only(kind: str, tmp_path: Path) -> None:
    """Against transformers with generation tags around the others."""
    talk = turns("one", "bad", "no", "good", "go on", "also bad")
    marks: list[Row] = [{}, {"weight": 0}, {}, {"weight": 1}, {}, {"train": False}]
    marked = [message | mark for message, mark in zip(talk, marks, strict=True)]
    speakers = {"user": "human", "assistant": "gpt"}
    said = [{"from": speakers[m["role"]], "value": m["content"]} | mark for m, mark in zip(talk, marks, strict=True)]
    row = {"messages": marked} if kind == "messages" else {"conversations": said}
    prepared = prepare(tmp_path, [row], kind, chat_template="chatml")
    reference_marks = [
        message | ({"weight": 0} if mark and not mark.get("weight") else {})
        for message, mark in zip(talk, marks, strict=True)
    ]
    found = prepared.tokenizer.apply_chat_template(
        reference_marks, chat_template=MARKED, return_assistant_tokens_mask=True, return_dict=True, bos="", **CHATML
    )
    assert prepared.train[0]["input_ids"] == found["input_ids"]
    assert prepared.train[0]["labels"] == masked(found["input_ids"], found["assistant_masks"])
    assert prepared.tokenizer.decode([label for label in prepared.train[0]["labels"] if label != -100]) == f"good{END}"


def test_marked_turns_are_hidden_where_all_is_learned(tmp_path: Path) -> None:
    talk = [
        {"role": "user", "content": "one", "weight": 0},
        {"role": "assistant", "content": "bad", "weight": 0},
        *turns("no", "good"),
    ]
    prepared = prepare(tmp_path, [{"messages": talk}], "messages", byte_tokenizer_dir(), train_on="all")
    labels = prepared.train[0]["labels"]
    shown = "".join("_" if label == -100 else prepared.tokenizer.decode([label]) for label in labels)
    assert shown == (
        "_user\n___<|im_end|>\n<|im_start|>assistant\n____\n<|im_start|>user\nno<|im_end|>\n<|im_start|>assistant\ngood<|im_end|>\n"
    )


def test_truncation_is_on_the_right(tmp_path: Path) -> None:
    rows = [{"messages": turns("a", "word " * 200)}]
    prepared = prepare(tmp_path, rows, "messages", length=64)
    assert_equals_reference(prepared, [with_system(rows[0]["messages"])], CHATML, 64)
    assert prepared.report.train["truncated_rows"] == 1


texts = st.lists(
    st.one_of(
        st.text(st.characters(min_codepoint=32, max_codepoint=0x17F), max_size=12),
        st.sampled_from(["<|im_end|>", "<|im_start|>", "\n", "  ", "\n\n", "👩‍👩‍👧", "\ue000", "é", "{{ x }}"]),
    ),
    max_size=5,
).map("".join)
spoken = texts.filter(lambda text: bool(text.strip()))


@pytest.fixture(scope="module")
def in_process(tmp_path_factory: pytest.TempPathFactory) -> tuple[Any, Any, dict[str, Any]]:
    from tokenizers import Tokenizer

    tokenizer = load_tokenizer(tiny_dir())
    rust = Tokenizer.from_file(str(write_tokenizer(tokenizer, tmp_path_factory.mktemp("rust") / "tokenizer.json")))
    variables = dict(tokenizer.special_tokens_map)
    job = Job(
        tokenizer.chat_template, variables, end_tokens(tokenizer), "responses", 100_000, [], tokenizer.eos_token_id
    )
    return tokenizer, rust, job


@settings(max_examples=300, deadline=None)
@given(contents=st.lists(st.tuples(texts, spoken), min_size=1, max_size=3))
def test_any_conversation_equals_the_reference(
    in_process: tuple[Any, Any, Job], contents: list[tuple[str, str]]
) -> None:
    tokenizer, rust, job = in_process
    messages = turns(*[text for pair in contents for text in pair])
    for text in (message["content"] for message in messages):  # the reference gives up at characters without a token
        assume(tokenizer.decode(tokenizer(text)["input_ids"]) == text)
    request = Request("rows", job, source=Source("", "messages", {}, {}, ""), rows=({"messages": messages},))
    reply, body = answer(request, rust, lambda pointer: None)
    ids, mask = reference(tokenizer, with_system(messages), CHATML)
    assert reply.faults == []
    [[_, [length], trained, truncated, _, further]] = reply.sequences
    found = list(memoryview(body).cast("i"))
    assert found[:length] == ids
    assert found[length:] == masked(ids, mask)
    assert (trained, truncated, further) == (sum(mask), False, 0)


@settings(max_examples=200, deadline=None)
@given(text=texts)
def test_any_text_has_the_ids_of_the_models_tokenizer(in_process: tuple[Any, Any, Job], text: str) -> None:
    tokenizer, rust, _ = in_process
    assert rust.encode(text, add_special_tokens=False).ids == tokenizer(text, add_special_tokens=False)["input_ids"]


def rows_for_unsloth(folder: Path) -> list[tuple[str, Path | list[Row], dict[str, Any]]]:
    """(format, rows, source keys) of the real files where they are, of our own rows elsewhere."""
    medqa = {
        "user": "{{ question }}\n{% for k, v in options.items() %}{{ k }}. {{ v }}\n{% endfor %}",
        "assistant": "It is {{ answer }}.",
    }
    plain = [
        c for c in CONVERSATIONS if c[0]["role"] != "assistant" and c[-1]["role"] == "assistant" and "<|" not in str(c)
    ]
    sources: list[tuple[str, Path | list[Row], dict[str, Any]]] = [("messages", [{"messages": c} for c in plain], {})]
    real = [
        ("alpaca", "alpaca_en_demo.json", {}),
        ("sharegpt", "fastchat_dummy_conversation.json", {}),
        ("template", "medqa_usmle_5opt.jsonl", {"template": medqa}),
        ("messages", "k8s_messages.parquet", {}),
    ]
    return sources + [(kind, SHARED / name, keys) for kind, name, keys in real if (SHARED / name).is_file()]


def test_masks_equal_unsloths(tmp_path: Path) -> None:
    rows: list[Row] = []
    for number, (kind, source, keys) in enumerate(rows_for_unsloth(tmp_path)):
        folder = tmp_path / str(number)
        folder.mkdir()
        rows += list(prepare(folder, source, kind, source=keys | {"limit": 120}, length=100_000).train)
    (tmp_path / "ids.json").write_text(json.dumps([row["input_ids"] for row in rows]))
    model = prepare(tmp_path, [{"messages": turns("a", "b")}], "messages").tokenizer
    model.save_pretrained(tmp_path / "model")
    arguments = [str(tmp_path / name) for name in ("model", "ids.json", "labels.json")]
    code, _, complaint = run_forked(
        "tests.contract.unsloth_masks:main", arguments, tmp_path, environment(tmp_path), 300
    )
    assert code == 0, complaint[-2000:]
    theirs = json.loads((tmp_path / "labels.json").read_text())
    assert len(rows) >= 4
    assert [row["labels"] for row in rows] == theirs


@pytest.mark.skipif(not (SHARED / "glaive_toolcall_en_demo.json").is_file(), reason="the shared rows are not here")
def test_real_tool_conversations_learn_exactly_the_assistants_turns(tmp_path: Path) -> None:
    path = SHARED / "glaive_toolcall_en_demo.json"
    prepared = prepare(tmp_path, path, "sharegpt", chat_template="qwen", length=100_000)
    source = json.loads(path.read_text("utf-8"))
    assert len(prepared.train) == len(source) == 150
    for row, original in zip(prepared.train, source, strict=True):
        learned = "".join(
            (f"<tool_call>\n{call_text(t['value'])}\n</tool_call>" if t["from"] == "function_call" else t["value"])
            + END
            for t in original["conversations"]
            if t["from"] in ("gpt", "function_call")
        )
        assert prepared.tokenizer.decode([label for label in row["labels"] if label != -100]) == learned


def call_text(value: str) -> str:
    call = json.loads(value)
    return json.dumps({"name": call["name"], "arguments": call["arguments"]}, ensure_ascii=False)
