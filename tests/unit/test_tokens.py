"""Which tokens cover which characters, beside the plain reading of all offsets, however a tokenizer counts them."""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from typing import Any

import pytest
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors, trainers

from job.data.worker.tokens import Tokens
from job.data.worker.wire import IGNORED
from tests.smollm2 import model_dir

TEXTS = [
    "", "a", " ", "  a  b  ", "the cat sat on the mat", "línea ñandú\n\n  ütf", "🙂🙃 zażółć 漢字かな  x",
    "\t\n a\u0301e\u0308 end ", "<|im_start|>user\nhi<|im_end|>\n", "a🙂b𒀱c", "word" * 9 + " " * 7 + "!",
]  # fmt: skip


def trained(model: Any, trainer: Any, before: Any, normal: Any = None, after: Any = None) -> Tokenizer:
    tokenizer = Tokenizer(model)
    tokenizer.pre_tokenizer = before
    if normal:
        tokenizer.normalizer = normal
    if after:
        tokenizer.post_processor = after
    tokenizer.train_from_iterator(TEXTS, trainer)
    return tokenizer


def tokenizers() -> dict[str, Tokenizer]:
    byte_alphabet = pre_tokenizers.ByteLevel.alphabet()
    bpe = {"vocab_size": 300, "show_progress": False, "initial_alphabet": byte_alphabet}
    byte_level = pre_tokenizers.ByteLevel(add_prefix_space=False)
    return {
        "smollm2": Tokenizer.from_file(str(model_dir() / "tokenizer.json")),
        "bytes": trained(models.BPE(), trainers.BpeTrainer(**bpe), byte_level),
        "bytes, trimmed": trained(
            models.BPE(), trainers.BpeTrainer(**bpe), byte_level, after=processors.ByteLevel(trim_offsets=True)
        ),
        "metaspace": trained(
            models.Unigram(),
            trainers.UnigramTrainer(vocab_size=90, unk_token="<unk>", special_tokens=["<unk>"], show_progress=False),
            pre_tokenizers.Metaspace(),
        ),
        "words": trained(
            models.WordLevel(unk_token="?"),
            trainers.WordLevelTrainer(special_tokens=["?"], show_progress=False),
            pre_tokenizers.Whitespace(),
            normalizers.Sequence([normalizers.NFD(), normalizers.StripAccents()]),
        ),
    }


@pytest.mark.parametrize("name", ["smollm2", "bytes", "bytes, trimmed", "metaspace", "words"])
def test_every_span_of_every_text(name: str) -> None:
    tokenizer, uncovered = tokenizers()[name], 0
    for text in TEXTS:
        encoding = tokenizer.encode(text, add_special_tokens=False)
        tokens, ids = Tokens(encoding), encoding.ids
        ends = [end for _, end in encoding.offsets]
        starts = [min(start, before) for (start, _), before in zip(encoding.offsets, [0, *ends], strict=False)]
        uncovered += sum(encoding.char_to_token(place) is None for place in range(len(text)))
        for start in range(len(text)):
            first = bisect_right(ends, start)
            assert tokens.goes_over(start) == (first < len(starts) and starts[first] < start)
            for end in range(start + 1, len(text) + 1):
                last = bisect_left(starts, end)
                wanted = [token if first <= place < last else IGNORED for place, token in enumerate(ids)]
                assert list(tokens.labels([(start, end)])) == wanted, (text, start, end)
    assert (uncovered > 0) == (name in ("bytes, trimmed", "words")), "both ways are tried"
