"""Tokens of a text from those of its words, beside those that the tokenizer has for the whole of it."""

from __future__ import annotations

import random
from collections.abc import Callable
from functools import cache
from typing import Any

import pytest
from tokenizers import AddedToken, Regex, Tokenizer, models, normalizers, pre_tokenizers, processors, trainers

from job.data.worker.tokens import Tokens
from job.data.worker.words import MAX_WORDS, words_of
from tests.data_rows import SHARED
from tests.smollm2 import model_dir

GPT_2 = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"
LLAMA_3 = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}"
    r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
QWEN_3_5 = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?[\p{L}\p{M}]+|\p{N}"
    r"| ?[^\s\p{L}\p{M}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
GPT_4O = (
    r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+(?i:'s|'t|'re|'ve|'m|'ll|'d)?"
    r"|[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*(?i:'s|'t|'re|'ve|'m|'ll|'d)?"
    r"|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
NEMO = GPT_4O.replace("(?i:'s|'t|'re|'ve|'m|'ll|'d)?", "").replace("{1,3}", "")
ATOMS = [
    *" \n\t.,!-_/'\"", "  ", "\n\n", "\r\n", " \n", ". ", ".\n",
    "it's", "IT'S", "the", " cat", "Sat", "on", "12345", " 7",
    "²", "漢字", "🙂", "é", "e\u0301", "\u00a0", "\u2028", "\u200b", "\ufeff", "ß",
    "<|end|>", "<|user|>", "<|x y|>", "<|", "|>", "ñ ", "_\n", "x\n", "\x1c ", "\u180e ",
]  # fmt: skip


def text_of(rng: random.Random) -> str:
    return "".join(rng.choices(ATOMS, k=rng.randint(0, 40)))


def split(pattern: str) -> Any:
    return pre_tokenizers.Split(Regex(pattern), "isolated")


def trained(
    *before: Any,
    model: Any = None,
    normal: Any = None,
    trim: bool = False,
    opened: bool = False,
    added: tuple[Any, ...] = (),
) -> Tokenizer:
    """A tokenizer that has learned to merge across white space, wherever its pattern lets it."""
    tokenizer = Tokenizer(model or models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(list(before)) if len(before) > 1 else before[0]
    if normal:
        tokenizer.normalizer = normal
    if trim:
        tokenizer.post_processor = processors.ByteLevel(add_prefix_space=opened, trim_offsets=True)
    rng = random.Random(0)
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=900, show_progress=False, initial_alphabet=alphabet)
    tokenizer.train_from_iterator([text_of(rng) for _ in range(400)], trainer)
    tokenizer.add_special_tokens([AddedToken(text, normalized=False) for text in ("<|end|>", "<|user|>", "<|x y|>")])
    tokenizer.add_tokens(list(added))
    return tokenizer


BYTES = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
KINDS: dict[str, Callable[[], Tokenizer]] = {
    "smollm2": lambda: Tokenizer.from_file(str(model_dir() / "tokenizer.json")),
    "gpt-2": lambda: trained(pre_tokenizers.ByteLevel(add_prefix_space=False)),
    "gpt-2, written": lambda: trained(split(GPT_2), BYTES),
    "digits": lambda: trained(pre_tokenizers.Digits(True), pre_tokenizers.ByteLevel(add_prefix_space=False), trim=True),
    "llama-3": lambda: trained(split(LLAMA_3), BYTES, trim=True),
    "qwen": lambda: trained(
        split(LLAMA_3.replace("{1,3}", "")), BYTES, normal=normalizers.NFC(), added=("<tool>", "tool_call")
    ),
    "qwen-3.5": lambda: trained(split(QWEN_3_5), BYTES, normal=normalizers.NFC()),
    "gpt-4o": lambda: trained(split(GPT_4O), BYTES),
    "nemo": lambda: trained(split(NEMO), BYTES),
}
tokenizer_of = cache(lambda name: KINDS[name]())


def require_equal(tokenizer: Tokenizer, text: str, spans: int = 12) -> None:
    found, whole = words_of(tokenizer).tokens(text), Tokens(tokenizer.encode(text, add_special_tokens=False))  # type: ignore[union-attr]
    assert found.ids == whole.ids, ascii(text)
    rng = random.Random(len(text))
    for _ in range(spans if text else 0):
        start, end = sorted(rng.choices(range(len(text) + 1), k=2))
        assert found.labels([(start, end)]) == whole.labels([(start, end)]), (ascii(text), start, end)
        assert found.goes_over(start) == whole.goes_over(start), (ascii(text), start)


@pytest.mark.parametrize("name", KINDS)
def test_ids_and_masks_are_those_of_the_whole_text(name: str) -> None:
    rng = random.Random(1)
    for _ in range(600):
        require_equal(tokenizer_of(name), text_of(rng))


@pytest.mark.parametrize("file", ["alpaca_tiny.json", "the-verdict.txt", "reason_tool_use_demo.jsonl"])
def test_real_texts(file: str) -> None:
    text = (SHARED / file).read_text()[:40_000]
    require_equal(tokenizer_of("smollm2"), f"<|im_start|>user\n{text}<|im_end|>\n", 60)


def test_words_are_asked_for_once_and_forgotten_when_they_are_many(monkeypatch: pytest.MonkeyPatch) -> None:
    words = words_of(tokenizer_of("gpt-2"))
    assert words is not None
    words.clear()
    words.tokens("the cat sat on the mat, the cat sat" + " x" * 60)
    assert sorted(words) == [" cat", " mat,", " on", " sat", " the", " x", "the"]
    assert words.tokens("x" * 100).ids
    assert "x" * 100 not in words
    words.update({str(number): b"" for number in range(MAX_WORDS - len(words))})
    require_equal(tokenizer_of("gpt-2"), "a new word")
    assert 0 < len(words) < 10


REFUSED: dict[str, Callable[[], Tokenizer]] = {
    "merges that cross spaces": lambda: trained(BYTES),
    "a pattern that lets merges cross them": lambda: trained(split(r"\p{N}{1,3}"), BYTES),
    "a pattern that nobody has read": lambda: trained(split(r"\p{L}+ \p{L}+|\s+"), BYTES),
    "a space before whatever it encodes": lambda: trained(pre_tokenizers.ByteLevel(add_prefix_space=True)),
    "spaces as a sign of their own": lambda: trained(pre_tokenizers.Metaspace()),
    "chance": lambda: trained(pre_tokenizers.ByteLevel(add_prefix_space=False), model=models.BPE(dropout=0.5)),
    "a form that composes more": lambda: trained(split(GPT_2), BYTES, normal=normalizers.NFKC()),
    "a token that takes the space after it": lambda: trained(
        split(GPT_2), BYTES, added=(AddedToken("the", rstrip=True),)
    ),
    "offsets that are others where a text begins": lambda: trained(split(GPT_2), BYTES, trim=True, opened=True),
    "a token of whole words only": lambda: trained(split(GPT_2), BYTES, added=(AddedToken("the", single_word=True),)),
    "a token with a space in it": lambda: trained(split(GPT_2), BYTES, added=(AddedToken("the cat", normalized=True),)),
}


@pytest.mark.parametrize("why", REFUSED)
def test_other_tokenizers_encode_whole_texts(why: str) -> None:
    assert words_of(REFUSED[why]()) is None
