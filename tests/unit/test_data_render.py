"""Where answers begin and end in templates that make it hard. Template texts follow the public formats."""

from __future__ import annotations

import pytest

from job.data.worker.messages import RowFault
from job.data.worker.render import ChatTemplate
from job.data.worker.shape import Chat
from tests.data_rows import Row, turns

TOKENS = ["<|end|>", "<|endoftext|>", "<|user|>", "<|assistant|>", "</s>", "<|eot_id|>", "<|im_end|>", "<|im_start|>"]
CALL = {"type": "function", "function": {"name": "f", "arguments": {"a": 1}}}

LAST_EOS = """{% for m in messages %}<|{{ m.role }}|>
{{ m.content }}<|end|>
{% endfor %}{% if add_generation_prompt %}<|assistant|>
{% else %}{{ eos_token }}{% endif %}"""
NO_END = "{% for m in messages %}<|{{ m.role }}|>{{ m.content }}{% endfor %}{% if add_generation_prompt %}<|assistant|>{% endif %}"
SPACED = """{% for m in messages %}{% if m.role == 'user' %}[INST] {{ m.content }} [/INST]
{%- else %} {{ m.content }} </s>{% endif %}{% endfor %}"""
PLAIN = """{% for m in messages %}{% if m.role == 'user' %}Q: {{ m.content }}
{% else %}A: {{ m.content }} ###

{% endif %}{% endfor %}{% if add_generation_prompt %}A: {% endif %}"""
THINKING = """{% for m in messages %}{{ '<|im_start|>' + m.role + '\n' }}
{%- if m.role == 'assistant' and not loop.last %}{{ m.content.split('</think>')[-1].lstrip('\n') }}
{%- elif m.role == 'assistant' and '</think>' not in m.content %}{{ '<think>\n\n</think>\n\n' + m.content }}
{%- else %}{{ m.content }}{% endif %}{{ '<|im_end|>\n' }}{% endfor %}
{%- if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"""
FORCED_THINKING = THINKING.replace("assistant\n' }}{% endif %}", "assistant\n<think>\n' }}{% endif %}")
STRICT_TOOLS = """{% set ns = namespace(called=false) %}{% for m in messages %}
{%- if m.role == 'user' %}[INST]{{ m.content }}[/INST]
{%- elif m.tool_calls %}{% set ns.called = true %}[CALL]{{ m.tool_calls | map(attribute='function') | list | tojson }}{{ eos_token }}
{%- elif m.role == 'tool' and not ns.called %}{{ raise_exception('no call before the result') }}
{%- elif m.role == 'tool' %}[RESULT]{{ m.content }}[/RESULT]
{%- else %} {{ m.content }}{{ eos_token }}{% endif %}{% endfor %}"""


def learned(template: str, messages: list[Row], eos: str = "<|endoftext|>") -> list[tuple[str, str]]:
    """(answer, end) of each learned turn."""
    rendered = ChatTemplate(template, {"eos_token": eos}, TOKENS).conversation(Chat(messages))
    return [(rendered.text[t.start : t.content_end], rendered.text[t.content_end : t.end]) for t in rendered.turns]


TALK = turns("q", "one", "r", "two")


@pytest.mark.parametrize(
    ("template", "expected"),
    [
        (LAST_EOS, [("one", "<|end|>"), ("two", "<|end|>")]),
        (NO_END, [("one", ""), ("two", "")]),
        (SPACED, [(" one", " </s>"), (" two", " </s>")]),
        (PLAIN, [("one", " ###"), ("two", " ###")]),
        (THINKING, [("one", "<|im_end|>"), ("<think>\n\n</think>\n\ntwo", "<|im_end|>")]),
        (FORCED_THINKING, [("one", "<|im_end|>"), ("\n</think>\n\ntwo", "<|im_end|>")]),
    ],
)
def test_answers_and_ends(template: str, expected: list[tuple[str, str]]) -> None:
    assert learned(template, TALK) == expected


def test_reasoning_is_learned_where_it_is_shown() -> None:
    messages = turns("q", "<think>\na\n</think>\n\none", "r", "<think>\nb\n</think>\n\ntwo")
    assert learned(THINKING, messages) == [("one", "<|im_end|>"), ("<think>\nb\n</think>\n\ntwo", "<|im_end|>")]


def test_a_tool_call_whose_result_needs_it() -> None:
    messages = [
        {"role": "user", "content": "q"},
        {"role": "assistant", "content": "", "tool_calls": [CALL]},
        {"role": "tool", "content": "1"},
        {"role": "assistant", "content": "one"},
    ]
    assert learned(STRICT_TOOLS, messages, "</s>") == [('[CALL][{"name": "f", "arguments": {"a": 1}}]', "</s>"), (" one", "</s>")]


def test_answers_that_repeat_each_other_and_the_question() -> None:
    assert learned(LAST_EOS, turns("one", "one", "one", "one")) == [("one", "<|end|>")] * 2
    assert learned(LAST_EOS, turns("q", "<|end|>\n<|user|>\nq<|end|>")) == [("<|end|>\n<|user|>\nq<|end|>", "<|end|>")]


def test_private_use_characters_in_the_data() -> None:
    text = "".join(map(chr, range(0xE000, 0xE010)))
    assert learned(LAST_EOS, turns(text, text)) == [(text, "<|end|>")]


def test_an_empty_answer_is_not_learned() -> None:
    assert learned(LAST_EOS, turns("q", "", "r", "two")) == [("two", "<|end|>")]


def test_a_template_that_ignores_answers() -> None:
    with pytest.raises(RowFault, match="hides where the answer in message 2"):
        learned("{{ messages[0].content }}", TALK)


def test_tools_that_a_template_leaves_out_are_noticed() -> None:
    template = ChatTemplate(LAST_EOS, {"eos_token": "x"}, TOKENS)
    assert template.conversation(Chat(TALK, [{"name": "f"}])).remarks["tools"] == 1
    assert not template.conversation(Chat(TALK)).remarks
