"""What the exports will need, from shapes alone."""

from __future__ import annotations

from typing import Any

import pytest

from job.plan.model_size import adapter_bytes
from job.plan.steps import Sizes, plan_memory, quantiser_bytes, steps
from job.weights.shapes import Shapes
from tests.specs import parse

GIB, MIB = 1 << 30, 1 << 20
LAYER = {
    "self_attn.q_proj": (4096, 4096), "self_attn.k_proj": (1024, 4096), "self_attn.v_proj": (1024, 4096),
    "self_attn.o_proj": (4096, 4096), "mlp.gate_proj": (14336, 4096),
    "mlp.up_proj": (14336, 4096), "mlp.down_proj": (4096, 14336),
}  # fmt: skip
EIGHT_B = Shapes(
    {f"model.layers.{i}.{name}.weight": ("BF16", shape) for i in range(32) for name, shape in LAYER.items()}
    | {"model.embed_tokens.weight": ("BF16", (128_256, 4096)), "lm_head.weight": ("BF16", (128_256, 4096))}
)
SIZES = {"bf16": 16_064_610_048, "q8_0": 8_536_489_728, "q4_k_m": 4_916_453_120}


def found(export: dict[str, Any], on_cpu: bool = False) -> dict[str, Any]:
    spec = parse({"/export": export})
    memory = plan_memory(spec, EIGHT_B, 1 << 20, on_cpu)
    return {step.name: step for step in steps(spec, EIGHT_B, 16 * GIB, memory, SIZES if "gguf" in export else {})}


def test_names_are_in_the_order_of_making() -> None:
    spec = parse(
        {
            "/export": {
                "merged": ["4bit", "16bit"],
                "gguf": ["q4_k_m", "bf16", "iq3_xxs"],
                "imatrix": True,
                "lora_gguf": "f16",
            }
        }
    )
    names = ["merged", "merged_4bit", "imatrix", "lora_gguf", "gguf-bf16", "gguf-q4_k_m", "gguf-iq3_xxs"]
    assert spec.artefacts == names
    assert parse({}).artefacts == []
    assert parse({"/model/precision": "full", "/export": {"merged": ["16bit"], "gguf": ["q8_0"]}}).artefacts == [
        "gguf-q8_0"
    ]


def test_the_sizes_are_those_of_the_shapes() -> None:
    assert EIGHT_B.parameters == 8_029_995_008
    assert EIGHT_B.gguf_type == "bf16"
    assert EIGHT_B.vocabulary == 128_256


def test_a_gpu_run_of_8b_fits_a_pod_of_32_gib() -> None:
    """Weights pass through host memory tensor by tensor; nothing holds them all there."""
    for step in found({"merged": ["16bit"], "gguf": ["q8_0", "q4_k_m"]}).values():
        assert step.ram_bytes < 28 * GIB, step
    assert found({"merged": ["16bit"]}, on_cpu=True)["compare"].ram_bytes == pytest.approx(4 * 8.03e9, rel=0.07)


def test_memory_of_a_process_is_that_of_what_it_holds_at_once() -> None:
    """On the CPU; `tests/flow/test_export_memory.py` holds the figures against runs."""
    spec = parse({"/export": {"merged": ["16bit"], "gguf": ["q8_0"]}})
    memory = plan_memory(spec, EIGHT_B, 1 << 20, True)
    vocabulary, parameters = EIGHT_B.vocabulary, EIGHT_B.parameters
    constant = (260 + 64 + 20) << 20
    assert memory.compare() - constant == pytest.approx(
        4 * parameters + 7 * 4 * 256 * vocabulary + adapter_bytes(spec, EIGHT_B)
    )
    assert memory.reload("16bit") - memory.reload("4bit") == pytest.approx(
        3.4 * (parameters - 2 * vocabulary * 4096), rel=1e-3
    )
    assert quantiser_bytes(EIGHT_B) < GIB  # llama.cpp works slab by slab, however large a tensor is
    assert memory.check("q4_k_m") - memory.check("q8_0") == pytest.approx(
        0.86 * 4.5 / 8 * (parameters - 2 * vocabulary * 4096), rel=1e-3
    )
    short = plan_memory(spec, EIGHT_B, 1 << 20, True, Sizes(512, 512, 16, 128, 128))
    assert memory.check("q8_0") - short.check("q8_0") == 9 * 4 * (128 - 16) * vocabulary


