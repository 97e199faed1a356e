"""What is found out before the weights are paid for: padding, settings that cannot be written, vocabularies as read."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import sentencepiece
import torch
from tokenizers import AddedToken
from transformers import AutoModelForCausalLM, AutoTokenizer

from job.data.tokenizer import load_tokenizer, set_pad_token
from job.errors import GateError, InputError
from job.export.adapter import export_full
from job.export.generation import generation_settings, unwritable_settings
from job.export.tokenizer import expected_tokenizer, require_tokenizer, save_tokenizer, text_of, tokenizer_faults
from job.gguf.expected import describe_tokenizer
from job.gguf.vocabulary import Rehearsed, rehearse
from tests.tiny import small_base

CONVERSATION = [{"role": "user", "content": "say 3"}, {"role": "assistant", "content": "number 3"}] * 2
SPECIALS = {"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>"}
TEMPLATE = """{{ bos_token }}{% for m in messages -%}
{{ '[INST] ' + m.content + ' [/INST]' if m.role == 'user' else ' ' + m.content + eos_token }}{% endfor %}"""


@pytest.fixture(scope="module")
def pieces(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A SentencePiece vocabulary as Llama's first were, without a tokenizer.json, and the config of a model for it."""
    folder = tmp_path_factory.mktemp("pieces")
    words = [
        "say",
        "number",
        "one",
        "two",
        "three",
        "four",
        "five",
        "six",
        "seven",
        "eight",
        "the",
        "lamp",
        "is",
        "on",
        "and",
        "not",
        "off",
    ]
    (folder / "corpus").write_text(
        "\n".join(f"{' '.join(words[i:] + words[:i])} {i}." for i in range(len(words)) for _ in range(20))
    )
    sentencepiece.SentencePieceTrainer.train(
        input=str(folder / "corpus"), model_prefix=str(folder / "tokenizer"),
        vocab_size=340, model_type="bpe", byte_fallback=True,
        unk_id=0, bos_id=1, eos_id=2, pad_id=-1, normalization_rule_name="identity",
        remove_extra_whitespaces=False, minloglevel=2,
    )  # fmt: skip
    shape = {
        "hidden_size": 32,
        "intermediate_size": 64,
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
        "rms_norm_eps": 1e-6,
    }
    config = {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "vocab_size": 340,
        "max_position_embeddings": 128,
        **shape,
    }
    (folder / "config.json").write_text(json.dumps(config))
    for name in ("corpus", "tokenizer.vocab"):
        (folder / name).unlink()
    return folder


def model_of(pieces: Path, folder: Path, **settings: Any) -> Path:
    shutil.copytree(pieces, folder)
    config = {
        "tokenizer_class": "LlamaTokenizer",
        "add_bos_token": True,
        "chat_template": TEMPLATE,
        **SPECIALS,
        **settings,
    }
    (folder / "tokenizer_config.json").write_text(json.dumps(config))
    return folder


def prepared(model: Path, text: str = "") -> Any:
    """What of the data the tokenizer's tests look at: one row, raw text or a conversation."""
    tokenizer = load_tokenizer(model)
    set_pad_token(tokenizer, model, [])
    row = tokenizer(
        text or tokenizer.apply_chat_template(CONVERSATION, tokenize=False), add_special_tokens=False
    ).input_ids
    return SimpleNamespace(tokenizer=tokenizer, train=[{"input_ids": row}], held_out=None)


def published(model: Path, folder: Path) -> tuple[Any, Path]:
    rows = prepared(model)
    save_tokenizer(rows.tokenizer, model, folder)
    return rows, folder


