"""16-bit GGUF to a quantised one with `llama_model_quantize`; and what that will make of a file, without doing it."""

from __future__ import annotations

import ctypes
import re
import shutil
import time
from pathlib import Path
from typing import Any

from job.errors import CapacityError, GateError
from job.gguf.header import Header, Written, padded, read_header, tensor_bytes
from job.gguf.native import native_log
from job.gguf.types import TYPES, QuantType

BUFFER_BYTES = 512 << 20  # rows of a tensor in memory at once
PLANNED = re.compile(
    r"\[ *\d+/ *\d+\] (?P<name>\S+) +- \[[^\]]*\], type = +(?P<from>\w+), size = +[\d.]+ MiB(?: -> +[\d.]+ MiB \((?P<to>\w+)\))?"  # noqa: E501
)
STREAM_WORDS = "iostream error"  # what is left of a write that failed
# Importance matrices as llama.cpp's own tool stores them: sums of squared inputs and how many were summed.
SUMS, COUNTS = ".in_sum2", ".counts"
IMATRIX_ENTRIES = "quantize.imatrix.entries_count"  # the key by which llama.cpp's own tool says that one was used


def quantise(source: Path, target: Path, type_name: str, imatrix: Path | None, threads: int) -> Written:
    """Writes `target`. Raises `GateError` with llama.cpp's words if it fails, `CapacityError` if the disk is full."""
    started = time.monotonic()
    means = {} if imatrix is None else load_imatrix(imatrix)
    _run(source, target, TYPES[type_name], means, threads, dry=False)
    try:
        return Written.since(started, read_header(target, target.name))
    except GateError as error:  # cut, without a word
        if shutil.disk_usage(target.parent).free < BUFFER_BYTES:
            raise CapacityError("the disk is full", where=target.name) from error
        raise


def planned_types(source: Path, type_name: str, with_imatrix: bool) -> dict[str, str]:
    """Which type llama.cpp gives each tensor of `source`; reads only its header."""
    import numpy

    means = {"none": numpy.ones(1, numpy.float32)} if with_imatrix else {}  # having one changes some choices
    words = _run(source, Path("/dev/null"), TYPES[type_name], means, 1, dry=True)
    return {found["name"]: (found["to"] or found["from"]).upper() for found in PLANNED.finditer(words)}


def planned_bytes(source: Path, header: Header, type_name: str, with_imatrix: bool) -> int:
    """How large the file of this type will be, to a few hundred bytes."""
    types = planned_types(source, type_name, with_imatrix)
    sizes = (tensor_bytes(tensor.shape, types[name]) for name, tensor in header.tensors.items())
    return header.data_start + sum(padded(size, header.alignment) for size in sizes)


def load_imatrix(path: Path) -> dict[str, Any]:
    """GGUF tensor name → float32 array of mean squared inputs (channels of all its matrices, one after the other)."""
    from gguf import GGUFReader

    tensors = {tensor.name: tensor.data for tensor in GGUFReader(path).tensors}
    sums = {name.removesuffix(SUMS): data for name, data in tensors.items() if name.endswith(SUMS)}
    return {
        name: (data / tensors[name + COUNTS].reshape(-1, 1)).astype("float32").ravel() for name, data in sums.items()
    }


def _run(source: Path, target: Path, kind: QuantType, means: dict[str, Any], threads: int, dry: bool) -> str:
    """llama.cpp's words. Raises `GateError` if it fails, `CapacityError` if it could not write."""
    from llama_cpp import llama_cpp as native

    settings = native.llama_model_quantize_default_params()
    settings.ftype, settings.nthread, settings.dry_run, settings.max_buf_size = (
        kind.file_type,
        threads,
        dry,
        BUFFER_BYTES,
    )
    if means:
        settings.imatrix = _imatrix_array(means)
        settings.kv_overrides = _imatrix_note(len(means))
    with native_log() as log:
        code = native.llama_model_quantize(str(source).encode(), str(target).encode(), ctypes.byref(settings))
    if code and STREAM_WORDS in log.complaint():
        raise CapacityError("the disk is full", where=target.name)
    if code:
        raise GateError(f"llama.cpp cannot quantise to {kind.label}", where=target.name, found=log.complaint())
    return log.text()


def _imatrix_array(means: dict[str, Any]) -> Any:
    """A C array of (name, values, length), ended by one without a name; `means` must outlive it."""
    from llama_cpp import llama_cpp as native

    array = (native.llama_model_imatrix_data * (len(means) + 1))()
    for entry, (name, values) in zip(array, means.items(), strict=False):
        entry.name = name.encode()
        entry.data = values.ctypes.data_as(ctypes.POINTER(ctypes.c_float))
        entry.size = values.size
    return array


def _imatrix_note(entries: int) -> Any:
    """Metadata of the file to be written, ended by a pair without a key."""
    from llama_cpp import llama_cpp as native

    notes: Any = (native.llama_model_kv_override * 2)()
    notes[0].tag, notes[0].key = native.LLAMA_KV_OVERRIDE_TYPE_INT, IMATRIX_ENTRIES.encode()
    notes[0].value.val_i64 = entries
    return notes
