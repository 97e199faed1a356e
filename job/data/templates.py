"""The chat template of a job: the model's own, one of ours for base models, or Jinja from the spec.

Our templates follow the public descriptions of the formats. No token is renamed, added or given another id: a turn
ends with the format's end token where the vocabulary has it as one token, and otherwise with the tokenizer's own
`eos_token`; any other marker that the vocabulary lacks is plain text to the model.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from job.errors import InputError

POINTER = "/data/chat_template"

NO_TOOLS = """\
{%- if tools %}{{ raise_exception('this chat template has no form for tools; qwen has') }}{% endif %}
{%- for message in messages if message.tool_calls or message.role == 'tool' %}
    {{- raise_exception('this chat template has no form for tool turns; qwen has') }}
{%- endfor %}
"""

# BOS means the tokenizer's begin token where it uses one, END the end of a turn.
CHATML = """\
{{- BOS }}
{%- for message in messages %}
    {{- '<|im_start|>' + message.role + '\\n' + message.content + END + '\\n' }}
{%- endfor %}
{%- if add_generation_prompt %}{{- '<|im_start|>assistant\\n' }}{% endif %}"""

QWEN = """\
{{- BOS }}
{%- set first = messages[0] if messages and messages[0].role == 'system' else none %}
{%- if tools %}
    {{- '<|im_start|>system\\n' + (first.content + '\\n\\n' if first else '') }}
    {{- '# Tools\\n\\nThese functions can be called, one JSON schema a line:\\n<tools>' }}
    {%- for tool in tools %}{{- '\\n' + tool | tojson }}{% endfor %}
    {{- '\\n</tools>\\n\\nTo call one, answer with a JSON object of its name and arguments inside tool_call tags:\\n' }}
    {{- '<tool_call>\\n{"name": "the_name", "arguments": {"argument": "value"}}\\n</tool_call>' + END + '\\n' }}
{%- endif %}
{%- for message in messages %}
    {%- if message.role == 'tool' %}
        {{- '<|im_start|>user' if loop.first or loop.previtem.role != 'tool' else '' }}
        {{- '\\n<tool_response>\\n' + message.content + '\\n</tool_response>' }}
        {{- END + '\\n' if loop.last or loop.nextitem.role != 'tool' else '' }}
    {%- elif not (tools and loop.first and first) %}
        {{- '<|im_start|>' + message.role + '\\n' + message.content }}
        {%- for call in message.tool_calls or [] %}
            {{- '\\n' if message.content or not loop.first else '' }}
            {{- '<tool_call>\\n{"name": ' + call.function.name | tojson }}
            {{- ', "arguments": ' + call.function.arguments | tojson + '}\\n</tool_call>' }}
        {%- endfor %}
        {{- END + '\\n' }}
    {%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}{{- '<|im_start|>assistant\\n' }}{% endif %}"""

LLAMA_3 = """\
{{- BOS }}
{%- for message in messages %}
    {{- '<|start_header_id|>' + message.role + '<|end_header_id|>\\n\\n' + message.content | trim + END }}
{%- endfor %}
{%- if add_generation_prompt %}{{- '<|start_header_id|>assistant<|end_header_id|>\\n\\n' }}{% endif %}"""

GEMMA = """\
{{- BOS }}
{%- set first = messages[0] if messages and messages[0].role in ('system', 'developer') else none %}
{%- for message in (messages[1:] if first else messages) %}
    {{- '<start_of_turn>' + ('model' if message.role == 'assistant' else message.role) + '\\n' }}
    {{- first.content | trim + '\\n\\n' if loop.first and first else '' }}
    {{- message.content | trim + END + '\\n' }}
{%- endfor %}
{%- if add_generation_prompt %}{{- '<start_of_turn>model\\n' }}{% endif %}"""

MISTRAL = """\
{{- BOS }}
{%- set first = messages[0] if messages and messages[0].role in ('system', 'developer') else none %}
{%- for message in (messages[1:] if first else messages) %}
    {%- if message.role == 'assistant' %}
        {{- ' ' + message.content | trim + END }}
    {%- else %}
        {{- '[INST] ' + (first.content + '\\n\\n' if loop.first and first else '') + message.content + '[/INST]' }}
    {%- endif %}
{%- endfor %}"""

PHI = """\
{{- BOS }}
{%- for message in messages %}
    {{- '<|' + message.role + '|>\\n' + message.content + END + '\\n' }}
{%- endfor %}
{%- if add_generation_prompt %}{{- '<|assistant|>\\n' }}{% endif %}"""

# Alpaca rows come with their input after ALPACA_INPUT in the user turn (job/data/worker/shape.py).
ALPACA = """\
{{- BOS }}
{%- set first = messages[0] if messages and messages[0].role in ('system', 'developer') else none %}
{%- for message in (messages[1:] if first else messages) %}
    {%- if loop.first and first %}
        {{- first.content + '\\n\\n' }}
    {%- elif loop.first and '\\n\\n### Input:\\n' in message.content %}
        {{- 'Below is an instruction that describes a task, paired with an input that provides further context. ' }}
        {{- 'Write a response that appropriately completes the request.\\n\\n' }}
    {%- elif loop.first %}
        {{- 'Below is an instruction that describes a task. ' }}
        {{- 'Write a response that appropriately completes the request.\\n\\n' }}
    {%- endif %}
    {%- if message.role == 'assistant' %}
        {{- '### Response:\\n' + message.content + END + ('' if loop.last else '\\n\\n') }}
    {%- else %}
        {{- '### Instruction:\\n' + message.content + '\\n\\n' }}
    {%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}{{- '### Response:\\n' }}{% endif %}"""


@dataclass(frozen=True)
class Named:
    """One of our templates; `end` closes a turn ("" for the tokenizer's own), `markers` are its other tokens."""

    text: str
    end: str
    markers: tuple[str, ...]


NAMED = {
    "chatml": Named(NO_TOOLS + CHATML, "<|im_end|>", ("<|im_start|>",)),
    "qwen": Named(QWEN, "<|im_end|>", ("<|im_start|>",)),
    "llama-3": Named(NO_TOOLS + LLAMA_3, "<|eot_id|>", ("<|start_header_id|>", "<|end_header_id|>")),
    "gemma": Named(NO_TOOLS + GEMMA, "<end_of_turn>", ("<start_of_turn>",)),
    "mistral": Named(NO_TOOLS + MISTRAL, "", ("[INST]", "[/INST]")),
    "phi": Named(NO_TOOLS + PHI, "<|end|>", ("<|user|>", "<|assistant|>", "<|system|>")),
    "alpaca": Named(NO_TOOLS + ALPACA, "", ()),
}


def is_one_token(tokenizer: Any, text: str) -> bool:
    """Whether the vocabulary holds `text` as a token that means nothing but itself."""
    return (
        text in tokenizer.get_vocab()
        and len(tokenizer.backend_tokenizer.encode(text, add_special_tokens=False).ids) == 1
    )


def named_template(name: str, tokenizer: Any, uses_bos: bool, notes: list[str]) -> str:
    """Our template `name` as Jinja for this vocabulary; `notes` gets what the vocabulary lacks.

    Raises `InputError` if there is neither the format's end token nor an `eos_token`.
    """
    named = NAMED[name]
    end = "eos_token"
    if named.end and is_one_token(tokenizer, named.end):
        end = f"'{named.end}'"
    elif tokenizer.eos_token is None:
        raise InputError(
            "the vocabulary has no token to end this template's turns",
            where=POINTER,
            found=name,
            expected="a tokenizer with an eos_token",
        )
    elif named.end:
        notes.append(
            f"chat template {name}: {named.end} is not in the vocabulary; turns end with {tokenizer.eos_token}"
        )
    plain = [marker for marker in named.markers if not is_one_token(tokenizer, marker)]
    if plain:
        notes.append(f"chat template {name}: plain text in this vocabulary: {', '.join(plain)}")
    return named.text.replace("END", end).replace("{{- BOS }}\n", "{{- bos_token }}\n" if uses_bos else "")


def model_template(tokenizer: Any) -> str:
    """The tokenizer's own template; of several the one called default. Raises `InputError` if there is none."""
    own = tokenizer.chat_template
    if isinstance(own, dict):
        own = own.get("default")
    if own:
        return str(own)
    found = ", ".join(tokenizer.chat_template) if tokenizer.chat_template else "none"
    choices = f"one of {', '.join(NAMED)}, or Jinja"
    raise InputError(
        "the model has no chat template of its own",
        where=POINTER,
        found=found,
        expected=choices,
        hint="Base models need one chosen here",
    )
