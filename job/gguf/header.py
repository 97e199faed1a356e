"""What a GGUF file says about itself: metadata and the list of its tensors, read in full before llama.cpp sees the
file.

The `gguf` package's reader builds an array for every token's text (2.7 s for 49,000 tokens, 10 s for 128,000);
this one steps over them in 0.1 s, checks that the file is as long as it says, and knows which bytes are metadata.
"""

from __future__ import annotations

import math
import mmap
import re
import struct
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

from job.errors import GateError

MAGIC = b"GGUF"
VERSION = 3
STRING, ARRAY = 8, 9
SCALARS = {0: "B", 1: "b", 2: "H", 3: "h", 4: "I", 5: "i", 6: "f", 7: "?", 10: "Q", 11: "q", 12: "d"}
DEFAULT_ALIGNMENT = 32
SHARD = re.compile(r"(?P<stem>.*)-(?P<number>\d{5})-of-(?P<count>\d{5})\.gguf")


@dataclass(frozen=True)
class TensorInfo:
    name: str
    shape: tuple[int, ...]  # ggml's order: the width of a row first
    type: str  # ggml's name, upper case
    type_number: int
    offset: int  # bytes from the start of the file
    bytes: int


@dataclass(frozen=True)
class Header:
    metadata: dict[str, Any]  # an array appears as its number of elements
    tensors: dict[str, TensorInfo]
    metadata_span: tuple[int, int]  # the bytes that hold the key-value pairs
    pairs: int
    alignment: int
    data_start: int
    file_bytes: int  # what the file should have

    def types(self) -> dict[str, int]:
        """How many tensors have each type."""
        return dict(sorted(Counter(tensor.type for tensor in self.tensors.values()).items()))


@dataclass(frozen=True)
class Written:
    """A file that was made: how large, in which time, and how many tensors of each type it holds."""

    bytes: int
    seconds: float
    tensors: int
    types: dict[str, int]

    @classmethod
    def since(cls, started: float, header: Header) -> Self:
        """`started`: `time.monotonic()` of when the work began."""
        return cls(header.file_bytes, time.monotonic() - started, len(header.tensors), header.types())


def read_header(path: Path, key: str) -> Header:
    """The header of one file. Raises `GateError` (pointer `key`) if it is not a whole GGUF file."""
    with path.open("rb") as file:
        size = path.stat().st_size
        if size < 24 or file.read(4) != MAGIC:
            raise GateError(
                "not a GGUF file", where=key, found=f"{size} bytes without its magic number", expected="GGUF"
            )
        with mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as content:
            try:
                header = _parse(content)
            except (struct.error, IndexError, UnicodeDecodeError, KeyError, ValueError) as error:
                raise GateError(
                    "the GGUF header cannot be read",
                    where=key,
                    found=f"{type(error).__name__}: {error}",
                    expected="a whole GGUF file",
                ) from error
    if size < header.file_bytes:
        raise GateError(
            "the GGUF file is cut short", where=key, found=f"{size} bytes", expected=f"{header.file_bytes} bytes"
        )
    return header


def read_model_header(path: Path, key: str) -> Header:
    """The header of a model that may lie in several files, `path` the first: its metadata, and all tensors."""
    paths = shards_of(path, key)
    folder = key.rpartition("/")[0]
    shards = [read_header(shard, key if shard == path else f"{folder}/{shard.name}") for shard in paths]
    first = shards[0]
    tensors = {name: tensor for shard in shards for name, tensor in shard.tensors.items()}
    promised = first.metadata.get("split.tensors.count", len(tensors))
    if len(tensors) != promised:
        raise GateError(
            "tensors are missing", where=key, found=f"{len(tensors)} tensors", expected=f"{promised} tensors"
        )
    size = sum(shard.file_bytes for shard in shards)
    return Header(first.metadata, tensors, first.metadata_span, first.pairs, first.alignment, first.data_start, size)


