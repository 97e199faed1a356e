"""A large GGUF as several files, as llama.cpp names and reads them; the disk holds one of them more, not all twice."""

from __future__ import annotations

import os
import struct
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from job.errors import GateError
from job.gguf.header import Header, TensorInfo, padded, read_header, read_model_header, shard_name

COPY_BYTES = 16 << 20


@dataclass(frozen=True)
class Parts:
    """Files by name, and their sizes."""

    files: list[str]
    bytes: list[int]


def split(file: Path, max_bytes: int) -> Parts:
    """The files that replace `file`: itself if it is small enough, or shards of at most `max_bytes` of
    weights.

    Shards are cut off from its end, so that its space is free for the next one. A tensor is never divided.
    """
    header = read_header(file, file.name)
    if header.file_bytes <= max_bytes:
        return Parts([file.name], [header.file_bytes])
    parts = _parts(header, max_bytes)
    names = [shard_name(file.stem, number, len(parts)) for number in range(1, len(parts) + 1)]
    with file.open("r+b") as source:
        start, end = header.metadata_span
        source.seek(start)
        metadata = source.read(end - start)
        for number in reversed(range(len(parts))):
            pairs = (metadata, header.pairs) if number == 0 else (_number("general.alignment", 4, header.alignment), 1)
            _write(source, file.with_name(names[number]), parts[number], pairs, header, number, len(parts))
            source.truncate(parts[number][0].offset)
    file.unlink()
    found = read_model_header(file.with_name(names[0]), file.name).tensors.values()
    if {(t.name, t.shape, t.type) for t in found} != {(t.name, t.shape, t.type) for t in header.tensors.values()}:
        raise GateError(
            "the split files do not hold what was split",
            where=file.name,
            found=f"{len(found)} tensors",
            expected=f"{len(header.tensors)} tensors",
        )
    return Parts(names, [file.with_name(name).stat().st_size for name in names])


def _parts(header: Header, max_bytes: int) -> list[list[TensorInfo]]:
    """Tensors in the order of the file, in groups of at most `max_bytes`."""
    parts: list[list[TensorInfo]] = [[]]
    held = 0
    for tensor in sorted(header.tensors.values(), key=lambda t: t.offset):
        if parts[-1] and held + tensor.bytes > max_bytes:
            parts.append([])
            held = 0
        parts[-1].append(tensor)
        held += padded(tensor.bytes, header.alignment)
    return parts


def _write(
    source: Any, target: Path, part: list[TensorInfo], pairs: tuple[bytes, int], header: Header, number: int, count: int
) -> None:
    metadata, known = pairs
    place = (
        _number("split.no", 2, number)
        + _number("split.count", 2, count)
        + _number("split.tensors.count", 5, len(header.tensors))
    )
    start = part[0].offset
    infos = b"".join(_info(tensor, tensor.offset - start) for tensor in part)
    head = b"GGUF" + struct.pack("<IQQ", 3, len(part), known + 3) + metadata + place + infos
    length = padded(part[-1].offset + part[-1].bytes - start, header.alignment)
    with target.open("wb") as file:
        file.write(head + bytes(padded(len(head), header.alignment) - len(head)))
        file.flush()
        source.seek(start)
        while length > 0 and (content := source.read(min(COPY_BYTES, length))):
            length -= file.write(content)
        os.fsync(file.fileno())  # the original's bytes go next


def _number(name: str, kind: int, value: int) -> bytes:
    """A key-value pair; kinds 2, 4 and 5 are uint16, uint32 and int32."""
    return _text(name) + struct.pack("<I", kind) + struct.pack({2: "<H", 4: "<I", 5: "<i"}[kind], value)


def _info(tensor: TensorInfo, offset: int) -> bytes:
    shape = struct.pack(f"<I{len(tensor.shape)}Q", len(tensor.shape), *tensor.shape)
    return _text(tensor.name) + shape + struct.pack("<IQ", tensor.type_number, offset)


def _text(text: str) -> bytes:
    raw = text.encode()
    return struct.pack("<Q", len(raw)) + raw