@pytest.mark.parametrize("legacy", [True, False])
def test_a_sentencepiece_tokenizer_is_published_as_it_was_trained(legacy: bool, pieces: Path, tmp_path: Path) -> None:
    model = model_of(pieces, tmp_path / "model", legacy=legacy)
    rows, folder = published(model, tmp_path / "adapter")
    require_tokenizer(folder, rows)
    assert (folder / "tokenizer.model").read_bytes() == (model / "tokenizer.model").read_bytes()
    assert json.loads((folder / "tokenizer_config.json").read_text())["legacy"] is legacy
    text = rows.tokenizer.apply_chat_template(CONVERSATION, tokenize=False)
    assert text in [row.text for row in expected_tokenizer(rows).texts], "rows are compared as they were rendered"
    settings = json.loads((folder / "tokenizer_config.json").read_text())
    (folder / "tokenizer_config.json").write_text(json.dumps(settings | {"legacy": not legacy}))
    with pytest.raises(GateError, match="other ids than in training"):
        require_tokenizer(folder, rows)


def test_a_file_of_that_name_that_is_not_a_sentencepiece_model_is_not_published(tmp_path: Path) -> None:
    base = small_base(tmp_path / "base")
    (base / "tokenizer.model").write_text("IQ== 0\nIg== 1\n")  # as Llama 3 has it
    save_tokenizer(load_tokenizer(base), base, tmp_path / "adapter")
    assert not (tmp_path / "adapter" / "tokenizer.model").exists()


def test_llama_cpp_reads_after_special_tokens_as_the_legacy_setting_does(pieces: Path, tmp_path: Path) -> None:
    for legacy in (True, False):
        model = model_of(pieces, tmp_path / f"model-{legacy}", legacy=legacy)
        rows, folder = published(model, tmp_path / f"adapter-{legacy}")
        shutil.copyfile(model / "config.json", folder / "config.json")
        if legacy:
            assert rehearse(folder, tmp_path / "v.gguf", expected_tokenizer(rows)) == Rehearsed(None)
        else:
            with pytest.raises(InputError, match="other tokens than in training") as refused:
                rehearse(folder, tmp_path / "v.gguf", expected_tokenizer(rows))
            assert {fault.where for fault in refused.value.faults} == {"/export/gguf"}


@pytest.mark.parametrize("template", [TEMPLATE, None, {"default": TEMPLATE, "tool_use": "{{ tools }}"}])
def test_raw_text_publishes_the_models_own_template(template: Any, pieces: Path, tmp_path: Path) -> None:
    """Rows without a conversation use none: that is not a reason to refuse the GGUF of a model that has one."""
    named = (
        [{"name": name, "template": text} for name, text in template.items()]
        if isinstance(template, dict)
        else template
    )
    model = model_of(pieces, tmp_path / "model", legacy=True, chat_template=named)
    rows, folder = prepared(model, "the lamp is on"), tmp_path / "adapter"
    save_tokenizer(rows.tokenizer, model, folder)
    shutil.copyfile(model / "config.json", folder / "config.json")
    expected = expected_tokenizer(rows)
    assert expected.chat_template == (None if template is None else TEMPLATE)
    assert rehearse(folder, tmp_path / "v.gguf", expected) == Rehearsed(None)
    with pytest.raises(InputError, match="the chat template is not the trained one"):
        rehearse(folder, tmp_path / "v.gguf", replace(expected, chat_template="another" if template is None else None))


def test_a_vocabulary_that_llama_cpp_does_not_know_is_refused_without_weights(tmp_path: Path) -> None:
    """The bytes of `small_base` split digits as no model does."""
    base = small_base(tmp_path / "base")
    (base / "model.safetensors").unlink()
    with pytest.raises(InputError, match="does not know this model"):
        rehearse(base, tmp_path / "v.gguf", describe_tokenizer(load_tokenizer(base), []))


def test_facts_of_a_published_tokenizer_that_differ_are_named(pieces: Path, tmp_path: Path) -> None:
    rows, folder = published(model_of(pieces, tmp_path / "model", legacy=True), tmp_path / "adapter")
    settings = json.loads((folder / "tokenizer_config.json").read_text())
    (folder / "tokenizer_config.json").write_text(json.dumps(settings | {"eos_token": "<unk>"}))
    assert next(tokenizer_faults(folder, expected_tokenizer(rows))).message.endswith("eos_token_id")
    (folder / "tokenizer.json").write_text("{")
    (folder / "tokenizer.model").unlink()
    assert "cannot be opened" in next(tokenizer_faults(folder, expected_tokenizer(rows))).message