def shards_of(path: Path, key: str) -> list[Path]:
    """All files of the model whose first (or only) file is `path`, as llama.cpp names them."""
    parts = SHARD.fullmatch(path.name)
    if parts is None:
        return [path]
    count = int(parts["count"])
    shards = [path.with_name(shard_name(parts["stem"], number, count)) for number in range(1, count + 1)]
    missing = [shard.name for shard in shards if not shard.is_file()]
    if missing:
        raise GateError(
            "files of this model are missing", where=key, found=", ".join(missing), expected=f"{count} files"
        )
    return shards


def shard_name(stem: str, number: int, count: int) -> str:
    return f"{stem}-{number:05d}-of-{count:05d}.gguf"


# ------------------------------------------------------------------------------------------------ the format


def _parse(content: mmap.mmap) -> Header:
    version, count, pairs = struct.unpack_from("<IQQ", content, 4)
    if version != VERSION:
        raise ValueError(f"version {version}")
    start = position = 24
    metadata: dict[str, Any] = {}
    for _ in range(pairs):
        name, position = _string(content, position)
        kind = struct.unpack_from("<I", content, position)[0]
        metadata[name], position = _value(content, position + 4, kind)
    end = position
    alignment = int(metadata.get("general.alignment", DEFAULT_ALIGNMENT))
    entries = []
    for _ in range(count):
        entry, position = _entry(content, position)
        entries.append(entry)
    data_start = padded(position, alignment)
    tensors = {tensor.name: tensor for tensor in _placed(entries, data_start)}
    if len(tensors) != count:
        raise ValueError("a tensor's name appears twice")
    file_bytes = max((tensor.offset + tensor.bytes for tensor in tensors.values()), default=data_start)
    return Header(metadata, tensors, (start, end), pairs, alignment, data_start, file_bytes)


def padded(position: int, alignment: int) -> int:
    return -(-position // alignment) * alignment


def _string(content: mmap.mmap, position: int) -> tuple[str, int]:
    length = struct.unpack_from("<Q", content, position)[0]
    end = position + 8 + length
    if end > len(content):
        raise ValueError("a text reaches past the end of the file")
    return content[position + 8 : end].decode(), end


def _value(content: mmap.mmap, position: int, kind: int) -> tuple[Any, int]:
    if kind == STRING:
        return _string(content, position)
    if kind != ARRAY:
        form = "<" + SCALARS[kind]
        return struct.unpack_from(form, content, position)[0], position + struct.calcsize(form)
    element, length = struct.unpack_from("<IQ", content, position)
    position += 12
    if element == STRING:
        for _ in range(length):
            position += 8 + struct.unpack_from("<Q", content, position)[0]
    else:
        position += length * struct.calcsize("<" + SCALARS[element])
    return length, position


def _entry(content: mmap.mmap, position: int) -> tuple[tuple[str, tuple[int, ...], int, int], int]:
    name, position = _string(content, position)
    dimensions = struct.unpack_from("<I", content, position)[0]
    if not 1 <= dimensions <= 4:
        raise ValueError(f"{name} has {dimensions} dimensions")
    shape = struct.unpack_from(f"<{dimensions}Q", content, position + 4)
    position += 4 + 8 * dimensions
    kind, offset = struct.unpack_from("<IQ", content, position)
    return (name, shape, kind, offset), position + 12


def _placed(entries: list[tuple[str, tuple[int, ...], int, int]], data_start: int) -> Iterator[TensorInfo]:
    from gguf.constants import GGMLQuantizationType

    for name, shape, number, offset in entries:
        kind = GGMLQuantizationType(number)
        yield TensorInfo(name, shape, kind.name, number, data_start + offset, tensor_bytes(shape, kind.name))


def tensor_bytes(shape: tuple[int, ...], type_name: str) -> int:
    """Bytes of a tensor of this shape (row width first) and type."""
    from gguf.constants import GGML_QUANT_SIZES, GGMLQuantizationType

    block, block_bytes = GGML_QUANT_SIZES[GGMLQuantizationType[type_name]]
    if shape[0] % block:
        raise ValueError(f"rows of {shape[0]} values cannot be {type_name}")
    size: int = math.prod(shape) // block * block_bytes
    return size
