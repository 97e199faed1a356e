"""Each key of a message or turn is honoured, refused by its name, or counted."""

from __future__ import annotations

from typing import Any

import pytest

from job.data.worker.messages import RowFault
from job.data.worker.shape import Chat, Columns, shape
from tests.data_rows import Row

CALL = {"type": "function", "function": {"name": "f", "arguments": {"a": None}}}
TEXT_CALL = {"name": "f", "arguments": '{"a": null}'}


def chat(kind: str, *items: Row, columns: dict[str, str] | None = None, **row: Any) -> Chat:
    found = shape(
        kind, row | {{"messages": "messages", "sharegpt": "conversations"}[kind]: list(items)}, Columns(columns or {})
    )
    assert isinstance(found, Chat)
    return found


def answer(**keys: Any) -> Chat:
    return chat("messages", {"role": "user", "content": "q"}, {"role": "assistant", "content": "a", **keys})


def said(**keys: Any) -> Chat:
    return chat("sharegpt", {"from": "human", "value": "q"}, {"from": "gpt", "value": "a", **keys})


@pytest.mark.parametrize("speak", [answer, said])
@pytest.mark.parametrize(
    ("keys", "learned"),
    [
        ({"weight": 0}, False),
        ({"weight": 0.0}, False),
        ({"train": False}, False),
        ({"loss": False}, False),
        ({"train": False, "loss": False}, False),
        ({"masked": True}, False),
        ({"weight": 1}, True),
        ({"weight": 1.0, "train": True}, True),
        ({"weight": None}, True),
        ({"weight": 0.9999999}, True),  # whole, to the millionth
        ({"masked": False}, True),
    ],
)
def test_marks_say_what_is_learned_and_are_not_a_part_of_the_message(speak: Any, keys: Row, learned: bool) -> None:
    found = speak(**keys)
    assert (found.weights, found.unlearned) == ({}, frozenset() if learned else {1})
    assert found.messages[1] == {"role": "assistant", "content": "a"}
    assert found.wished == 0


@pytest.mark.parametrize("speak", [answer, said])
@pytest.mark.parametrize("keys", [{"weight": 0.25}, {"loss_weight": 0.25}, {"weight": 0.25, "train": True}])
def test_a_fraction_is_a_weight_in_millionths(speak: Any, keys: Row) -> None:
    found = speak(**keys)
    assert (found.weights, found.unlearned, found.messages[1]) == (
        {1: 250_000},
        frozenset(),
        {"role": "assistant", "content": "a"},
    )


def test_marks_are_those_of_their_message_after_a_system_prompt() -> None:
    turns = [{"from": "human", "value": "q", "weight": 0}, {"from": "gpt", "value": "a", "weight": 1}]
    assert chat("sharegpt", *turns, system="s").unlearned == {1}
    assert chat("sharegpt", {"from": "human", "value": "q", "weight": 1}, turns[1]).wished == 1


