"""Messages between the job and its workers: a JSON header and raw bytes, each with its length in front.

JSON and raw bytes on purpose: nothing that a worker sends can make the job run code.
"""

from __future__ import annotations

import json
import struct
from collections.abc import Callable
from typing import Any

LENGTHS = struct.Struct(">II")
MAX_BYTES = 1 << 30
IGNORED = -100  # the label of a token that is not learned, as PyTorch's cross entropy has it
BEYOND = "the answer is beyond max_seq_length"  # why a row teaches nothing; a longer sequence would hold it

Header = dict[str, Any]


def pack(header: bytes, body: bytes = b"") -> bytes:
    return LENGTHS.pack(len(header), len(body)) + header + body


class NotTextError(TypeError):
    """Bytes that are not text."""


def dump(value: Any) -> bytes:
    """JSON; dates, decimals and the like, which Parquet holds, become text. Raises `NotTextError` for bytes."""
    return json.dumps(value, default=_text, separators=(",", ":")).encode()


def _text(value: Any) -> str:
    if isinstance(value, bytes):
        raise NotTextError
    return str(value)


def unpack(read: Callable[[int], bytes]) -> tuple[Header, bytes] | None:
    """The next message by a `read` that returns exactly the bytes asked for, or none at the end of the stream."""
    lengths = read(LENGTHS.size)
    if len(lengths) < LENGTHS.size:
        return None
    header, body = LENGTHS.unpack(lengths)
    if header + body > MAX_BYTES:
        return None
    return json.loads(read(header)), read(body)
