"""What a GGUF's tokenizer and template must equal: taken from the trained tokenizer, in the job's own process."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

# Where tokenizers differ when a pre-tokenizer or a decoder is not the one of the training.
SAMPLES = (
    "In 1984, 365 days cost 1,234.56 euros; that's 12% more than it's worth, isn't it?",
    "Grüße aus Zürich, naïve café, Ελλάδα, Москва, 東京, 서울, 🙂👍🏽",
    "def area(r):\n    return 3.14159 * r ** 2\n\n\tprint(area(10))  # two  spaces\n",
)


@dataclass(frozen=True)
class Tokenised:
    """A text, its ids, and what these become again."""

    text: str
    ids: list[int]
    decoded: str


@dataclass(frozen=True)
class Expected:
    """Size of the vocabulary, special tokens, template, whether texts open with the BOS token, and texts to try."""

    tokens: int
    bos_token_id: int | None
    eos_token_id: int | None
    pad_token_id: int | None
    adds_bos: bool
    chat_template: str | None
    texts: list[Tokenised]


def describe_tokenizer(tokenizer: Any, texts: list[str]) -> Expected:
    """The tokenizer's facts; `tokenizer` is a fast one of transformers, `texts` are rendered rows.

    Its chat template is the one that is published: also where the rows are raw text, which use none.
    """
    template = tokenizer.chat_template
    first = tokenizer("a").input_ids[:1]
    return Expected(
        tokens=len(tokenizer),
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
        adds_bos=bool(first) and first[0] == tokenizer.bos_token_id,
        chat_template=template.get("default") if isinstance(template, dict) else template,
        texts=[_tokenised(tokenizer, text) for text in (*SAMPLES, *texts)],
    )


def _tokenised(tokenizer: Any, text: str) -> Tokenised:
    ids = tokenizer(text, add_special_tokens=False).input_ids
    return Tokenised(text, ids, tokenizer.decode(ids, skip_special_tokens=False, clean_up_tokenization_spaces=False))