@pytest.mark.parametrize("speak", [answer, said])
@pytest.mark.parametrize(
    ("keys", "words"),
    [
        ({"weight": 1.5}, "weight must be 0, or from 0.000001 to 1, not 1.5"),
        ({"weight": -0.5}, "weight must be 0, or from 0.000001 to 1, not -0.5"),
        ({"loss_weight": 1e-7}, "loss_weight must be 0, or from 0.000001 to 1, not 1e-07"),
        ({"weight": float("nan")}, "weight must be 0, or from 0.000001 to 1, not nan"),
        ({"weight": "0.5"}, "weight must be 0, or from 0.000001 to 1, not '0.5'"),
        ({"train": 0.5}, "train must be 0 or 1, false or true, not 0.5"),
        ({"weight": 0.5, "loss_weight": 0.25}, "weight and loss_weight contradict each other"),
        ({"weight": 0.5, "train": False}, "weight and train contradict each other"),
        ({"train": "no"}, "train must be 0 or 1"),
        ({"weight": 1, "train": False}, "weight and train contradict each other"),
        ({"train_detail": [{"begin_offset": 0}]}, "the key train_detail cannot be used"),
        ({"mask": [1, 0]}, "the key mask cannot be used"),
        ({"images": ["a.png"]}, "the key images cannot be used: only text"),
        ({"refusal": "No."}, "write a refusal that is to be learned as content"),
        ({"reasoning": ["a"]}, "reasoning must be text, not list"),
        ({"reasoning": "a", "thinking": "b"}, "are one thing, and differ"),
        ({"function_call": TEXT_CALL, "tool_calls": [CALL]}, "has both tool_calls and function_call"),
        ({"tool_calls": [{"name": "", "arguments": {}}]}, "a tool call needs a function with a name"),
        ({"tool_calls": [{"function": {"name": " "}}]}, "a tool call needs a function with a name"),
        ({"tool_calls": [{"type": "custom", "custom": {"name": "f"}}]}, "needs a function with a name"),
        ({"tool_calls": [CALL | {"type": "custom"}]}, "a tool call of type 'custom'"),
        ({"tool_calls": [{"name": "f", "arguments": [1]}]}, "arguments of f must be an object, not list"),
        (
            {"tool_calls": [{"name": "f", "arguments": {}, "parameters": {"a": 1}}]},
            "given twice, as arguments and as parameters",
        ),
    ],
)
def test_keys_that_cannot_be_honoured_are_refused_by_name(speak: Any, keys: Row, words: str) -> None:
    with pytest.raises(RowFault) as caught:
        speak(**keys)
    assert words in str(caught.value)
    assert "2" in str(caught.value)  # of which message


def test_the_older_form_of_a_call_is_read() -> None:
    found = chat(
        "messages",
        {"role": "user", "content": "q"},
        {"role": "assistant", "content": None, "function_call": TEXT_CALL},
        {"role": "function", "name": "f", "content": "1"},
        functions=[{"name": "f", "parameters": {}}],
    )
    assert found.messages[1:] == [
        {"role": "assistant", "content": "", "tool_calls": [CALL]},
        {"role": "tool", "name": "f", "content": "1"},
    ]
    assert found.tools == [{"type": "function", "function": {"name": "f", "parameters": {}}}]


@pytest.mark.parametrize("arguments", ["", None, "{}", "null", {}])
def test_a_call_without_arguments(arguments: Any) -> None:
    found = answer(content=None, tool_calls=[{"id": "1", "function": {"name": "now", "arguments": arguments}}])
    assert found.messages[1]["tool_calls"] == [
        {"id": "1", "type": "function", "function": {"name": "now", "arguments": {}}}
    ]


def test_arguments_under_their_other_name_and_keys_of_a_call_that_nobody_reads() -> None:
    found = answer(tool_calls=[{"index": 0, "function": {"name": "f", "parameters": {"a": None}, "strict": True}}])
    assert found.messages[1]["tool_calls"] == [CALL]
    assert found.ignored == ("tool_calls[].index", "tool_calls[].function.strict")


@pytest.mark.parametrize(
    ("turn", "words"),
    [
        (
            {"from": "function_call", "value": '{"name": "f"}', "tool_calls": [CALL]},
            "turn 1 has both tool_calls and, as its value",
        ),
        ({"from": "tool_call", "value": "[]"}, "turn 1: the function call is an empty list"),
        ({"from": "human", "value": "q", "tool_calls": [CALL]}, "turn 1: only answers call tools, not the role user"),
    ],
)
def test_calls_that_would_be_lost(turn: Row, words: str) -> None:
    with pytest.raises(RowFault, match=words):
        chat("sharegpt", turn)


def test_keys_of_a_tool_beside_its_function_stay_for_the_template_to_read() -> None:
    talk = {"role": "user", "content": "q"}
    tool = {"type": "function", "function": {"name": "f"}, "strict": True}
    assert chat("messages", talk, tools=[tool], functions=[tool]).tools == [tool]
    flat = {"type": "function", "name": "f", "strict": True}
    assert chat("messages", talk, tools=[flat]).tools == [
        {"type": "function", "function": {"name": "f", "strict": True}}
    ]


