"""Where answers begin and end in templates that make it hard. Template texts follow the public formats."""

from __future__ import annotations

import time
from typing import Any

import pytest

from job.data import templates
from job.data.worker.messages import RowFault
from job.data.worker.render import FEW_ANSWERS, LONG_SECONDS, ChatTemplate
from job.data.worker.shape import Chat
from tests.data_rows import Row, turns

TOKENS = ["<|end|>", "<|endoftext|>", "<|user|>", "<|assistant|>", "</s>", "<|eot_id|>", "<|im_end|>", "<|im_start|>"]
CALL = {"type": "function", "function": {"name": "f", "arguments": {"a": 1}}}

LAST_EOS = """{% for m in messages %}<|{{ m.role }}|>
{{ m.content }}<|end|>
{% endfor %}{% if add_generation_prompt %}<|assistant|>
{% else %}{{ eos_token }}{% endif %}"""
NO_END = (
    "{% for m in messages %}<|{{ m.role }}|>{{ m.content }}{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>{% endif %}"
)
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
CUTTING = THINKING.replace(" and not loop.last", "")
SHOWING = LAST_EOS.replace("{{ m.content }}", "{{ m.thinking }}{{ m.content }}")
STRICT_TOOLS = """{% set ns = namespace(called=false) %}{% for m in messages %}
{%- if m.role == 'user' %}[INST]{{ m.content }}[/INST]
{%- elif m.tool_calls %}{% set ns.called = true %}[CALL]
{{- m.tool_calls | map(attribute='function') | list | tojson }}{{ eos_token }}
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
    assert learned(STRICT_TOOLS, messages, "</s>") == [
        ('[CALL][{"name": "f", "arguments": {"a": 1}}]', "</s>"),
        (" one", "</s>"),
    ]


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


def long_talk(answers: int) -> list[Row]:
    """Every second answer calls a tool or thinks first, and some repeat others or hold what is around answers."""
    calling = [{"role": "assistant", "content": "", "tool_calls": [CALL]}, {"role": "tool", "content": "1"}]
    talk: list[Row] = []
    for number in range(answers):
        thought = f"<think>\nt{number}\n</think>\n\n" if number % 4 == 1 else ""
        said = "one<|end|>\n<|user|>\n" if number % 4 == 3 else f" {number} "
        talk += [
            {"role": "user", "content": "go on"},
            *(calling if number % 4 == 2 else []),
            *turns("", thought + said)[1:],
        ]
    return talk


def for_template(template: str, answers: int) -> list[Row]:
    """Without tools where the template has no form for them."""
    shows_tools = "tool_calls" in template and "raise_exception" not in template
    return [m for m in long_talk(answers) if shows_tools or (m["role"] != "tool" and "tool_calls" not in m)]


NAMED = {
    name: named.text.replace("END", "'<|end|>'").replace("{{- BOS }}\n", "") for name, named in templates.NAMED.items()
}


@pytest.mark.parametrize("template", [LAST_EOS, NO_END, SPACED, PLAIN, THINKING, FORCED_THINKING, *NAMED.values()])
def test_many_answers_are_found_where_each_would_be_by_itself(template: str) -> None:
    chat_template = ChatTemplate(template, {"eos_token": "<|endoftext|>"}, TOKENS)
    talk = for_template(template, FEW_ANSWERS + 8)
    chat = Chat(talk)
    rendered = chat_template.conversation(chat)
    learned = [index for index, message in enumerate(talk) if message["role"] == "assistant"]
    assert len(learned) > FEW_ANSWERS
    assert list(rendered.turns) == [chat_template._turn(chat, index, rendered.text) for index in learned]


@pytest.mark.parametrize("template", [THINKING, NAMED["qwen"], NAMED["chatml"], SPACED])
def test_the_renderings_of_a_long_conversation_do_not_grow_with_it(template: str) -> None:
    talk = for_template(template, 1500)
    chat_template = ChatTemplate(template, {"eos_token": "<|endoftext|>"}, TOKENS)
    start = time.process_time()
    assert len(chat_template.conversation(Chat(talk)).turns) >= 1500
    assert time.process_time() - start < LONG_SECONDS


def test_a_long_conversation_that_takes_too_long_is_not_taken_for_a_hostile_template() -> None:
    """What comes before each answer is another here, so that they are looked for one by one."""
    numbering = "{% for m in messages %}{{ loop.index ~ ': ' ~ m.content ~ '<|end|>' }}{% endfor %}"
    with pytest.raises(
        RowFault, match=r"its \d+ messages and more take the chat template more than 0.2 seconds; split"
    ):
        ChatTemplate(numbering, {}, TOKENS, long_seconds=0.2).conversation(Chat(turns(*map(str, range(3000)))))


def remarks(template: str, *messages: Row, **chat: Any) -> dict[str, int]:
    return dict(ChatTemplate(template, {"eos_token": "x"}, TOKENS).conversation(Chat(list(messages), **chat)).remarks)


def test_reasoning_that_a_template_leaves_out_is_counted() -> None:
    thought = turns("q", "<think>\na\n</think>\n\none", "r", "<think>\nb\n</think>\n\ntwo")
    assert remarks(THINKING, *thought) == {"reasoning": 1}
    assert remarks(LAST_EOS, *thought) == {}
    assert remarks(CUTTING, *thought) == {"reasoning": 2}
    assert remarks(CUTTING, *turns("q", "because\n</think>\n\none")) == {"reasoning": 1}  # opened in the prompt
    assert remarks(CUTTING, *turns("q", "say <think> aloud", "r", "two")) == {}
    assert remarks(CUTTING, *thought, unlearned=frozenset({1})) == {"reasoning": 1}
    beside = {"role": "assistant", "content": "one", "reasoning_content": "a", "reasoning": "a", "thinking": "a"}
    assert remarks(LAST_EOS, *turns("q"), beside) == {"reasoning": 1}
    assert remarks(SHOWING, *turns("q"), beside) == {}


def test_answers_that_are_asked_for_otherwise_than_they_are_trained_are_counted() -> None:
    """A template that opens <think> in its generation prompt, and cuts it out of earlier answers or of all."""
    opened = FORCED_THINKING.replace(" and not loop.last", "")
    thought = turns("q", "<think>\na\n</think>\n\none", "r", "<think>\nb\n</think>\n\ntwo")
    assert remarks(opened, *thought) == {"reasoning": 2, "asked": 2}
    assert remarks(FORCED_THINKING, *thought) == {"reasoning": 1, "asked": 1}
    assert remarks(FORCED_THINKING, *turns("q", "one")) == {}
    assert remarks(FORCED_THINKING, *turns(*("q", "one") * 40)) == {"asked": 39}
    assert remarks(NO_END.partition("{% if add")[0], *thought) == {}, "a template without a generation prompt"


def test_text_that_a_template_changes_is_counted() -> None:
    assert remarks("{% for m in messages %}{{ m.content | upper }}</s>{% endfor %}", *turns("q", "one", "r", "2")) == {
        "text": 1,
        "role user": 2,
    }


def test_messages_that_a_template_leaves_out_are_counted_by_their_role() -> None:
    """Answers are learned and counted by themselves; a thought that is cut out of an earlier one is usual."""
    talk = [{"role": "system", "content": "s"}, *turns("q" * 9), {"role": "tool", "content": "42"}, *turns("r", "one")]
    short = "{% for m in messages if m.role != 'tool' %}<|{{ m.role }}|>{{ m.content[:8] }}</s>{% endfor %}"
    assert remarks(short, *talk) == {"role user": 1, "role tool": 1}
    assert remarks(short.replace(" if m.role != 'tool'", "").replace("[:8]", ""), *talk) == {}
    before = turns("why", "<think>a</think>one", "q", "two")
    kept = "{% for m in messages %}<|{{ m.role }}|>{{ m.content.split('</think>')[-1] }}</s>{% endfor %}"
    assert remarks(kept, *before, first_trained=2) == {}
    assert remarks(kept.replace("messages", "messages[2:]"), *before, first_trained=2) == {
        "role user": 1,
        "role assistant": 1,
    }


def test_keys_that_a_template_does_not_read_are_counted() -> None:
    talk = [message | {"id": "7", "mood": "glad"} for message in turns("q", "one")]
    assert remarks(LAST_EOS, *talk) == {"key id": 2, "key mood": 2}
    assert remarks(LAST_EOS.replace("{{ m.content }}", "{{ m.mood }}{{ m.content }}"), *talk) == {"key id": 2}
    asked = {"role": "user", "content": "q", "name": "Ada", "thinking": "hm"}
    answered = turns("q", "one")[1] | {"thinking": "hm"}
    showing = SHOWING.replace("{{ m.thinking }}", "{{ m.thinking if m.role == 'assistant' }}")
    assert remarks(showing, asked, answered) == {"key name": 1, "key thinking": 1}
    assert remarks(LAST_EOS, *turns("q", "one"), ignored=("tool_calls[].index",), wished=1) == {
        "key tool_calls[].index": 1,
        "wished": 1,
    }


def test_keys_of_tools_that_a_template_does_not_read_are_counted() -> None:
    tools = [{"type": "function", "function": {"name": name}, "strict": True} for name in "fg"]
    shows = "{% if tools %}{{ tools | map(attribute='function') | list }}{% endif %}" + LAST_EOS
    assert remarks(shows, *turns("q", "one"), tools=tools) == {"key tools[].strict": 2}
    assert remarks(shows.replace(" | map(attribute='function') | list", ""), *turns("q", "one"), tools=tools) == {}
    assert remarks(LAST_EOS, *turns("q", "one"), tools=tools) == {"tools": 1}


def test_an_answer_of_reasoning_alone() -> None:
    thought = {
        "role": "assistant",
        "content": "",
        "reasoning_content": "because",
        "reasoning": "because",
        "thinking": "because",
    }
    assert learned(SHOWING, [*turns("q"), thought]) == [("because", "<|end|>")]
    for talk in ([*turns("q"), thought], [*turns("q"), thought] * (FEW_ANSWERS + 8)):
        with pytest.raises(
            RowFault, match="the answer in message 2 is reasoning alone, which the chat template leaves out"
        ):
            learned(LAST_EOS, talk)


def test_what_is_marked_is_hidden_where_all_is_learned() -> None:
    template = ChatTemplate(LAST_EOS, {"eos_token": "x"}, TOKENS)
    chat = Chat(TALK, unlearned=frozenset({1, 2}))
    full = template.render(TALK)
    assert [full[start:end] for start, end in template.hidden(chat, full)] == ["one<|end|>", "r"]
