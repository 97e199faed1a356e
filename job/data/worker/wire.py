"""Messages between the job and its workers: a JSON header and raw bytes, each with its length in front.

JSON and raw bytes on purpose: nothing that a worker sends can make the job run code.
"""

from __future__ import annotations

import dataclasses
import json
import struct
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Literal

LENGTHS = struct.Struct(">II")
MAX_BYTES = 1 << 30
IGNORED = -100  # the label of a token that is not learned, as PyTorch's cross entropy has it
MARKED = "it is marked not to be learned"
EMPTY = "the answer is empty"
EQUAL = "chosen and rejected are the same"
EQUAL_WITHIN = "chosen and rejected are the same within max_seq_length"  # as tokens
BEYOND = "the answer is beyond max_seq_length"  # why a row teaches nothing; a longer sequence would hold it


@dataclass(frozen=True)
class Job:
    """What a worker must know of the job, whatever it is asked: any worker can take any request."""

    chat_template: str  # Jinja, "" for raw text
    variables: dict[str, Any]
    end_tokens: list[str]
    train_on: str
    max_seq_length: int
    prefix_ids: list[int]
    eos_id: int | None


@dataclass(frozen=True)
class Source:
    """What it must know of the source of rows: `template` has the text of each role, {} for rows of another format."""

    pointer: str
    format: str
    columns: dict[str, str]
    template: dict[str, str]
    input_joint: str


@dataclass(frozen=True)
class Request:
    """One operation of `job.data.worker.batch`; each takes what it needs of the rest."""

    operation: Literal["turn_end", "rows", "questions", "prompts", "renderings"]
    job: Job
    prompts: tuple[str, ...] = ()
    choices: tuple[str, ...] = ()  # answers that a question may have
    choices_column: str | None = None  # where each row has its own
    conversations: tuple[Any, ...] = ()  # messages, tools, whether a prompt follows
    source: Source | None = None
    rows: tuple[Any, ...] = ()


@dataclass(frozen=True)
class Reply:
    """What an operation has found; or why a template spoils all of it, by what it may not do (`refused`) or by a
    mistake (`failed`). Before the reply, `stage` says which template runs next.
    """

    stage: str | None = None
    refused: str | None = None
    failed: str | None = None
    turn_end: str | None = None
    # Row, tokens of each sequence (of a pair two), trained tokens, truncated, digest, numbers of the further column
    sequences: list[Any] = field(default_factory=list)
    faults: list[Any] = field(default_factory=list)  # row, words, pointer
    dropped: list[Any] = field(default_factory=list)  # row, words, tokens
    remarks: dict[str, int] = field(default_factory=dict)  # how often something was in the rows that is not learned
    questions: list[Any] = field(
        default_factory=list
    )  # text, ids, reference; of choices: ids, right one, ids before, texts
    renderings: list[str | None] = field(default_factory=list)


def pack(header: bytes, body: bytes = b"") -> bytes:
    return LENGTHS.pack(len(header), len(body)) + header + body


class NotJsonError(TypeError):
    """A value that JSON has no form for: bytes that are not text, or a number that is not one. It says which."""


def dump(value: Any) -> bytes:
    """JSON; records become objects, and what Parquet holds besides, such as dates, text. Raises `NotJsonError`."""
    try:
        return json.dumps(value, default=_text, separators=(",", ":"), allow_nan=False).encode()
    except ValueError:
        raise NotJsonError("holds NaN or an infinite number, which is not in JSON") from None


def _text(value: Any) -> Any:
    if isinstance(value, bytes):
        raise NotJsonError("must be text, not bytes")
    return vars(value) if dataclasses.is_dataclass(value) else str(value)


def with_rows(request: Request, rows: bytes) -> bytes:
    """The request with these rows, a JSON list."""
    return dump(request).removesuffix(b"[]}") + rows + b"}"


def unpack(read: Callable[[int], bytes]) -> tuple[Any, bytes] | None:
    """The next message, its header parsed, or none at the end; `read` returns exactly the bytes asked for."""
    lengths = read(LENGTHS.size)
    if len(lengths) < LENGTHS.size:
        return None
    header, body = LENGTHS.unpack(lengths)
    if header + body > MAX_BYTES:
        return None
    return json.loads(read(header)), read(body)