FORKED_MIB = {
    "lora": 316 - 265,
    "q8_0": 317 - 158,
    "q4_k_m": 317 - 158,
}  # what these bring along since they are forked, as seen on a CPU
SEEN_MIB = {  # python -m tests.gpu.export_bench 1b|400m FOLDER memory, one H200
    (2048, 8192, 32): {"reload": 1245, "four_bit": 1626, "compare": 2029, "lora": 1010, "q8_0": 818, "q4_k_m": 1268},
    (1024, 4096, 16): {"reload": 1269, "four_bit": 1020, "compare": 1655, "lora": 936, "q8_0": 819, "q4_k_m": 929},
}


@pytest.mark.parametrize("shape", SEEN_MIB)
def test_memory_on_a_gpu_is_what_was_seen_there(shape: tuple[int, int, int]) -> None:
    """The terms were fitted to these two models, when processes were started on their own."""
    hidden, inner, heads = shape
    layer = {
        "self_attn.q_proj": (heads * 64, hidden), "self_attn.k_proj": (512, hidden), "self_attn.v_proj": (512, hidden),
        "self_attn.o_proj": (hidden, heads * 64), "mlp.gate_proj": (inner, hidden), "mlp.up_proj": (inner, hidden),
        "mlp.down_proj": (hidden, inner),
    }  # fmt: skip
    tensors = {f"model.layers.{i}.{name}.weight": ("BF16", size) for i in range(16) for name, size in layer.items()}
    shapes = Shapes(tensors | {"model.embed_tokens.weight": ("BF16", (128_256, hidden))})
    spec = parse(
        {
            "/lora/r": 16,
            "/model/max_seq_length": 2048,
            "/export": {"gguf": ["q8_0"], "imatrix": True, "check_tokens": 128},
        }
    )
    memory = plan_memory(spec, shapes, 3_500_000, on_cpu=False)
    planned = {
        "reload": memory.reload("4bit"),
        "four_bit": memory.four_bit(),
        "compare": memory.compare(),
        "lora": memory.lora(),
        "q8_0": memory.quant("q8_0"),
        "q4_k_m": memory.quant("q4_k_m"),
    }
    assert {name: size / MIB for name, size in planned.items()} == pytest.approx(
        {name: seen + FORKED_MIB.get(name, 0) for name, seen in SEEN_MIB[shape].items()}, rel=0.06
    )


def test_memory_of_answers_is_that_of_their_keys_and_values() -> None:
    """Of an 8B model 128 KiB a token in 16 bits: long questions need memory that no other figure counts."""
    spec = parse({"/export": {"gguf": ["q8_0"]}})
    short, long = (
        plan_memory(spec, EIGHT_B, 1 << 20, True, Sizes(512, 100, 128, tokens, 64 * tokens)) for tokens in (100, 4196)
    )
    kept = 32 * 2 * 1024  # layers, keys and values
    assert long.check("q8_0") - short.check("q8_0") == 4096 * 2 * kept
    assert long.compare() - short.compare() == (16_384 - 6400) * 4 * kept  # of a batch
    assert long.reload("4bit") > short.reload("4bit")


def test_where_fp32_does_not_fit_the_comparison_keeps_its_weights_mapped() -> None:
    spec = parse({"/export": {"merged": ["16bit"]}})
    tight, ample = (plan_memory(spec, EIGHT_B, 1 << 20, True, free_bytes=gib * GIB).compare() for gib in (32, 40))
    assert ample - tight == 4 * EIGHT_B.parameters
    assert tight < 3 * GIB


def test_disk_is_counted_where_it_is_most() -> None:
    needed = found(
        {"merged": ["16bit"], "gguf": ["q8_0", "q4_k_m"]}, on_cpu=True
    )  # on a GPU quants are made early, by cores and memory
    weights = 16.06e9
    logits = 512 * 128_256 * 4  # of one model
    assert needed["merge"].disk_bytes == pytest.approx(16 * GIB + weights + 2 * logits, rel=0.01)
    assert needed["compare"].disk_bytes == pytest.approx(16 * GIB + 2 * weights + 3 * logits, rel=0.01)
    assert needed["quantise"].disk_bytes < needed["compare"].disk_bytes
    assert set(found({"merged": ["16bit"]})) == {"reload", "adapted", "merge", "compare"}
