"""A job's chat template, the token that ends its turns, and the job description that workers get."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from job.data import templates
from job.data.pool import Pool
from job.data.tokenizer import end_tokens, prefix_ids
from job.data.worker import wire
from job.errors import InputError
from job.spec import JobSpec


def set_chat_template(spec: JobSpec, tokenizer: Any, chat: bool, pool: Pool, notes: list[str]) -> wire.Job:
    """The job description that every request to a worker carries; `chat`: some rows are conversations.

    Gives `tokenizer` the chat template and, as `eos_token`, the token that ends its turns. `notes` gets what the
    vocabulary made necessary. Raises `InputError` or `PolicyError` for a template that cannot be used.
    """
    uses_bos = tokenizer.bos_token_id in prefix_ids(tokenizer)
    template = _choose(spec.data.chat_template, tokenizer, chat, uses_bos, notes)
    job = describe(tokenizer, template, spec.model.max_seq_length, spec.data.train_on)
    if job.chat_template:
        tokenizer.chat_template = job.chat_template
        _set_turn_end(pool, job, tokenizer, notes)
        return replace(job, variables=dict(tokenizer.special_tokens_map), eos_id=tokenizer.eos_token_id)
    if tokenizer.eos_token_id is None:
        notes.append("the tokenizer has no eos_token: nothing marks the end of a text")
    return job


def describe(tokenizer: Any, template: str, max_seq_length: int, train_on: str = "responses") -> wire.Job:
    """The job description for `template`, Jinja, "" for raw text, with this tokenizer."""
    return wire.Job(
        chat_template=template,
        variables=dict(tokenizer.special_tokens_map),
        end_tokens=end_tokens(tokenizer),
        train_on=train_on,
        max_seq_length=max_seq_length,
        prefix_ids=prefix_ids(tokenizer),
        eos_id=tokenizer.eos_token_id,
    )


def _choose(name: str, tokenizer: Any, chat: bool, uses_bos: bool, notes: list[str]) -> str:
    """The template's Jinja; "" where every row is raw text."""
    if not chat:
        if name != "model":
            notes.append("data.chat_template is not used: every source is raw text")
        return ""
    if name in templates.NAMED:
        return templates.named_template(name, tokenizer, uses_bos, notes)
    return templates.model_template(tokenizer) if name == "model" else name


def _set_turn_end(pool: Pool, job: wire.Job, tokenizer: Any, notes: list[str]) -> None:
    """Makes the token that closes a turn the tokenizer's `eos_token`, under the id that it has."""
    try:
        end = pool.ask(wire.Request("turn_end", job)).turn_end
    except InputError as error:  # a template may insist on more than a question and an answer; the rows will show it
        if not error.faults[0].found.startswith("TemplateError"):
            raise
        notes.append(f"the end of a turn could not be probed: {error.faults[0].found}")
        return
    if not end or not templates.is_one_token(tokenizer, end):
        notes.append(
            f"turns of the chat template end with {end!r}, which is not a token; answers may not stop by themselves"
        )
    elif end != tokenizer.eos_token:
        notes.append(f"eos_token is {end}, which ends a turn, instead of {tokenizer.eos_token}")
        tokenizer.eos_token = end
