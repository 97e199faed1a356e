"""What a GGUF's tokenizer and template must equal: taken from the trained tokenizer, in the job's own process."""

from __future__ import annotations

from typing import Any

# Where tokenizers differ when a pre-tokenizer or a decoder is not the one of the training.
SAMPLES = (
    "In 1984, 365 days cost 1,234.56 euros; that's 12% more than it's worth, isn't it?",
    "Grüße aus Zürich, naïve café, Ελλάδα, Москва, 東京, 서울, 🙂👍🏽",
    "def area(r):\n    return 3.14159 * r ** 2\n\n\tprint(area(10))  # two  spaces\n",
)


def describe_tokenizer(tokenizer: Any, texts: list[str]) -> dict[str, Any]:
    """The tokenizer's facts for `check`, as JSON; `tokenizer` is a fast one of transformers, `texts` are rendered
    rows.

    Its chat template is the one that is published: also where the rows are raw text, which use none.
    """
    template = tokenizer.chat_template
    first = tokenizer("a").input_ids[:1]
    return {
        "tokens": len(tokenizer),
        "bos_token_id": tokenizer.bos_token_id,
        "eos_token_id": tokenizer.eos_token_id,
        "pad_token_id": tokenizer.pad_token_id,
        "adds_bos": bool(first) and first[0] == tokenizer.bos_token_id,
        "chat_template": template.get("default") if isinstance(template, dict) else template,
        "texts": [_tokenised(tokenizer, text) for text in (*SAMPLES, *texts)],
    }


def _tokenised(tokenizer: Any, text: str) -> dict[str, Any]:
    ids = tokenizer(text, add_special_tokens=False).input_ids
    decoded = tokenizer.decode(ids, skip_special_tokens=False, clean_up_tokenization_spaces=False)
    return {"text": text, "ids": ids, "decoded": decoded}