@pytest.mark.parametrize("speaker", ["function_call", "tool_call"])
def test_a_speaker_who_calls(speaker: str) -> None:
    found = chat("sharegpt", {"from": speaker, "value": '{"name": "f", "arguments": {"a": null}}', "weight": 0},
                 {"from": "tool_response", "value": "1"})  # fmt: skip
    assert found.messages == [
        {"role": "assistant", "content": "", "tool_calls": [CALL]},
        {"role": "tool", "content": "1"},
    ]
    assert found.unlearned == {0}


@pytest.mark.parametrize(
    ("content", "text"),
    [
        ([{"type": "text", "text": "a"}, {"type": "text", "text": "b"}], "ab"),
        ([{"type": "text", "value": "a"}], "a"),
        ([{"type": "text", "text": "a", "value": None, "image_url": None}], "a"),
        ([{"type": "output_text", "text": "a"}], "a"),
    ],
)
def test_content_parts(content: list[Row], text: str) -> None:
    assert answer(content=content).messages[1]["content"] == text


def test_content_parts_that_say_nothing_or_too_much() -> None:
    with pytest.raises(RowFault, match="message 2: a text part needs text, and has type, data"):
        answer(content=[{"type": "text", "data": "a"}])
    with pytest.raises(RowFault, match="content part of type 'thinking'"):
        answer(content=[{"type": "thinking", "thinking": "a"}])
    assert answer(content=[{"type": "text", "text": "a", "cache_control": {"type": "x"}}]).ignored == (
        "content[].cache_control",
    )


@pytest.mark.parametrize("key", ["reasoning_content", "reasoning", "thinking"])
def test_reasoning_is_given_under_every_name_that_templates_ask_for(key: str) -> None:
    message = answer(content=None, **{key: "because"}).messages[1]
    assert message == {
        "role": "assistant",
        "content": "",
        "reasoning_content": "because",
        "reasoning": "because",
        "thinking": "because",
    }


def test_other_keys_stay_for_the_template_to_read() -> None:
    assert answer(id="7", images=[], end_turn=True).messages[1] == {
        "role": "assistant",
        "content": "a",
        "id": "7",
        "end_turn": True,
    }
    assert said(id="7").messages[1] == {"role": "assistant", "content": "a", "id": "7"}


def test_a_turn_with_both_kinds_of_keys() -> None:
    with pytest.raises(RowFault, match="turn 1 has both from/value and role/content"):
        chat("sharegpt", {"from": "gpt", "value": "a", "content": "b"})
    assert chat("sharegpt", {"from": "gpt", "value": "a", "role": None}).messages == [
        {"role": "assistant", "content": "a"}
    ]


@pytest.mark.parametrize(
    ("kind", "row"),
    [
        ("prompt_completion", {"prompt": "p", "completion": "c", "label": False}),
        ("prompt_completion", {"prompt": "p", "completion": "c", "label": 0}),
        ("prompt_completion", {"prompt": "p", "completion": "c", "label": "False"}),
        ("alpaca", {"instruction": "p", "output": "c", "kto_tag": False}),
        ("messages", {"messages": [], "label": False}),
    ],
)
def test_rows_that_their_label_calls_bad_are_refused_by_the_labels_name(kind: str, row: Row) -> None:
    label = "kto_tag" if "kto_tag" in row else "label"
    with pytest.raises(RowFault, match=f"^{label} is .*must not be learned"):
        shape(kind, row, Columns({}))
    shape(kind, row | {label: True}, Columns({}))


def test_a_label_that_is_a_class_is_not_a_verdict() -> None:
    shape("alpaca", {"instruction": "p", "output": "c", "label": 0}, Columns({}))
    shape("text", {"text": "t", "label": False}, Columns({}))
    shape("prompt_completion", {"prompt": "p", "label": "false"}, Columns({"completion": "label"}))
