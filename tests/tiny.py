"""Llamas so small that a whole job on them takes seconds, with SmolLM2's tokenizer or the first of its tokens.

python -m tests.tiny        prints their folders; half a minute at first, until perplexities of one mean something
"""

from __future__ import annotations

import fcntl
import json
import math
import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

from tests.smollm2 import CACHE, model_dir

SEED = 7
HIDDEN = 128  # bitsandbytes packs CPU weights in rows of 64 and more
WEIGHT_SPREAD = 0.3  # wide enough for the untrained model to have opinions: its loss differs between rows
NARROW = {
    "hidden_size": HIDDEN,
    "intermediate_size": 2 * HIDDEN,
    "num_hidden_layers": 2,
    "initializer_range": WEIGHT_SPREAD,
}
WIDE = {"hidden_size": 256, "intermediate_size": 768, "num_hidden_layers": 3}
VOCABULARY = 49_152
FEW_TOKENS = 2048  # a run with all of them takes twice the processor time
BYTE_VOCABULARY = 260
TOKENIZER_FILES = ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja")
TRAIN_STEPS = 120
TRAIN_ROWS = 16  # in a step
OTHER_TOKENS = 256  # sampled in a step from those that the rows do not use


def tiny_dir() -> Path:
    """The folder, made on first use; absent or whole. llama.cpp does not know its tokenizer."""
    return _made("tiny-llama-2048", lambda model: None, vocabulary=FEW_TOKENS)


def narrow_dir() -> Path:
    """The same with every token, which llama.cpp knows."""
    return _made("tiny-llama", lambda model: None)


def broken_narrow_dir() -> Path:
    """The same with one weight that is not a number."""

    def spoil(model: Any) -> None:
        model.model.layers[0].mlp.up_proj.weight.data[0, 0] = float("nan")

    return _made("tiny-llama-nan", spoil)


def wide_dir() -> Path:
    """A Llama of rows of 256 and 768 weights, which k- and i-quants pack whole; its perplexities mean something."""
    return _made("wide-llama", train_wide, WIDE)


def _made(
    name: str, change: Callable[[Any], None], widths: dict[str, Any] = NARROW, vocabulary: int = VOCABULARY
) -> Path:
    target = CACHE / name
    if (target / "config.json").is_file():
        return target
    with (CACHE / f"{name}.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)  # one process makes it, the others wait
        if not (target / "config.json").is_file():
            with tempfile.TemporaryDirectory(dir=CACHE) as scratch:
                made = Path(scratch) / name
                made.mkdir()
                build(made, change, widths, vocabulary)
                made.rename(target)
    return target


def build(folder: Path, change: Callable[[Any], None], widths: dict[str, Any], vocabulary: int) -> None:
    import torch
    from transformers import GenerationConfig, LlamaConfig, LlamaForCausalLM

    torch.manual_seed(SEED)
    config = LlamaConfig(
        vocab_size=vocabulary, num_attention_heads=4, num_key_value_heads=2,
        max_position_embeddings=2048, tie_word_embeddings=True,
        bos_token_id=1, eos_token_id=2, pad_token_id=2, dtype="bfloat16", **widths,
    )  # fmt: skip
    model = LlamaForCausalLM(config)
    model.generation_config = GenerationConfig(bos_token_id=1, eos_token_id=2, pad_token_id=2)
    change(model)
    model.to(torch.bfloat16)
    model.save_pretrained(folder)
    for file in TOKENIZER_FILES:
        shutil.copyfile(model_dir() / file, folder / file)
    if vocabulary < VOCABULARY:
        keep_first_tokens(folder / "tokenizer.json", vocabulary)
    for path in folder.iterdir():
        path.chmod(0o644)  # safetensors writes 0600


def keep_first_tokens(tokenizer_file: Path, count: int) -> None:
    """Those of the first ids, which a BPE has merged first: special tokens, bytes, frequent pieces."""
    tokenizer = json.loads(tokenizer_file.read_text("utf-8"))
    kept = {word: i for word, i in tokenizer["model"]["vocab"].items() if i < count}
    merges = [
        (left, right) for left, right in tokenizer["model"]["merges"] if {left, right, left + right} <= kept.keys()
    ]
    tokenizer["model"] |= {"vocab": kept, "merges": merges}
    tokenizer_file.write_text(json.dumps(tokenizer, ensure_ascii=False), "utf-8")


def train_wide(model: Any) -> None:
    """Teaches `model` the demo's rows, with a softmax over the tokens they use and a sample of all others."""
    import torch
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(model_dir())
    lines = (Path(__file__).parent / "demo" / "train.jsonl").read_text("utf-8").splitlines()
    texts = [tokenizer.apply_chat_template(json.loads(line)["messages"], tokenize=False) for line in lines]
    batch = tokenizer(texts, padding=True, return_tensors="pt", add_special_tokens=False)
    rows, mask = batch["input_ids"], batch["attention_mask"]
    used = rows.unique()
    others = torch.tensor(sorted(set(range(VOCABULARY)) - set(used.tolist())))
    optimizer = torch.optim.AdamW(model.parameters(), lr=2e-3, fused=True)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, max_lr=2e-3, total_steps=TRAIN_STEPS)
    for _ in range(TRAIN_STEPS):
        picked = torch.randint(len(rows), (TRAIN_ROWS,))
        sampled = others[torch.randint(len(others), (OTHER_TOKENS,))]
        loss = sampled_loss(model, rows[picked], mask[picked], used, sampled, len(others) / OTHER_TOKENS)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()


