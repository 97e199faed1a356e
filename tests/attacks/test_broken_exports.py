"""Exports that look right to whoever merely opens them: each is caught, with its key, the figure and the limit."""

from __future__ import annotations

import json
import os
import shutil
from dataclasses import dataclass
from pathlib import Path

import pytest

from job.errors import GateError, InputError
from job.gguf.check import check
from job.gguf.convert import convert
from job.gguf.expected import Expected
from job.gguf.header import MAGIC, read_header
from job.gguf.quantise import quantise
from job.gguf.split import split
from job.gguf.types import TYPES
from job.gguf.worker import WORKER, Check, GgufRequest, Rehearse, try_beforehand
from job.host.child import run_child
from tests.ggufs import against, changed_folder, describe, edit_json, edit_number, edit_text, write_reference
from tests.tiny import wide_dir

KEY = "gguf/model-Q8_0.gguf"
LIMITS = {"max_kl": TYPES["q8_0"].max_kl, "max_perplexity_rise": TYPES["q8_0"].max_perplexity_rise}


@dataclass(frozen=True)
class Good:
    """A good export: its model's folder, the 16-bit GGUF, the q8_0, and what is known of the trained model."""

    model: Path
    sixteen: Path
    quant: Path
    reference: Path
    expected: Expected


@pytest.fixture(scope="module")
def good(tmp_path_factory: pytest.TempPathFactory) -> Good:
    folder = tmp_path_factory.mktemp("good")
    model = wide_dir()
    convert(model, folder / "bf16.gguf", "bf16", "wide", 1)
    quantise(folder / "bf16.gguf", folder / "q8_0.gguf", "q8_0", None, 1)
    return Good(
        model,
        folder / "bf16.gguf",
        folder / "q8_0.gguf",
        write_reference(model, folder / "reference", 4),
        describe(model),
    )


def opens(path: Path) -> bool:
    """The naive acceptance: llama.cpp loads the file and evaluates a token."""
    from llama_cpp import llama_cpp as native

    handle = native.llama_model_load_from_file(str(path).encode(), native.llama_model_default_params())
    if not handle:
        return False
    settings = native.llama_context_default_params()
    settings.n_ctx = 64
    context = native.llama_init_from_model(handle, settings)
    batch = native.llama_batch_get_one((native.llama_token * 1)(1), 1)
    code = native.llama_decode(context, batch)
    native.llama_free(context)
    native.llama_model_free(handle)
    return code == 0


def requantised(good: Good, folder: Path, change: object) -> Path:
    """The whole way from a changed model's folder to a q8_0."""
    model = changed_folder(good.model, folder / "model", change)  # type: ignore[arg-type]
    convert(model, folder / "bf16.gguf", "bf16", "wide", 1)
    quantise(folder / "bf16.gguf", folder / "q8_0.gguf", "q8_0", None, 1)
    return folder / "q8_0.gguf"


def caught(good: Good, file: Path, type_name: str = "q8_0", source: Path | None = None) -> dict[str, tuple[str, str]]:
    """The faults by message: (found, expected); every one names the artefact."""
    with pytest.raises(GateError) as failure:
        check(file, KEY, type_name, source or good.sixteen, good.expected, against(good.reference, LIMITS))
    assert failure.value.exit_code == 14
    assert all(fault.where == KEY for fault in failure.value.faults)
    return {fault.message: (fault.found, fault.expected) for fault in failure.value.faults}


def test_the_good_export_is_accepted(good: Good) -> None:
    quality = check(good.quant, KEY, "q8_0", good.sixteen, good.expected, against(good.reference, LIMITS)).quality
    assert quality.kl < 0.01
    assert quality.same_top_token > 0.9


# ------------------------------------------------------------------------------------------------------ tokenizer


