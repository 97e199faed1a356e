"""16-bit GGUF to a quantised one on a GPU: the bytes of `llama_model_quantize` without an imatrix, in a fraction of
its time.

llama.cpp still decides the type of every tensor and writes the header; weights are read, encoded and written at the
same time.
"""

from __future__ import annotations

import ctypes
import math
import os
import time
from collections import deque
from collections.abc import Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from job.errors import CapacityError, GateError
from job.gguf.encode import encode
from job.gguf.header import Header, TensorInfo, Written, padded, read_header, tensor_bytes
from job.gguf.quantise import planned_types
from job.gguf.types import TYPES

if TYPE_CHECKING:
    import torch

SLAB_WEIGHTS = 1 << 24  # of a tensor, on their way at once
AHEAD = 3  # slabs read before they are needed, and encoded ones waiting to be written
THREADS = 2
SPLIT_KEYS = ("split.no", "split.count", "split.tensors.count")


@dataclass(frozen=True)
class Slab:
    """Some rows of a tensor: the bytes they are read from and those they are written to."""

    source: TensorInfo
    target: TensorInfo
    row: int
    rows: int

    def span(self, tensor: TensorInfo) -> tuple[int, int]:
        """Position in the file and length."""
        row_bytes = tensor_bytes(tensor.shape[:1], tensor.type)
        return tensor.offset + self.row * row_bytes, self.rows * row_bytes


def quantise_on_device(source: Path, target: Path, type_name: str, device: str) -> Written:
    """Writes `target`; all planned types have to be `supported`. Raises `GateError` if a weight is not finite."""
    started = time.monotonic()
    before = read_header(source, source.name)
    types = planned_types(source, type_name, False)
    _write_header(source, target, types, TYPES[type_name].file_type)
    data_start = padded(target.stat().st_size, before.alignment)
    sizes = (padded(tensor_bytes(before.tensors[name].shape, kind), before.alignment) for name, kind in types.items())
    os.truncate(target, data_start + sum(sizes))
    after = read_header(target, target.name)
    with source.open("rb") as reader, target.open("r+b") as writer:
        _write_weights(reader.fileno(), writer.fileno(), _slabs(before, after), device)
    return Written.since(started, after)


# ------------------------------------------------------------------------------------------------ weights


