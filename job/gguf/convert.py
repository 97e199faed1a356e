"""A folder of safetensors as a GGUF of 16 or 32 bits, by llama.cpp's own converter, run in this process.

The converter decides names, permutations, metadata and vocabulary. The weights are written here: it would cast and
write them one after another on one core, 16 rows at a time.
"""

from __future__ import annotations

import logging
import os
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from job.errors import CapacityError, DeviceError, GateError, InputError, classify
from job.gguf.header import Written, padded, read_header
from job.gguf.types import TYPES

# What the converter raises where config, tokenizer or shapes are not what it expects of them.
BROKEN = (AssertionError, AttributeError, LookupError, RuntimeError, StopIteration, TypeError, ValueError)
BATCH_BYTES = 2 << 30  # of tensors in flight, as fp32; a single larger tensor goes alone


def convert(model: Path, target: Path, type_name: str, name: str, threads: int) -> Written:
    """Writes `target`. Raises `InputError` if llama.cpp does not know the model, `GateError` for broken files."""
    started = time.monotonic()
    with _prepared_converter(model, target, type_name, name) as converter:
        _write_weights(converter.gguf_writer, threads)
    return Written.since(started, read_header(target, target.name))


def outline(model: Path, target: Path) -> None:
    """The bf16 GGUF of `model` with a hole in place of its weights: it takes no room, and shows what can be made."""
    with _prepared_converter(model, target, "bf16", "outline") as converter:
        tensors = converter.gguf_writer.tensors[0].values()
        with target.open("r+b") as file:
            start = file.seek(0, os.SEEK_END)
            alignment = converter.gguf_writer.data_alignment
            file.truncate(padded(start, alignment) + sum(padded(tensor.nbytes, alignment) for tensor in tensors))


def write_vocabulary(model: Path, target: Path) -> None:
    """Metadata and vocabulary of a folder that has no weights yet, as GGUF. Raises as `convert` does."""
    with loaded_converter(model, target, "bf16", "vocabulary") as converter:
        converter.write_vocab()
        # Readers expect the place where weights begin
        os.truncate(target, padded(target.stat().st_size, converter.gguf_writer.data_alignment))


@contextmanager
def loaded_converter(model: Path, target: Path, type_name: str, name: str) -> Iterator[Any]:
    """llama.cpp's model class for the folder. Raises what `convert` raises, for its user's block as well."""
    import gguf
    import torch
    from conversion import ModelBase, ModelType, get_model_architecture, get_model_class

    logging.getLogger("hf-to-gguf").setLevel(logging.ERROR)
    file_type = gguf.LlamaFileType(TYPES[type_name].file_type)
    with torch.inference_mode(), _torch_rounding(), _explained():
        settings = ModelBase.load_hparams(model, is_mistral_format=False)
        architecture = get_model_class(get_model_architecture(settings, ModelType.TEXT))
        yield architecture(model, file_type, target, model_name=name)


@contextmanager
def _prepared_converter(model: Path, target: Path, type_name: str, name: str) -> Iterator[Any]:
    """The same with its tensors listed, its metadata set and its header written; no weights read or written yet."""
    with loaded_converter(model, target, type_name, name) as converter:
        converter.prepare_tensors()
        converter.prepare_metadata(vocab_only=False)
        writer = converter.gguf_writer
        writer.write_header_to_file(path=target)
        writer.write_kv_data_to_file()
        writer.write_ti_data_to_file()
        writer.flush()
        yield converter
        writer.close()


@contextmanager
def _explained() -> Iterator[None]:
    """What the converter cannot do, in the job's words."""
    try:
        yield
    except NotImplementedError as error:
        raise InputError(
            "llama.cpp's converter does not know this model",
            where="/model/source",
            found=str(error).strip() or type(error).__name__,
            expected="an architecture and a tokenizer that llama.cpp supports",
            hint="Remove the GGUF exports",
        ) from error
    except FileNotFoundError as error:
        raise InputError(
            "llama.cpp's converter needs a file that this model does not have",
            where="/model/source",
            found=str(error),
            expected="a folder with it, such as tokenizer.model for Gemma and Llama 2",
            hint="Bring it from the model's own repository, or remove the GGUF exports",
        ) from error
    except BROKEN as error:
        if isinstance(classify(error), CapacityError | DeviceError):  # torch's errors of memory and device
            raise
        raise GateError("the model cannot be converted to GGUF", found=f"{type(error).__name__}: {error}") from error


@contextmanager
def _torch_rounding() -> Iterator[None]:
    """Rounds to bf16 with torch: the same bits as the converter's own numpy code, many times faster."""
    import gguf
    import numpy
    import torch

    stock = gguf.quants.quantize

    def rounded(values: Any) -> Any:
        return torch.from_numpy(values).to(torch.bfloat16).view(torch.uint8).numpy()

    def doubled(shape: tuple[int, ...]) -> tuple[int, ...]:
        return (*shape[:-1], 2 * shape[-1])

    lazily: Callable[[Any], Any] = gguf.LazyNumpyTensor._wrap_fn(rounded, meta_noop=(numpy.uint8, doubled))

    def quantize(data: Any, kind: Any) -> Any:
        if kind != gguf.GGMLQuantizationType.BF16:
            return stock(data, kind)
        return lazily(data) if isinstance(data, gguf.LazyNumpyTensor) else rounded(data)

    gguf.quants.quantize = quantize
    try:
        yield
    finally:
        gguf.quants.quantize = stock


def _write_weights(writer: Any, threads: int) -> None:
    """Every tensor to its place, several at once; the lists of tensors are emptied on the way."""
    import torch

    file = writer.fout[0]
    position = padded(file.tell(), writer.data_alignment)
    places = []
    for tensor in writer.tensors[0].values():
        places.append((position, tensor))
        position += padded(tensor.nbytes, writer.data_alignment)
    os.ftruncate(file.fileno(), position)
    cores = torch.get_num_threads()
    torch.set_num_threads(1)  # the cores are busy with other tensors
    with ThreadPoolExecutor(threads) as pool:
        for batch in _batches(places):
            list(pool.map(lambda place: _write_tensor(file.fileno(), *place), batch))
    torch.set_num_threads(cores)


def _batches(places: list[tuple[int, Any]]) -> Iterator[list[tuple[int, Any]]]:
    batch: list[tuple[int, Any]] = []
    held = 0
    for place in places:
        size = 2 * place[1].nbytes
        if batch and held + size > BATCH_BYTES:
            yield batch
            batch, held = [], 0
        batch.append(place)
        held += size
    if batch:
        yield batch


def _write_tensor(file: int, position: int, tensor: Any) -> None:
    import gguf
    import numpy

    values = gguf.LazyNumpyTensor.to_eager(tensor.tensor)
    tensor.tensor = None
    content = numpy.ascontiguousarray(values).reshape(-1).view(numpy.uint8).data
    while content:  # one call writes 2 GiB at most
        written = os.pwrite(file, content, position)
        content, position = content[written:], position + written
