"""Weights encoded with torch are, byte for byte, what ggml's own C code makes of them; so are whole files."""

from __future__ import annotations

import ctypes
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from job.errors import GateError
from job.gguf.convert import convert
from job.gguf.encode import ENCODERS, encode, supported
from job.gguf.gpu_quantise import quantise_on_device
from job.gguf.header import read_header, tensor_bytes
from job.gguf.quantise import planned_types, quantise
from tests.tiny import broken_narrow_dir, narrow_dir, wide_dir

ROWS, WIDTH = 35, 4096  # more than one slice on a CPU, the last one shorter
FEW_ROWS = 12  # of the kinds of weights after the first: 192 blocks of 256
DEVICES = ["cpu", pytest.param("cuda", marks=pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU"))]


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    """Thousands of short operations: threads that wait for each other on shared cores make them ten times slower."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def normal(seed: int = 1) -> torch.Tensor:
    return torch.randn(ROWS, WIDTH, generator=torch.Generator().manual_seed(seed))


def outliers() -> torch.Tensor:
    """One large weight in each block of 256, at any place in it."""
    weights = (normal() * 0.02).view(-1, 256)
    places = torch.randint(256, (len(weights), 1), generator=torch.Generator().manual_seed(2))
    return weights.scatter_(1, places, 5.0).view(ROWS, WIDTH)


def lone() -> torch.Tensor:
    """A single weight in each block of 256; all others are zero."""
    weights = torch.zeros(ROWS, WIDTH)
    weights[:, ::256] = normal()[:, ::256]
    return weights


WEIGHTS: dict[str, Callable[[], torch.Tensor]] = {
    "normal": lambda: normal() * 0.02,
    "in bf16, with many ties": lambda: (normal() * 0.02).bfloat16().float(),
    "uniform": lambda: torch.rand(ROWS, WIDTH, generator=torch.Generator().manual_seed(1)) - 0.3,
    "heavy-tailed": lambda: normal() / normal(2).abs().clamp(min=1e-3),
    "positive": lambda: normal().abs(),
    "negative": lambda: -normal().abs(),
    "constant": lambda: torch.full((ROWS, WIDTH), 0.37),
    "zero": lambda: torch.zeros(ROWS, WIDTH),
    "below fp16": lambda: normal() * 1e-8,
    "far below fp16": lambda: normal() * 1e-16,
    "large": lambda: normal() * 1e4,
    "of every size": lambda: normal() * torch.logspace(-12, 3, WIDTH),
    "outliers": outliers,
    "lone": lone,
}


def by_ggml(weights: torch.Tensor, type_name: str) -> torch.Tensor:
    from gguf import GGMLQuantizationType
    from llama_cpp._ggml import libggml

    quantize = ctypes.CDLL(libggml._name).ggml_quantize_chunk
    quantize.restype = ctypes.c_size_t
    quantize.argtypes = [ctypes.c_int, ctypes.c_void_p, ctypes.c_void_p, *[ctypes.c_int64] * 3, ctypes.c_void_p]
    rows, width = weights.shape
    encoded = torch.empty((rows, tensor_bytes((width,), type_name)), dtype=torch.uint8)
    size = quantize(GGMLQuantizationType[type_name], weights.data_ptr(), encoded.data_ptr(), 0, rows, width, None)
    assert size == encoded.numel()
    return encoded


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("type_name", [name for name in ENCODERS if name != "F32"])
def test_the_bytes_are_those_of_ggml(type_name: str, device: str) -> None:
    for kind, make in WEIGHTS.items():
        weights = make() if kind == "normal" else make()[:FEW_ROWS].contiguous()
        ours, theirs = encode(weights.to(device), type_name).cpu(), by_ggml(weights, type_name)
        different = int((ours != theirs).sum())
        assert different == 0, f"{different} of {theirs.numel()} bytes of {kind} weights"


@pytest.mark.parametrize(
    ("type_name", "largest_error"), [("Q8_0", 1e-4), ("Q6_K", 5e-4), ("Q4_K", 1e-2), ("Q3_K", 5e-2), ("Q2_K", 0.15)]
)
def test_the_bytes_mean_the_weights(type_name: str, largest_error: float) -> None:
    import gguf

    weights = normal()
    decoded = gguf.quants.dequantize(encode(weights, type_name).numpy(), gguf.GGMLQuantizationType[type_name])
    error = float((torch.from_numpy(decoded) - weights).square().mean())
    assert largest_error / 10 < error < largest_error


def test_fp32_stays_as_it_is() -> None:
    assert torch.equal(encode(normal(), "F32").view(torch.float32), normal())


@pytest.fixture(scope="module")
def wide(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("wide") / "bf16.gguf"
    convert(wide_dir(), path, "bf16", "tuned", 1)
    return path


# Their blocks are compared above; what a file has of its own is in those of the others.
OTHERS = [pytest.param(name, marks=pytest.mark.long) for name in ("q6_k", "q5_k_m", "q3_k_m")]


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("type_name", ["q8_0", "q4_k_m", "q2_k", *OTHERS])
def test_a_file_is_the_one_llama_cpp_writes(wide: Path, type_name: str, device: str, tmp_path: Path) -> None:
    assert supported(planned_types(wide, type_name, False).values())
    report = quantise_on_device(wide, tmp_path / "ours.gguf", type_name, device)
    expected = quantise(wide, tmp_path / "theirs.gguf", type_name, None, 1)
    assert same_content(tmp_path / "ours.gguf", tmp_path / "theirs.gguf")
    assert replace(report, seconds=0) == replace(expected, seconds=0)


@pytest.mark.parametrize(("source_type", "type_name", "fallback"), [("f32", "q4_k_m", "Q5_0"), ("f16", "q2_k", "Q4_0")])
def test_rows_of_other_widths_and_sources_of_other_types(
    source_type: str, type_name: str, fallback: str, tmp_path: Path
) -> None:
    source = tmp_path / "source.gguf"
    convert(narrow_dir(), source, source_type, "tuned", 1)
    types = set(planned_types(source, type_name, False).values())
    assert fallback in types  # rows of 128 weights are not a block of a k-quant
    assert supported(types)
    quantise_on_device(source, tmp_path / "ours.gguf", type_name, "cpu")
    quantise(source, tmp_path / "theirs.gguf", type_name, None, 1)
    assert same_content(tmp_path / "ours.gguf", tmp_path / "theirs.gguf")


def test_a_type_that_needs_llama_cpp_is_known_as_such(wide: Path) -> None:
    types = planned_types(wide, "iq4_xs", False)
    assert "IQ4_XS" in types.values()
    assert not supported(types.values())


def test_a_weight_that_is_not_a_number_is_refused(tmp_path: Path) -> None:
    convert(broken_narrow_dir(), tmp_path / "source.gguf", "bf16", "tuned", 1)
    with pytest.raises(GateError, match="not a finite number"):
        quantise_on_device(tmp_path / "source.gguf", tmp_path / "ours.gguf", "q8_0", "cpu")


def same_content(ours: Path, theirs: Path) -> bool:
    """Compares header and weights by themselves first, so that a failure says which of them differs."""
    start = read_header(theirs, "k").data_start
    a, b = ours.read_bytes(), theirs.read_bytes()
    assert a[:start] == b[:start], "the headers differ"
    return a == b
