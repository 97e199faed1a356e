"""Comparison of merge and adapter, the reference that other exports are held against, imatrix and 4-bit export."""

from __future__ import annotations

import ctypes
import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy
import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from job.errors import GateError
from job.export.compare import CompareReport, CompareRequest, ReopenedForm, handle
from job.export.four_bit import quantise_merged
from job.export.gguf.imatrix import write_imatrix
from job.export.logits import batches, compare, continue_greedily, open_adapted, open_model, perplexity
from job.export.merge.write import merge_adapter
from job.export.reference_logits import Measure, write_reference
from job.gguf.quality import read_reference
from job.gguf.quantise import load_imatrix
from job.host.child import run_child
from tests.forking import environment, run_forked
from tests.tiny import random_adapter, wide_dir

ROWS = [list(range(100, 140)), [1, 520, 198, 28120, 30, 2], list(range(7000, 7090, 3))]
IDS = [token for row in ROWS for token in row]
LEARNED = [30, 31, 32, 43, 44, 60, 74]  # 39 and 45 would be the last tokens of their rows, which nothing follows
PROMPT = [1, 4093, 198, 504]
MEASURE = Measure(ROWS, LEARNED, PROMPT, [PROMPT, PROMPT[:2]], pad=2, stop_token_ids=[2], max_new_tokens=8)


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with `adapter` of the wide model, and their `merged`."""
    folder = tmp_path_factory.mktemp("trained")
    random_adapter(wide_dir(), folder / "adapter")
    merge_adapter(wide_dir(), folder / "adapter", folder / "merged", [2], "cpu")
    return folder


@pytest.fixture
def request_of(trained: Path, tmp_path: Path) -> CompareRequest:
    """With what adapter and base say written beside it."""
    against = tmp_path / "against"
    write_reference(open_adapted(wide_dir(), trained / "adapter", torch.float32, "cpu"), MEASURE, against)
    return CompareRequest(
        MEASURE, merged=trained / "merged", forms=(), against=against, trained=against, calibration=ROWS, device="cpu",
        reference=tmp_path / "reference.safetensors", imatrix=None, max_logit_ratio=0.02, max_kl=0.01,
    )  # fmt: skip


def packed(folder: Path, max_kl: float = 1.0) -> tuple[ReopenedForm, ...]:
    return (ReopenedForm("merged_4bit", folder, "job.export.four_bit", max_kl),)


def plain_logits(folder: Path, row: list[int]) -> Any:
    with torch.no_grad():
        return open_model(folder, torch.float32, "cpu")(torch.tensor([row])).logits[0]


def test_the_merge_passes_and_the_reference_is_its_logits(
    request_of: CompareRequest, trained: Path, forked_children: None, tmp_path: Path
) -> None:
    asked = replace(request_of, imatrix=tmp_path / "imatrix.gguf")
    found = run_child("job.export.compare", asked, tmp_path / "child", "comparison", answer=CompareReport)
    comparison = found.merged.comparison
    assert 0 < comparison.kl < 1e-3
    assert 0 < comparison.max_logit_difference <= 0.02 * comparison.largest_logit
    assert comparison.same_top_token > 0.95
    assert found.forms == {}
    with safe_open(request_of.reference, "pt") as file:
        held = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - no dict
        assert file.metadata() == {"stopped": "true" if found.stopped else "false", "dtype": "float32"}
    assert held["input_ids"].tolist() == IDS
    assert held["row_lengths"].tolist() == list(map(len, ROWS))
    assert held["prompt_ids"].tolist() == PROMPT
    assert held["learned"].tolist() == LEARNED
    assert found.stopped == (int(held["answer_ids"][-1]) == 2)
    assert {held[name].dtype for name in ("input_ids", "row_lengths", "learned", "prompt_ids", "answer_ids")} == {
        torch.int32
    }
    start, losses = 0, []
    for row in ROWS:
        direct = plain_logits(trained / "merged", row)
        assert torch.allclose(held["logits"][start : start + len(row)], direct, atol=1e-3)
        losses.append(torch.nn.functional.cross_entropy(direct[:-1], torch.tensor(row[1:]), reduction="none"))
        start += len(row)
    assert found.merged.perplexity == pytest.approx(float(torch.cat(losses).mean().exp()), rel=1e-4)
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        "against",
        "child",
        "imatrix.gguf",
        "reference.safetensors",
    ]
    assert (tmp_path / "imatrix.gguf").stat().st_size > 0


def test_where_no_answer_is_due_none_is_generated_and_all_else_is_the_same(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = open_model(wide_dir(), torch.float32, "cpu")
    whole, part = tmp_path / "whole", tmp_path / "part"
    write_reference(model, MEASURE, whole)
    monkeypatch.setattr(model, "generate", None)
    monkeypatch.setattr("job.export.reference_logits.continue_greedily", None)
    assert write_reference(model, MEASURE, part, answered=False)[1] is False
    asked, unasked = read_reference(whole), read_reference(part)
    assert (unasked.answer, unasked.stopped, unasked.answer_limit) == ([], False, 0)
    assert (unasked.rows, unasked.learned, unasked.prompt) == (asked.rows, asked.learned, asked.prompt)
    assert torch.equal(unasked.logits[:], asked.logits[:])


def test_an_unmerged_layer_is_caught(request_of: CompareRequest, trained: Path, tmp_path: Path) -> None:
    merged = shutil.copytree(trained / "merged", tmp_path / "merged")
    held, base = load_file(merged / "model.safetensors"), load_file(wide_dir() / "model.safetensors")
    unmerged = {name: tensor for name, tensor in base.items() if ".layers.2." in name}
    save_file(held | unmerged, merged / "model.safetensors", {"format": "pt"})
    with pytest.raises(GateError) as error:
        handle(replace(request_of, merged=merged))
    first, second = error.value.faults
    assert first.where == second.where == "merged"
    assert float(first.found) > 0.01
    assert (first.expected, second.expected) == ("at most 0.01", "at most 0.02")
    assert not list(tmp_path.glob("reference*"))


def test_weights_that_are_missing_are_not_made_up(request_of: CompareRequest, trained: Path, tmp_path: Path) -> None:
    merged = shutil.copytree(trained / "merged", tmp_path / "merged")
    held = load_file(merged / "model.safetensors")
    del held["model.norm.weight"]
    save_file(held, merged / "model.safetensors", {"format": "pt"})
    with pytest.raises(GateError, match=r"missing_keys.*model\.norm\.weight"):
        handle(replace(request_of, merged=merged))


def test_numbers_that_are_none_are_caught(request_of: CompareRequest, trained: Path, tmp_path: Path) -> None:
    merged = shutil.copytree(trained / "merged", tmp_path / "merged")
    held = load_file(merged / "model.safetensors")
    held["model.norm.weight"][3] = float("nan")
    save_file(held, merged / "model.safetensors", {"format": "pt"})
    with pytest.raises(GateError, match="nan"):
        handle(replace(request_of, merged=merged))


def test_what_was_measured_is_what_torch_says(request_of: CompareRequest, trained: Path, tmp_path: Path) -> None:
    """Loss on the learned tokens, divergence from the trained model on them, and answers, each computed again."""
    from transformers import AutoModelForCausalLM

    write_reference(open_model(wide_dir(), torch.float32, "cpu"), MEASURE, tmp_path / "base")
    found = handle(replace(request_of, trained=tmp_path / "base")).merged
    model = AutoModelForCausalLM.from_pretrained(trained / "merged", dtype=torch.float32).eval()
    given, wanted = ([], [])
    for row in ROWS:
        given.append(model(torch.tensor([row])).logits[0].detach().log_softmax(-1))
        wanted.append(plain_logits(wide_dir(), row).log_softmax(-1))
    given, wanted = torch.cat(given)[LEARNED], torch.cat(wanted)[LEARNED]
    following = torch.tensor([IDS[at + 1] for at in LEARNED])
    assert found.measured.loss == pytest.approx(float(torch.nn.functional.nll_loss(given, following)), rel=1e-4)
    assert found.measured.kl == pytest.approx(float((wanted.exp() * (wanted - given)).sum(-1).mean()), rel=1e-3)
    assert found.measured.same_top_token == pytest.approx(float((given.argmax(-1) == wanted.argmax(-1)).float().mean()))
    assert found.measured.kl > 1e-4
    for prompt, answer in zip(MEASURE.questions, found.answers, strict=True):
        said = model.generate(
            torch.tensor([prompt]), do_sample=False, max_new_tokens=8, eos_token_id=2, pad_token_id=2
        )[0, len(prompt) :]
        assert answer[: len(said)] == said.tolist()


def test_stored_weights_are_measured_and_held_against_nothing(request_of: CompareRequest) -> None:
    found = handle(replace(request_of, against=None)).merged
    assert found.comparison is None
    assert found.measured.kl < 1e-3


# -------------------------------------------------------------------------------------------------------- 4-bit


def test_the_4_bit_export_is_4_bit_and_near(request_of: CompareRequest, trained: Path, tmp_path: Path) -> None:
    quantise_merged(trained / "merged", tmp_path / "merged_4bit", "cpu")
    whole = handle(replace(request_of, forms=packed(tmp_path / "merged_4bit")))
    found = whole.forms["merged_4bit"]
    assert 1e-3 < found.comparison.kl < 1.0
    assert found.perplexity > 0
    assert found.measured.kl > 10 * whole.merged.measured.kl
    assert len(found.answers) == 2
    config = json.loads((tmp_path / "merged_4bit/config.json").read_text())["quantization_config"]
    assert (config["bnb_4bit_quant_type"], config["bnb_4bit_use_double_quant"]) == ("nf4", True)
    for name in ("generation_config.json", "tokenizer.json", "tokenizer_config.json", "chat_template.jinja"):
        assert (tmp_path / "merged_4bit" / name).read_bytes() == (trained / "merged" / name).read_bytes()
    assert {path.stat().st_mode & 0o777 for path in (tmp_path / "merged_4bit").iterdir()} == {0o644}
    with pytest.raises(GateError, match=r"merged_4bit.*KL divergence"):
        handle(replace(request_of, forms=packed(tmp_path / "merged_4bit", max_kl=1e-4)))


def test_16_bit_weights_are_not_a_4_bit_export(request_of: CompareRequest, trained: Path) -> None:
    with pytest.raises(GateError, match=r"not in 4-bit.*21 layers of 22 are not"):
        handle(replace(request_of, forms=packed(trained / "merged")))


# ------------------------------------------------------------------------------------------------------ figures


def test_compare_by_hand() -> None:
    a = numpy.array([[0.0, 0.0], [2.0, 0.0]], numpy.float32)
    b = numpy.array([[0.0, 1.0], [2.0, 0.0]], numpy.float32)
    found = compare(a, b)
    soft = 1 / (1 + numpy.e)
    assert found.max_logit_difference == 1.0
    assert found.largest_logit == 2.0
    assert found.same_top_token == 0.5
    assert found.kl == pytest.approx((0.5 * numpy.log(0.5 / soft) + 0.5 * numpy.log(0.5 / (1 - soft))) / 2, rel=1e-6)


def test_perplexity_of_even_odds_is_the_vocabulary() -> None:
    assert perplexity(numpy.zeros((7, 11), numpy.float32), [[1, 2, 3], [4, 5, 6, 7]]) == pytest.approx(11)


def test_batches_hold_every_row_once_within_their_size() -> None:
    rows = [[1] * length for length in (9, 1, 30, 4, 4, 7)]
    seen = []
    for numbers, ids, mask in batches(rows, 16):
        assert ids.numel() <= 16 or len(numbers) == 1
        assert mask.sum(1).tolist() == [len(rows[i]) for i in numbers]
        seen += numbers
    assert sorted(seen) == list(range(6))


def test_a_trained_model_stops_and_penalties_of_its_config_do_not_count() -> None:
    model = open_model(wide_dir(), torch.float32, "cpu")
    model.generation_config.repetition_penalty = 5.0
    prompt = [1, 4093, 198]
    answer, stopped = continue_greedily(model, prompt, [2], 64)
    with torch.no_grad():
        following = model(torch.tensor([prompt + answer])).logits[0].argmax(-1).tolist()
    assert answer == following[len(prompt) - 1 : -1]
    assert stopped == (answer[-1] == 2)
    assert continue_greedily(model, prompt, [answer[0]], 64) == (answer[:1], True)


# ------------------------------------------------------------------------------------------------------ imatrix


def first_inputs(folder: Path) -> Any:
    """Mean squared inputs of the first layer's attention: normalised embeddings, by hand."""
    held = load_file(folder / "model.safetensors")
    states = held["model.embed_tokens.weight"].float().numpy()[IDS]
    epsilon = json.loads((folder / "config.json").read_text())["rms_norm_eps"]
    states = (
        states
        / numpy.sqrt((states**2).mean(1, keepdims=True) + epsilon)
        * held["model.layers.0.input_layernorm.weight"].float().numpy()
    )
    return (states**2).mean(0)


