"""A tokenizer whose padding cannot be taken for anything else.

Unsloth's GRPO tells padding by its id, in prompts and in answers: where a model is padded with what ends its turns, as
many are, it would take the ends out of every prompt, and learn no end of an answer.
"""

from __future__ import annotations

from collections.abc import Collection
from copy import deepcopy
from typing import Any

from job.errors import InputError


def padded_apart(tokenizer: Any, used: Collection[int]) -> Any:
    """`tokenizer`, or a copy that pads with another special token, none of the ids that are `used`.

    Raises `InputError` where every special token is.
    """
    added = (number for number, token in tokenizer.added_tokens_decoder.items() if token.special)
    known = [tokenizer.pad_token_id, *sorted({*added, *tokenizer.all_special_ids}, reverse=True)]
    free = next((number for number in known if number not in used), None)
    if free is None:
        raise InputError(
            "this engine needs a padding token that no prompt has and that ends no answer",
            where="/model/backend",
            found=f"a tokenizer whose {len(set(known))} special tokens are all used",
            expected='"peft"',
        )
    if free == tokenizer.pad_token_id:
        return tokenizer
    apart = deepcopy(tokenizer)
    apart.pad_token = tokenizer.convert_ids_to_tokens(free)
    return apart
