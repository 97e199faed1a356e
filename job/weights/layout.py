"""Safetensors files by tensor and byte range, so that tensors of any size are read and written piece by piece.

Format: https://github.com/huggingface/safetensors#format (8 bytes little-endian header length, JSON header, data).
"""

from __future__ import annotations

import json
import os
import struct
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from job.errors import InputError
from job.host.cgroup import usable_cores

BLOCK_BYTES = 4 << 20  # read, changed and written at once: what a thread holds is a few times this
ALIGNMENT_BYTES = 8
CPU_THREADS = 2  # torch itself uses every core; a second thread reads and writes meanwhile
GPU_THREADS = 8
TORCH_NAMES = {"F32": "float32", "F16": "float16", "BF16": "bfloat16"}


def merging_threads(on_cpu: bool) -> int:
    """How many tensors are made at once."""
    return CPU_THREADS if on_cpu else min(GPU_THREADS, usable_cores())


@dataclass(frozen=True)
class Tensor:
    """Where a tensor is: `bytes` bytes from `start` of `path`. `dtype` is safetensors' word for it."""

    name: str
    dtype: str
    shape: tuple[int, ...]
    path: Path
    start: int
    bytes: int

    @property
    def torch_dtype(self) -> Any:
        """Raises `InputError` for a type that weights are not merged in."""
        import torch

        if self.dtype not in TORCH_NAMES:
            raise InputError(
                f"{self.path.name}: {self.name} cannot be merged",
                where="/model/merge_base",
                found=self.dtype,
                expected=f"one of {', '.join(TORCH_NAMES)}",
                hint="Name the model's 16-bit weights",
            )
        return getattr(torch, TORCH_NAMES[self.dtype])

    def pieces(self) -> Iterator[bytearray]:
        """Its bytes in order, a block at a time."""
        for start in range(0, self.bytes, BLOCK_BYTES):
            yield self._read(start, min(BLOCK_BYTES, self.bytes - start))

    def blocks(self, rows: int | None = None) -> Iterator[tuple[int, Any]]:
        """Its rows as torch tensors on the CPU, each with its first row's number; `rows` a time, or as fit a block."""
        import torch

        count = self.shape[0] if self.shape else 1
        row_bytes = self.bytes // count
        step = rows or max(1, BLOCK_BYTES // row_bytes)
        for first in range(0, count, step):
            data = self._read(first * row_bytes, min(step, count - first) * row_bytes)
            yield first, torch.frombuffer(data, dtype=self.torch_dtype).view(-1, *self.shape[1:])

    def load(self) -> Any:
        """The whole tensor on the CPU."""
        return next(block for _, block in self.blocks(self.shape[0]))

    def holds(self, buffers: Iterable[Any]) -> bool:
        """Whether its bytes are those of `buffers`, one after the other."""
        at = 0
        for buffer in buffers:
            wanted = memoryview(buffer).cast("B")
            if at + len(wanted) > self.bytes or self._read(at, len(wanted)) != wanted:
                return False
            at += len(wanted)
        return at == self.bytes

    def _read(self, start: int, count: int) -> bytearray:
        data = bytearray(count)
        view = memoryview(data)
        with self.path.open("rb", buffering=0) as file:
            file.seek(self.start + start)
            while view:
                got = file.readinto(view)
                if not got:
                    raise InputError(f"{self.path.name} is cut: {self.name} is not whole")
                view = view[got:]
        return data


def read_tensors(path: Path) -> tuple[list[Tensor], dict[str, str]]:
    """The tensors of a safetensors file in the order of their data, its metadata. Raises `InputError` if it is cut."""
    size = path.stat().st_size
    with path.open("rb") as file:
        (length,) = struct.unpack("<Q", file.read(8).ljust(8, b"\0"))
        if not 0 < length <= size - 8:
            raise InputError(f"{path.name} is not a safetensors file, or it is cut", found=f"{size} bytes")
        text = file.read(length)
    try:
        header = json.loads(text)
        metadata = header.pop("__metadata__", {})
        tensors = [
            Tensor(name, entry["dtype"], tuple(map(int, entry["shape"])), path, 8 + length + start, end - start)
            for name, entry in header.items()
            for start, end in [entry["data_offsets"]]
        ]
    except (ValueError, TypeError, LookupError, AttributeError, ArithmeticError, RecursionError) as error:
        what = f"{path.name} has not the header of a safetensors file"
        raise InputError(what, found=f"{type(error).__name__}: {error}") from error
    tensors.sort(key=lambda tensor: tensor.start)
    end = max((tensor.start + tensor.bytes for tensor in tensors), default=8 + length)
    if end != size:
        raise InputError(f"{path.name} is not whole", found=f"{size} bytes", expected=f"{end} bytes")
    return tensors, metadata


def lay_out(
    path: Path, tensors: Iterable[tuple[str, str, tuple[int, ...], int]], metadata: Mapping[str, str]
) -> list[Tensor]:
    """Creates `path` in full size, header written, data zero, for (name, dtype, shape, bytes) in this order."""
    header: dict[str, Any] = {"__metadata__": dict(metadata)} if metadata else {}
    entries = list(tensors)
    offset = 0
    for name, dtype, shape, count in entries:
        header[name] = {"dtype": dtype, "shape": shape, "data_offsets": [offset, offset + count]}
        offset += count
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % ALIGNMENT_BYTES)
    with path.open("wb") as file:
        file.write(struct.pack("<Q", len(text)) + text)
        file.truncate(8 + len(text) + offset)
    path.chmod(0o644)
    placed, start = [], 8 + len(text)
    for name, dtype, shape, count in entries:
        placed.append(Tensor(name, dtype, shape, path, start, count))
        start += count
    return placed


def reserve(path: Path, size_bytes: int) -> None:
    """Makes `path` at least so long, every byte on disk: a mapped hole that cannot be filled kills the process."""
    with path.open("ab") as file:
        os.posix_fallocate(file.fileno(), 0, size_bytes)


def fill(target: Tensor, blocks: Iterable[Any]) -> None:
    """Writes `blocks`, buffers in order, as the data of `target`."""
    descriptor = os.open(target.path, os.O_WRONLY)
    try:
        at = target.start
        for block in blocks:
            view = memoryview(block).cast("B")
            while view:
                written = os.pwrite(descriptor, view, at)
                view, at = view[written:], at + written
    finally:
        os.close(descriptor)
    if at != target.start + target.bytes:
        raise ValueError(f"{target.name}: {at - target.start} bytes for a tensor of {target.bytes}")