def test_imatrix_is_the_mean_square_of_what_a_layer_reads(tmp_path: Path) -> None:
    folder, path = wide_dir(), tmp_path / "imatrix.gguf"
    assert write_imatrix(open_model(folder, torch.float32, "cpu"), folder, ROWS, path) == 21  # 7 in each of 3 layers
    found = load_imatrix(path)
    expected = first_inputs(folder)
    for name in ("blk.0.attn_q.weight", "blk.0.attn_k.weight", "blk.0.attn_v.weight"):
        assert found[name].dtype == numpy.float32
        numpy.testing.assert_allclose(found[name], expected, rtol=1e-4)
    assert set(found) == {
        f"blk.{i}.{part}.weight"
        for i in range(3)
        for part in ("attn_q", "attn_k", "attn_v", "attn_output", "ffn_gate", "ffn_up", "ffn_down")
    }
    assert {name: data.shape for name, data in found.items() if name.startswith("blk.2.ffn")} == {
        "blk.2.ffn_gate.weight": (256,),
        "blk.2.ffn_up.weight": (256,),
        "blk.2.ffn_down.weight": (768,),
    }


class OpenParameters(ctypes.Structure):
    _fields_ = (("no_alloc", ctypes.c_bool), ("context", ctypes.c_void_p))


