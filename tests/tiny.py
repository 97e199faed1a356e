"""A Llama so small that a whole job on it takes seconds: random weights, SmolLM2's tokenizer.

python -m tests.tiny         prints its folder
"""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

from tests.smollm2 import CACHE, model_dir

SEED = 7
HIDDEN = 128  # bitsandbytes packs CPU weights in rows of 64 and more
WEIGHT_SPREAD = 0.3  # wide enough for the untrained model to have opinions: its loss differs between rows


def tiny_dir() -> Path:
    """The folder, made on first use; absent or whole."""
    return _made("tiny-llama", lambda model: None)


def broken_tiny_dir() -> Path:
    """The same with one weight that is not a number."""

    def spoil(model: Any) -> None:
        model.model.layers[0].mlp.up_proj.weight.data[0, 0] = float("nan")

    return _made("tiny-llama-nan", spoil)


def _made(name: str, change: Callable[[Any], None]) -> Path:
    target = CACHE / name
    if not (target / "config.json").is_file():
        tokenizer_from = model_dir()
        scratch = Path(tempfile.mkdtemp(dir=CACHE))
        try:
            build(scratch, tokenizer_from, change)
            scratch.chmod(0o755)
            os.rename(scratch, target)
        except FileExistsError:
            shutil.rmtree(scratch)
    return target


def build(folder: Path, tokenizer_from: Path, change: Callable[[Any], None]) -> None:
    import torch
    from transformers import GenerationConfig, LlamaConfig, LlamaForCausalLM

    torch.manual_seed(SEED)
    config = LlamaConfig(
        vocab_size=49_152, hidden_size=HIDDEN, intermediate_size=2 * HIDDEN, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, max_position_embeddings=2048, tie_word_embeddings=True, initializer_range=WEIGHT_SPREAD,
        bos_token_id=1, eos_token_id=2, pad_token_id=2, dtype="bfloat16",
    )  # fmt: skip
    model = LlamaForCausalLM(config).to(torch.bfloat16)
    model.generation_config = GenerationConfig(bos_token_id=1, eos_token_id=2, pad_token_id=2)
    change(model)
    model.save_pretrained(folder)
    for file in ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja"):
        shutil.copyfile(tokenizer_from / file, folder / file)
    for path in folder.iterdir():
        path.chmod(0o644)  # safetensors writes 0600


if __name__ == "__main__":
    print(tiny_dir())
