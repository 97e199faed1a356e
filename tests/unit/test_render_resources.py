"""What a spec needs is worked out to within what was measured, from what is known of the model."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from job.errors import CapacityError, InputError
from job.plan.gpu_memory import GIB
from job.plan.machine import resources
from job.plan.model_size import DEFAULT_PARAMETERS, NAME_MARGIN, ModelSize, model_size
from job.spec import JobSpec, parse_spec
from tests.renders import REMOTE, objects, rendered
from tests.specs import changed, parse

EXAMPLES = Path(__file__).parents[2] / "schemas" / "examples"
LLAMA_8B = ModelSize(8_030_261_248, 4096, 32, 128_256, quantised=False, local=False, origin="")
LLAMA_1B = ModelSize(1_235_814_400, 2048, 16, 128_256, quantised=False, local=False, origin="")


def finetome(
    precision: str = "4bit", checkpointing: Any = "unsloth", backend: str = "unsloth", micro_batch: Any = "auto"
) -> JobSpec:
    document = json.loads((EXAMPLES / "finetome-llama31-8b.json").read_bytes())
    document["model"] |= {"precision": precision, "backend": backend}
    document["training"] |= {"gradient_checkpointing": checkpointing, "micro_batch": micro_batch}
    document["data"]["packing"] = backend == "unsloth" and precision != "full"
    if precision == "full":
        del document["lora"], document["model"]["merge_base"]
    return parse_spec(json.dumps(document).encode())


@pytest.mark.parametrize(
    ("size", "spec", "card_gb"),
    [
        (LLAMA_1B, finetome(), 24),
        (LLAMA_8B, finetome("16bit"), 24),
        (LLAMA_8B, finetome("full"), 80),
        (LLAMA_8B, finetome(checkpointing=False), 24),
        (LLAMA_8B, finetome(checkpointing=False, micro_batch=8), 80),
        (LLAMA_8B, finetome("16bit", checkpointing=False, micro_batch=8), 141),
        (LLAMA_8B, finetome("16bit", checkpointing=False, micro_batch=16), 180),
    ],
)
def test_the_smallest_card_that_holds_it(size: ModelSize, spec: JobSpec, card_gb: int) -> None:
    assert resources(spec, size).gpu_gb == card_gb


def test_what_no_card_holds_is_refused_with_figures() -> None:
    with pytest.raises(CapacityError, match="180 GB") as refused:
        resources(finetome("full"), replace(LLAMA_8B, parameters=70 * 10**9, hidden=8192, layers=80))
    assert "each of several GPUs holds all of it" in str(refused.value)


def test_disk_and_memory_grow_with_what_is_exported() -> None:
    """8B: 6 and 16 GB of bases, 16 of merge, 16 of 16-bit GGUF; without them 33 of the six quants beside the last."""
    few = resources(parse({**REMOTE}), LLAMA_8B)
    many = resources(finetome(), replace(LLAMA_8B, quantised=True))
    assert few.scratch_bytes == 48 * GIB
    assert many.scratch_bytes == 80 * GIB
    assert few.memory_bytes == 12 * GIB
    assert 20 * GIB <= many.memory_bytes <= 28 * GIB
    assert (few.cpu_request, many.cpu_request) == (3, 7)
    assert many.ephemeral_bytes > many.scratch_bytes + many.tmp_bytes


def test_offloaded_activations_are_host_memory() -> None:
    spec = parse({**REMOTE, "/training/batch_size": 16, "/model/max_seq_length": 4096})
    other = parse(
        {**REMOTE, "/training/batch_size": 16, "/model/max_seq_length": 4096, "/training/gradient_checkpointing": True}
    )
    offloaded = 2 * 16 * 4096 * 4096 * 32
    assert resources(spec, LLAMA_8B).memory_bytes - resources(other, LLAMA_8B).memory_bytes == pytest.approx(
        offloaded, abs=4 * GIB
    )


@pytest.mark.parametrize(
    ("source", "parameters"),
    [
        ("hf://unsloth/Llama-3.2-1B-Instruct", 10**9),
        ("hf://unsloth/Meta-Llama-3.1-8B-bnb-4bit", 8 * 10**9),
        ("hf://Qwen/Qwen2.5-0.5B", 5 * 10**8),
        ("hf://HuggingFaceTB/SmolLM2-135M-Instruct", 135 * 10**6),
        ("hf://Qwen/Qwen3-30B-A3B", 30 * 10**9),
        ("hf://mistralai/Mixtral-8x7B-v0.1", 56 * 10**9),
        ("s3://models/llama-3.2-1b-instruct/", 10**9),
        ("s3://bucket-70b/llama-3b", 3 * 10**9),
        ("hf://org/name-7b@v2", 7 * 10**9),
    ],
)
def test_the_size_is_read_from_a_name(source: str, parameters: int) -> None:
    found = model_size(parse({"/model/source": source}), None)
    assert found.parameters == int(parameters * NAME_MARGIN)
    assert f"{parameters:,}" in found.origin
    assert found.quantised == ("4bit" in source)


@pytest.mark.parametrize(
    "source", ["hf://org/phi-mini", "hf://org/model-v2", "hf://org/gpt-bnb-4bit", "s3://models/2026-11-22/run"]
)
def test_a_name_without_a_size_is_said_to_have_none(source: str) -> None:
    found = model_size(parse({"/model/source": source}), None)
    assert found.parameters == DEFAULT_PARAMETERS
    assert "nothing here says how many" in found.origin


def test_what_the_user_says_comes_first() -> None:
    found = model_size(parse({"/model/source": "hf://org/llama-70b"}), 10**9)
    assert (found.parameters, found.origin) == (10**9, "1,000,000,000 weights (--parameters)")
    assert "# Base model: 1,000,000,000 weights (--parameters)." in rendered(
        json.dumps(changed(REMOTE)).encode(), "job", parameters="1b"
    )


def model(folder: Path, config: object) -> JobSpec:
    header = json.dumps({"x.weight": {"dtype": "BF16", "shape": [1000, 1000], "data_offsets": [0, 2_000_000]}}).encode()
    (folder / "model.safetensors").write_bytes(len(header).to_bytes(8, "little") + header + bytes(2_000_000))
    (folder / "config.json").write_text(json.dumps(config))
    return parse({"/model/source": str(folder)})


def test_files_that_are_here_are_read(tmp_path: Path) -> None:
    spec = model(tmp_path, {"hidden_size": 576, "num_hidden_layers": 30, "vocab_size": 49_152})
    found = model_size(spec, None)
    assert (found.parameters, found.hidden, found.layers, found.vocabulary) == (10**6, 576, 30, 49_152)
    assert found.local
    assert found.origin.endswith("read from its files")


@pytest.mark.parametrize("value", [0, -1, 10**30, True, "4096", None, [1]])
def test_nonsense_in_a_config_is_not_believed(value: object, tmp_path: Path) -> None:
    spec = model(tmp_path, {"hidden_size": value, "num_hidden_layers": value, "vocab_size": value})
    found = model_size(spec, None)
    assert 0 < found.hidden < 1 << 17
    assert 0 < found.layers < 1 << 12
    assert resources(spec, found).gpu_gb == 24


def test_files_that_are_not_a_model_are_refused(tmp_path: Path) -> None:
    spec = model(tmp_path, [])
    with pytest.raises(InputError):
        model_size(spec, None)


@pytest.mark.parametrize("example", sorted(EXAMPLES.glob("*.json")), ids=lambda path: path.stem)
def test_every_example_fits_a_pod_that_a_cluster_can_have(example: Path) -> None:
    spec = parse_spec(example.read_bytes())
    needs = resources(spec, model_size(spec, None))
    assert needs.gpu_gb == 24
    assert 8 * GIB < needs.memory_bytes <= 64 * GIB
    assert 32 * GIB <= needs.scratch_bytes <= 128 * GIB


def test_memory_holds_what_is_in_memory() -> None:
    job = objects(rendered(json.dumps(changed(REMOTE)).encode(), "job"))["Job"]
    pod = job["spec"]["template"]["spec"]
    limits = pod["containers"][0]["resources"]["limits"]
    sizes = {volume["name"]: volume.get("emptyDir", {}).get("sizeLimit") for volume in pod["volumes"]}
    number = lambda text: int(text.removesuffix("Gi"))  # noqa: E731
    assert number(limits["memory"]) >= 8 + number(sizes["dshm"])
    assert number(limits["ephemeral-storage"]) > number(sizes["scratch"]) + number(sizes["tmp"])
