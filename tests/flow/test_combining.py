"""Adapters that are combined to one: as PEFT does it, measured, gated and exported like a training, and refused."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load_file

from job.source.given_adapter import FetchedAdapter, fetch_adapter
from job.spec import JobSpec
from job.training.start import combine
from tests.flow.running import Result, document, run_tiny, tiny, tunejob, valid_stats, write_spec
from tests.specs import LEFT_OUT, parse
from tests.tiny import random_adapter, tiny_dir

WEIGHTS = (0.7, -0.4)
WHOLE = {"/training/gradient_checkpointing": LEFT_OUT}  # of the tiny spec, which trains
METHODS = ("svd", "linear", "ties", "ties_svd", "dare_linear", "dare_ties", "dare_linear_svd", "dare_ties_svd",
           "magnitude_prune", "magnitude_prune_svd", "cat")  # fmt: skip


@pytest.fixture(scope="module")
def two(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """Of ranks 4 and 4, otherwise unlike."""
    folder = tmp_path_factory.mktemp("adapters")
    first, second = random_adapter(tiny_dir(), folder / "a"), random_adapter(tiny_dir(), folder / "b", lora_alpha=3)
    changed = {
        name: tensor.flip(-1).contiguous() for name, tensor in load_file(second / "adapter_model.safetensors").items()
    }
    from safetensors.torch import save_file

    save_file(changed, second / "adapter_model.safetensors", metadata={"format": "pt"})
    return first, second


def how(method: str) -> dict[str, Any]:
    thinned = {"density": 0.6} if method not in ("svd", "linear", "cat") else {}
    return {"method": method} | thinned | ({"sign": "frequency"} if "ties" in method else {})


def changes(two: tuple[Path, Path], method: str, rank: int) -> dict[str, Any]:
    return {
        "/model/adapters": [
            {"adapter": str(path), "weight": weight} for path, weight in zip(two, WEIGHTS, strict=True)
        ],
        "/model/combine": how(method),
        "/lora": {"r": rank, "alpha": float(rank)},
        "/training": {"seed": 11},
    }


def peft_model(*adapters: Path, **lora: Any) -> Any:
    import torch
    from peft import LoraConfig, PeftModel, get_peft_model
    from transformers import AutoModelForCausalLM

    model: Any = AutoModelForCausalLM.from_pretrained(tiny_dir(), dtype=torch.float32)
    if not adapters:
        return get_peft_model(model, LoraConfig(task_type="CAUSAL_LM", target_modules="all-linear", **lora))
    model = PeftModel.from_pretrained(model, adapters[0], adapter_name="one")
    model.load_adapter(adapters[1], adapter_name="other")
    return model


def by_peft(two: tuple[Path, Path], method: str, rank: int) -> Any:
    """As one would do it with PEFT alone."""
    from peft import get_peft_model_state_dict
    from transformers import set_seed

    model, options = peft_model(*two), how(method)
    set_seed(11)
    model.add_weighted_adapter(
        ["one", "other"], list(WEIGHTS), "both", combination_type=method, svd_rank=rank, density=options.get("density"),
        majority_sign_method=options.get("sign", "total"),
    )  # fmt: skip
    return get_peft_model_state_dict(model, adapter_name="both")


def products(state: Any) -> Any:
    """Of both matrices of each layer: what svd makes of them is that, whatever their signs."""
    return {
        name: state[name.replace("lora_A", "lora_B")].float() @ tensor.float()
        for name, tensor in state.items()
        if "lora_A" in name
    }


@pytest.mark.parametrize("method", METHODS)
def test_it_is_what_peft_makes_of_them(two: tuple[Path, Path], method: str, tmp_path: Path) -> None:
    from peft import get_peft_model_state_dict

    rank = 8 if method == "cat" else 4
    spec: JobSpec = parse(changes(two, method, rank))
    lora = spec.lora
    assert lora
    found: list[FetchedAdapter] = [
        fetch_adapter(address, lora, tmp_path, pointer=pointer, of_several=True)
        for pointer, address in spec.model.given
    ]
    model = peft_model(r=rank, lora_alpha=rank)
    combine(model, found, spec)
    ours, theirs = get_peft_model_state_dict(model), by_peft(two, method, rank)
    assert ours.keys() == theirs.keys()
    assert list(model.peft_config) == ["default"]
    mine, others = products(ours), products(theirs)
    for name, wanted in others.items():
        assert mine[name].allclose(wanted, atol=1e-5), name
        assert wanted.abs().max() > 1e-3
    if not method.endswith("svd"):
        assert all(ours[name].equal(tensor) for name, tensor in theirs.items())


def test_it_is_measured_gated_exported_and_told(two: tuple[Path, Path], tmp_path: Path) -> None:
    """The stored adapter is the combined one; nothing is trained, and every document says what it is."""
    spec = WHOLE | changes(two, "cat", 8) | {"/model/precision": "16bit", "/export": {"merged": ["16bit"]}}
    result = run_tiny(tmp_path, spec)
    assert result.exit_code == 0, result.stdout[-1500:]
    out = tmp_path / "out"
    stats = valid_stats(out / "stats.json")
    assert stats["training"] == {}
    assert [phase["name"] for phase in stats["phases"]].count("combine") == 1
    assert "train" not in [phase["name"] for phase in stats["phases"]]
    assert stats["evaluation"]["base"]["held_out_loss"] != stats["evaluation"]["trained"]["held_out_loss"]
    assert stats["delivered"]["artefacts"]["merged"]["kl"] < 0.01
    stored, wanted = load_file(out / "adapter" / "adapter_model.safetensors"), by_peft(two, "cat", 8)
    assert all(stored[name].equal(tensor) for name, tensor in wanted.items())
    given = document(out / "manifest.json")["base"]["adapters"]
    assert [each["source"] for each in given] == list(map(str, two))
    assert "PEFT's cat with the weights 0.7, -0.4, to LoRA of rank 8" in (out / "README.md").read_text()
    assert "the combined adapters" in (out / "report" / "summary.md").read_text()
    assert "2 adapters combined by cat" in (out / "report" / "report.html").read_text()
    gate = {"/evaluation/gates": [{"metric": "held_out_loss", "at_most": 0.001}]}
    again = run_tiny(tmp_path / "gated", spec | gate)
    assert (again.exit_code, again.failure["pointer"]) == (14, "/evaluation/gates/0/at_most")


@pytest.mark.parametrize("method", ["linear", "ties"])
def test_what_cancels_out_is_not_published_as_an_adapter(method: str, two: tuple[Path, Path], tmp_path: Path) -> None:
    """PEFT leaves one matrix of two as it is there, and zeros of the other."""
    spec = WHOLE | changes((two[0], two[0]), method, 4) | {"/model/precision": "16bit"}
    spec["/model/adapters"] = [{"adapter": str(two[0]), "weight": weight} for weight in (0.5, -0.5)]
    result = run_tiny(tmp_path, spec)
    assert (result.exit_code, "the adapter is zero" in result.failure["message"]) == (14, True), result.stdout[-1500:]
    assert not (tmp_path / "out" / "manifest.json").exists()


@pytest.mark.parametrize(
    ("method", "rank", "where", "words"),
    [("cat", 4, "/lora/r", "8, of the ranks 4, 4 by cat"), ("linear", 8, "/lora/r", "4, of the ranks 4, 4 by linear")],
)
def test_another_rank_is_refused_with_both(
    two: tuple[Path, Path], method: str, rank: int, where: str, words: str, tmp_path: Path
) -> None:
    result = run_tiny(tmp_path, WHOLE | changes(two, method, rank))
    assert (result.exit_code, result.failure["pointer"], result.failure["expected"]) == (11, where, words)


def validated(folder: Path, spec: dict[str, Any]) -> Result:
    return tunejob("validate", write_spec(folder / "spec.json", tiny(folder / "out", spec)), scratch=folder / "scratch")


def test_validate_looks_at_each(two: tuple[Path, Path], tmp_path: Path) -> None:
    spec = WHOLE | changes(two, "svd", 4)
    spec["/model/adapters"][1]["adapter"] = str(tiny_dir())
    result = validated(tmp_path, spec)
    assert (result.exit_code, result.failure["pointer"]) == (11, "/model/adapters/1/adapter")


@pytest.mark.parametrize(("method", "rank", "where", "found"), [
    ("linear", 4, "/model/combine/method", "ranks 4, 2"),
    ("cat", 4, "/lora/r", "4"), ("cat", 6, "", ""), ("svd", 3, "", ""),
])  # fmt: skip
def test_validate_compares_their_ranks(
    two: tuple[Path, Path], method: str, rank: int, where: str, found: str, tmp_path: Path
) -> None:
    narrow = random_adapter(tiny_dir(), tmp_path / "narrow", r=2)
    result = validated(tmp_path, WHOLE | changes((two[0], narrow), method, rank))
    assert result.exit_code == (11 if where else 0), result.stdout
    assert not where or (result.failure["pointer"], result.failure["found"]) == (where, found)
