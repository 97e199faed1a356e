"""Tokenizers as transformers opens them, without torch: it takes seconds to import, and a laptop may not have it."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager

QUIET = {"HF_HUB_DISABLE_PROGRESS_BARS": "1", "TRANSFORMERS_VERBOSITY": "error", "TOKENIZERS_PARALLELISM": "false"}


@contextmanager
def without_torch(alone: bool) -> Iterator[None]:
    """transformers looks once whether there is torch, and its tokenizers do without: that happens when the block ends.
    Only for a process that is `alone` with this, for it is not asked again.
    """
    for name, value in QUIET.items():
        os.environ.setdefault(name, value)
    hidden = alone and not {"torch", "transformers"} & sys.modules.keys()
    if hidden:
        sys.modules["torch"] = None  # type: ignore[assignment]
    try:
        yield
        from transformers.models.auto import tokenization_auto  # noqa: F401
    finally:
        if hidden:
            del sys.modules["torch"]