def test_imatrix_is_a_file_that_llama_cpp_reads(tmp_path: Path) -> None:
    import llama_cpp
    from gguf import GGUFReader

    path = tmp_path / "imatrix.gguf"
    write_imatrix(open_model(wide_dir(), torch.float32, "cpu"), wide_dir(), ROWS, path)
    reader = GGUFReader(path)
    assert reader.fields["general.type"].contents() == "imatrix"
    assert reader.fields["imatrix.chunk_count"].contents() == 3
    assert reader.fields["imatrix.chunk_size"].contents() == max(map(len, ROWS))
    assert len(reader.fields["imatrix.datasets"].contents()) == 1
    tensors = {tensor.name: tensor.data for tensor in reader.tensors}
    assert float(tensors["blk.0.attn_q.weight.counts"][0, 0]) == sum(map(len, ROWS))
    native = ctypes.CDLL(str(Path(llama_cpp.__file__).parent / "lib/libggml-base.so"))
    native.gguf_init_from_file.restype = ctypes.c_void_p
    native.gguf_init_from_file.argtypes = [ctypes.c_char_p, OpenParameters]
    native.gguf_get_n_tensors.argtypes = [ctypes.c_void_p]
    opened = native.gguf_init_from_file(str(path).encode(), OpenParameters(True, None))
    assert opened
    assert native.gguf_get_n_tensors(opened) == 42


def test_activations_that_are_not_numbers_are_caught(tmp_path: Path) -> None:
    model = open_model(wide_dir(), torch.float32, "cpu")
    model.model.layers[1].input_layernorm.weight.data[0] = float("inf")
    with pytest.raises(GateError, match="not finite numbers"):
        write_imatrix(model, wide_dir(), ROWS, tmp_path / "imatrix.gguf")


# ------------------------------------------------------------------------------------------------------ memory


def test_answering_uses_its_memory_again(tmp_path: Path) -> None:
    """Fetched anew for each token it takes twice the time; pages are counted, for a time says more of the machine."""
    code, said, complaint = run_forked("tests.answering:main", [], tmp_path, environment(tmp_path), 120)
    assert code == 0, complaint
    pages = json.loads(said.splitlines()[-1])
    assert pages["measured"] < pages["plain"] / 2, pages