def test_another_way_of_cutting_texts_into_words_is_caught(good: Good, tmp_path: Path) -> None:
    broken = edit_text(good.quant, tmp_path / "q8_0.gguf", "smollm", "falcon")
    assert opens(broken)
    faults = caught(good, broken)
    message = next(message for message in faults if message.endswith("texts become other tokens than in training"))
    found, wanted = faults[message]
    assert found.startswith("text 0 from token ")
    assert wanted.startswith("[")


def test_a_vocabulary_with_two_tokens_exchanged_is_caught(good: Good, tmp_path: Path) -> None:
    def exchanged(folder: Path) -> None:
        document = json.loads((folder / "tokenizer.json").read_text())
        vocabulary = document["model"]["vocab"]
        vocabulary["Ġthe"], vocabulary["Ġan"] = vocabulary["Ġan"], vocabulary["Ġthe"]
        (folder / "tokenizer.json").write_text(json.dumps(document))

    broken = requantised(good, tmp_path, exchanged)
    assert opens(broken)
    assert any(message.endswith("become another text than in training") for message in caught(good, broken))


def test_a_tokenizer_that_kills_llama_cpp_is_caught(
    good: Good, forked_children: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What transformers derives from a GGUF: converted as if it were SentencePiece, and llama.cpp crashes on the file.

    At once: no debugger is called, where there is one, which would read every library for half a minute.
    """
    (tmp_path / "gdb").write_text(f"#!/bin/sh\ntouch {tmp_path}/called\n")
    (tmp_path / "gdb").chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")

    def sentencepiece_like(folder: Path) -> None:
        document = json.loads((folder / "tokenizer.json").read_text())
        document["model"]["byte_fallback"] = True
        document["decoder"] = {"type": "Sequence", "decoders": [{"type": "ByteFallback"}, {"type": "Fuse"}]}
        (folder / "tokenizer.json").write_text(json.dumps(document))

    model = changed_folder(good.model, tmp_path / "model", sentencepiece_like)
    convert(model, tmp_path / "bf16.gguf", "bf16", "wide", 1)
    asked = Check(tmp_path / "bf16.gguf", KEY, "bf16", None, good.expected, against(good.reference, LIMITS))
    with pytest.raises(GateError, match=f"{KEY}: native code crashed .found SIG(SEGV|ABRT)"):
        run_child(WORKER, GgufRequest((asked,)), tmp_path / "child", KEY)
    with pytest.raises(
        InputError, match=r"native code crashed .found SIG(SEGV|ABRT)"
    ):  # it was 14 before the training, too
        try_beforehand(
            Rehearse(model, tmp_path / "vocabulary.gguf", good.expected), tmp_path / "child", "the vocabulary"
        )
    assert not (tmp_path / "called").exists()


# --------------------------------------------------------------------------------------------- template and EOS


def test_another_chat_template_is_caught(good: Good, tmp_path: Path) -> None:
    template = good.expected.chat_template
    broken = edit_text(good.quant, tmp_path / "q8_0.gguf", template, template.replace("assistant", "Assistant"))
    assert opens(broken)
    found, wanted = caught(good, broken)["the chat template is not the trained one"]
    size = len(template.encode())
    assert found.startswith(f"{size} bytes, other from character {template.index('assistant')}: 'Assistant")
    assert wanted == f"{size} bytes, the same"


def test_a_template_that_was_not_carried_over_is_caught(good: Good, tmp_path: Path) -> None:
    broken = requantised(good, tmp_path, lambda folder: (folder / "chat_template.jinja").unlink())
    assert opens(broken)
    assert caught(good, broken)["the chat template is not the trained one"][0] == "none"


def test_another_end_token_is_caught(good: Good, tmp_path: Path) -> None:
    broken = requantised(
        good, tmp_path, lambda folder: edit_json(folder / "tokenizer_config.json", eos_token="<|endoftext|>")
    )
    assert opens(broken)
    assert caught(good, broken)["eos_token_id is not the trained tokenizer's"] == ("0", "2")


# ------------------------------------------------------------------------------------------------------ quant type


def test_another_type_under_this_name_is_caught(good: Good, tmp_path: Path) -> None:
    other = tmp_path / "q8_0.gguf"
    quantise(good.sixteen, other, "q4_0", None, 1)
    assert opens(other)
    assert caught(good, other)["the file's type is not the one in its name"] == ("general.file_type 2", "7 (Q8_0)")


def test_another_type_that_claims_to_be_this_one_is_caught(good: Good, tmp_path: Path) -> None:
    quantise(good.sixteen, tmp_path / "other.gguf", "q4_0", None, 1)
    liar = edit_number(tmp_path / "other.gguf", tmp_path / "q8_0.gguf", "general.file_type", 7)
    assert opens(liar)
    tensors = len(read_header(liar, KEY).tensors)
    faults = caught(good, liar)
    message = next(message for message in faults if message.endswith("not of the type that Q8_0 gives them"))
    assert message.split()[2] == str(tensors)
    assert faults[message][1] == "Q8_0, Q8_0, Q8_0"


def test_a_16_bit_file_of_the_other_kind_is_caught(good: Good, tmp_path: Path) -> None:
    quantise(good.sixteen, tmp_path / "f16.gguf", "f16", None, 1)
    liar = edit_number(tmp_path / "f16.gguf", tmp_path / "bf16.gguf", "general.file_type", 32)
    assert opens(liar)
    with pytest.raises(GateError, match=r"the bulk of the weights is of another type \(found F16\); expected BF16"):
        check(liar, KEY, "bf16", None, good.expected, against(good.reference, LIMITS))


# ---------------------------------------------------------------------------------------------------- lost bytes


def test_a_truncated_file_is_caught(good: Good, tmp_path: Path) -> None:
    short = tmp_path / "q8_0.gguf"
    shutil.copyfile(good.quant, short)
    whole = short.stat().st_size
    os.truncate(short, whole - 1000)
    assert short.read_bytes()[:4] == MAGIC
    assert caught(good, short)["the GGUF file is cut short"] == (f"{whole - 1000} bytes", f"{whole} bytes")


def test_a_file_cut_inside_its_header_is_caught(good: Good, tmp_path: Path) -> None:
    short = tmp_path / "q8_0.gguf"
    short.write_bytes(good.quant.read_bytes()[:100_000])
    assert short.read_bytes()[:4] == MAGIC
    assert "the GGUF header cannot be read" in caught(good, short)


def test_a_tail_of_zeros_is_caught(good: Good, tmp_path: Path) -> None:
    """What a full disk or a lost write leaves: the right length, and nothing in it."""
    hollow = tmp_path / "q8_0.gguf"
    shutil.copyfile(good.quant, hollow)
    whole = hollow.stat().st_size
    os.truncate(hollow, whole * 3 // 4)
    os.truncate(hollow, whole)
    assert opens(hollow)
    faults = caught(good, hollow)
    found, wanted = faults["it strays too far from the 16-bit model"]
    assert float(found.split()[1]) > LIMITS["max_kl"]
    assert wanted == f"at most {LIMITS['max_kl']:g}"


def test_a_truncated_shard_is_caught(good: Good, tmp_path: Path) -> None:
    shutil.copyfile(good.quant, tmp_path / "q8_0.gguf")
    files = [tmp_path / name for name in split(tmp_path / "q8_0.gguf", 5_000_000).files]
    assert len(files) > 2
    check(files[0], KEY, "q8_0", good.sixteen, good.expected, against(good.reference, LIMITS))
    whole = files[1].stat().st_size
    os.truncate(files[1], whole - 32)
    with pytest.raises(GateError, match=f"gguf/{files[1].name}: the GGUF file is cut short .found {whole - 32} bytes"):
        check(files[0], KEY, "q8_0", good.sixteen, good.expected, against(good.reference, LIMITS))
    files[1].unlink()
    with pytest.raises(GateError, match=f"files of this model are missing .found {files[1].name}"):
        check(files[0], KEY, "q8_0", good.sixteen, good.expected, against(good.reference, LIMITS))