def test_a_row_that_no_text_gives_is_left_out(pieces: Path, tmp_path: Path) -> None:
    tokenizer = load_tokenizer(model_of(pieces, tmp_path / "model", legacy=True))
    whole = tokenizer("number ü", add_special_tokens=False).input_ids
    assert text_of(tokenizer, whole) == "number ü"
    assert text_of(tokenizer, whole[:-1]) is None


@pytest.mark.parametrize(
    ("added", "chosen"),
    [
        ([], "<unk>"),
        (["<|reserved_special_token_3|>"], "<|reserved_special_token_3|>"),
        (["<|reserved_special_token_3|>", "<|finetune_right_pad_id|>"], "<|finetune_right_pad_id|>"),
        (["<|image_pad|>", "<|fim_pad|>", "<|keypad|>"], "<unk>"),
        (["[PAD]"], "[PAD]"),
    ],
)
def test_padding_takes_a_token_that_says_nothing(added: list[str], chosen: str, pieces: Path, tmp_path: Path) -> None:
    model = model_of(pieces, tmp_path / "model")
    tokenizer, notes = load_tokenizer(model), []
    tokenizer.add_special_tokens({"additional_special_tokens": added})
    config = json.loads((model / "config.json").read_text())
    (model / "config.json").write_text(json.dumps(config | {"vocab_size": len(tokenizer)}))
    set_pad_token(tokenizer, model, notes)
    assert tokenizer.pad_token == chosen
    assert len(notes) == 1
    set_pad_token(tokenizer, model, notes)
    assert len(notes) == 1, "one that it has stays"


def test_padding_needs_a_row_in_the_embedding(pieces: Path, tmp_path: Path) -> None:
    model = model_of(pieces, tmp_path / "model")
    tokenizer = load_tokenizer(model)
    tokenizer.unk_token = None
    tokenizer.add_tokens([AddedToken("<pad>", special=True)])  # beyond the 340 rows
    set_pad_token(tokenizer, model, [])
    assert tokenizer.pad_token == tokenizer.eos_token


ODD = {"do_sample": False, "temperature": 0.9, "top_p": 0.6}


def test_settings_that_transformers_will_not_write_do_not_cost_the_weights(tmp_path: Path) -> None:
    """Beside do_sample false: in generation_config.json, as Llama 2 and Vicuna; in config.json, as older models."""
    base = small_base(tmp_path / "base")
    for name, odd in (("generation_config.json", ODD), ("config.json", {"repetition_penalty": 1.2, "max_length": 50})):
        path = base / name
        path.write_text(json.dumps(json.loads(path.read_text()) | odd))
    assert "temperature" in unwritable_settings(base, tmp_path)
    model = AutoModelForCausalLM.from_pretrained(base)
    with pytest.raises(ValueError, match=r"[Gg]eneration"):
        model.save_pretrained(tmp_path / "refused")
    fetched: Any = SimpleNamespace(path=base)
    files = export_full(model, AutoTokenizer.from_pretrained(base), [2], fetched, tmp_path / "merged")
    assert json.loads(files["merged/generation_config.json"].read_text()).items() >= ODD.items()
    (base / "generation_config.json").unlink()
    assert generation_settings(base, {"eos_token_id": 7})["repetition_penalty"] == 1.2
    again = AutoModelForCausalLM.from_pretrained(tmp_path / "merged")
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), again.parameters(), strict=True))
    assert model.generation_config.temperature == 0.9, "the model is as it was"


def test_settings_that_nobody_can_read_are_refused(tmp_path: Path) -> None:
    (tmp_path / "generation_config.json").write_text("[1]")
    with pytest.raises(InputError, match="cannot be read"):
        unwritable_settings(tmp_path, tmp_path)
    assert unwritable_settings(tmp_path / "none", tmp_path) == ""