def sampled_loss(model: Any, ids: Any, mask: Any, used: Any, sampled: Any, each_counts_for: float) -> Any:
    """Cross-entropy of the next token, where every sampled token counts for many."""
    import torch

    states = model.model(input_ids=ids, attention_mask=mask).last_hidden_state[:, :-1]
    wanted = mask[:, 1:].bool()
    states, answers = states[wanted], torch.searchsorted(used, ids[:, 1:][wanted])
    table = model.lm_head.weight
    logits = torch.cat([states @ table[used].T, states @ table[sampled].T + math.log(each_counts_for)], dim=1)
    return torch.nn.functional.cross_entropy(logits, answers)


def small_base(folder: Path, dtype: str = "bfloat16", shard: str = "1GB", **settings: Any) -> Path:
    """A random Llama of 100 kB with a tokenizer of bytes, saved in shards of at most `shard`."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(SEED)
    config = LlamaConfig(
        vocab_size=BYTE_VOCABULARY, hidden_size=32, intermediate_size=96,
        num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=2,
        initializer_range=0.2, bos_token_id=1, eos_token_id=2, pad_token_id=2, dtype=dtype, **settings,
    )  # fmt: skip
    LlamaForCausalLM(config).to(getattr(torch, dtype)).save_pretrained(folder, max_shard_size=shard)
    byte_tokenizer(folder)
    return folder


def byte_tokenizer(folder: Path) -> None:
    """Three special tokens, the bytes, and one pair that is only there where digits are not split."""
    from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    specials = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
    words = [*specials, *sorted(pre_tokenizers.ByteLevel.alphabet()), "14"]
    tokenizer = Tokenizer(models.BPE(vocab={word: i for i, word in enumerate(words)}, merges=[("1", "4")]))
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    )
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens([AddedToken(word, special=True, normalized=False) for word in specials])
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        unk_token=specials[0],
        bos_token=specials[1],
        eos_token=specials[2],
        pad_token=specials[2],
    )
    fast.chat_template = "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>{% endfor %}"
    fast.save_pretrained(folder)


def random_adapter(base: Path, folder: Path, **settings: Any) -> Path:
    """A PEFT adapter of `base` whose every trained tensor was moved at random, with the tokenizer beside it."""
    import torch
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForCausalLM

    torch.manual_seed(SEED)
    options: dict[str, Any] = {"r": 4, "lora_alpha": 12, "target_modules": "all-linear"} | settings
    model = get_peft_model(
        AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32), LoraConfig(task_type="CAUSAL_LM", **options)
    )
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.add_(torch.randn_like(parameter), alpha=0.05)
    model.save_pretrained(folder)
    for file in TOKENIZER_FILES:
        shutil.copyfile(base / file, folder / file)
    return folder


def make_all() -> None:
    for folder in (tiny_dir(), narrow_dir(), broken_narrow_dir(), wide_dir()):
        print(folder)


if __name__ == "__main__":
    make_all()