def _slabs(before: Header, after: Header) -> Iterator[Slab]:
    for name, tensor in after.tensors.items():
        rows_at_once = max(1, SLAB_WEIGHTS // tensor.shape[0])
        rows = math.prod(tensor.shape[1:])
        for row in range(0, rows, rows_at_once):
            yield Slab(before.tensors[name], tensor, row, min(rows_at_once, rows - row))


def _write_weights(source: int, target: int, slabs: Iterable[Slab], device: str) -> None:
    pinned = device != "cpu"  # memory that a GPU reaches by itself
    waiting: deque[Future[None]] = deque()
    with ThreadPoolExecutor(THREADS) as readers, ThreadPoolExecutor(THREADS) as writers:
        for slab, content in _read_ahead(readers, source, slabs, pinned):
            if slab.source.type == slab.target.type:
                encoded, finite = content, None
            else:
                weights = _weights(content.to(device, non_blocking=True), slab)
                encoded, finite = encode(weights, slab.target.type), weights.isfinite().all()
            waiting.append(writers.submit(_store, target, slab, encoded, finite, pinned))
            if len(waiting) > AHEAD:
                waiting.popleft().result()
        for written in waiting:
            written.result()


def _read_ahead(
    readers: ThreadPoolExecutor, file: int, slabs: Iterable[Slab], pinned: bool
) -> Iterator[tuple[Slab, torch.Tensor]]:
    reading: deque[tuple[Slab, Future[torch.Tensor]]] = deque()
    for slab in slabs:
        reading.append((slab, readers.submit(_read, file, slab, pinned)))
        if len(reading) > AHEAD:
            first, content = reading.popleft()
            yield first, content.result()
    for last, content in reading:
        yield last, content.result()


def _read(file: int, slab: Slab, pinned: bool) -> torch.Tensor:
    import torch

    position, length = slab.span(slab.source)
    content = torch.empty(length, dtype=torch.uint8, pin_memory=pinned)
    view = memoryview(content.numpy())
    while view:
        count = os.preadv(file, [view], position)
        if count == 0:
            raise GateError("the GGUF file is cut short", where=slab.source.name, found=f"no byte {position}")
        view, position = view[count:], position + count
    return content


def _weights(content: torch.Tensor, slab: Slab) -> torch.Tensor:
    import torch

    kinds = {"F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}
    return content.view(kinds[slab.source.type]).view(slab.rows, -1).float()


def _store(file: int, slab: Slab, encoded: torch.Tensor, finite: torch.Tensor | None, pinned: bool) -> None:
    import torch

    if finite is not None and not finite.item():
        raise GateError(
            f"a weight cannot be quantised to {slab.target.type}", where=slab.target.name, found="not a finite number"
        )
    if encoded.device.type != "cpu":
        encoded = torch.empty(encoded.shape, dtype=torch.uint8, pin_memory=pinned).copy_(encoded)
    position, _ = slab.span(slab.target)
    view = memoryview(encoded.view(-1).numpy())
    while view:
        count = os.pwrite(file, view, position)
        view, position = view[count:], position + count


# ------------------------------------------------------------------------------------------------ header


class _Opening(ctypes.Structure):
    _fields_ = (("no_alloc", ctypes.c_bool), ("tensors", ctypes.POINTER(ctypes.c_void_p)))  # gguf_init_params


def _write_header(source: Path, target: Path, types: dict[str, str], file_type: int) -> None:
    """All before the weights, written by ggml from what `source` says, as `llama_model_quantize` does it."""
    import gguf

    ggml = _ggml()
    tensors = ctypes.c_void_p()
    before = ggml.gguf_init_from_file(str(source).encode(), _Opening(True, ctypes.pointer(tensors)))
    if not before:
        raise GateError("the GGUF header cannot be read", where=source.name)
    after = ggml.gguf_init_empty()
    ggml.gguf_set_kv(after, before)
    ggml.gguf_set_val_u32(after, b"general.quantization_version", gguf.GGML_QUANT_VERSION)
    ggml.gguf_set_val_u32(after, b"general.file_type", file_type)
    for key in SPLIT_KEYS:
        ggml.gguf_remove_key(after, key.encode())
    for name, kind in types.items():
        ggml.gguf_add_tensor(after, ggml.ggml_get_tensor(tensors, name.encode()))
        ggml.gguf_set_tensor_type(after, name.encode(), gguf.GGMLQuantizationType[kind])
    written = ggml.gguf_write_to_file(after, str(target).encode(), True)
    ggml.gguf_free(after)
    ggml.gguf_free(before)
    ggml.ggml_free(tensors)
    if not written:
        raise CapacityError("the disk is full: the GGUF header cannot be written", where=target.name)


def _ggml() -> Any:
    """ggml's C interface, as far as it is needed here."""
    from llama_cpp._ggml import libggml

    pointer, text = ctypes.c_void_p, ctypes.c_char_p
    signatures: dict[str, tuple[Any, list[Any]]] = {
        "gguf_init_from_file": (pointer, [text, _Opening]),
        "gguf_init_empty": (pointer, []),
        "gguf_set_kv": (None, [pointer, pointer]),
        "gguf_set_val_u32": (None, [pointer, text, ctypes.c_uint32]),
        "gguf_remove_key": (ctypes.c_int64, [pointer, text]),
        "ggml_get_tensor": (pointer, [pointer, text]),
        "gguf_add_tensor": (None, [pointer, pointer]),
        "gguf_set_tensor_type": (None, [pointer, text, ctypes.c_int]),
        "gguf_write_to_file": (ctypes.c_bool, [pointer, text, ctypes.c_bool]),
        "gguf_free": (None, [pointer]),
        "ggml_free": (None, [pointer]),
    }
    ggml = ctypes.CDLL(libggml._name)
    for name, (result, arguments) in signatures.items():
        function = getattr(ggml, name)
        function.restype, function.argtypes = result, arguments
    return ggml
