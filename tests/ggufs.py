"""What tests of GGUF files need: a reference of a model's folder, its tokenizer's facts, an imatrix, edited files."""

from __future__ import annotations

import json
import os
import shutil
import struct
from collections.abc import Callable
from itertools import chain
from pathlib import Path
from typing import Any

from job.export.gguf.imatrix import write_imatrix
from job.gguf.expected import Expected, describe_tokenizer
from job.gguf.quality import Against, AskedIds

os.environ.setdefault("OMP_WAIT_POLICY", "passive")  # as in job/gguf/worker.py: tests share their cores

HELD_OUT = Path(__file__).parent / "demo" / "held_out.jsonl"
TRAIN = HELD_OUT.with_name("train.jsonl")
END = 2  # <|im_end|>
NOTHING_ASKED = AskedIds([], [])
NO_LIMITS = {"max_kl": 1e9, "max_perplexity_rise": 1e9}


def against(reference: Path, limits: dict[str, float]) -> Against:
    """The model itself, on one core, and nothing asked."""
    return Against(reference, reference, NOTHING_ASKED, limits, 1)


def conversations(count: int, file: Path = HELD_OUT) -> list[list[dict[str, str]]]:
    return [json.loads(line)["messages"] for line in file.read_text("utf-8").splitlines()[:count]]


def tokenizer_of(folder: Path) -> Any:
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(folder)


def describe(folder: Path, rows: int = 4) -> Expected:
    tokenizer = tokenizer_of(folder)
    texts = [tokenizer.apply_chat_template(row, tokenize=False) for row in conversations(rows)]
    return describe_tokenizer(tokenizer, texts)


def write_reference(folder: Path, path: Path, rows: int = 8) -> Path:
    """Logits of `rows` conversations and a greedy answer, by transformers in fp32."""
    import torch
    from safetensors.torch import save_file
    from transformers import AutoModelForCausalLM

    tokenizer = tokenizer_of(folder)
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    ids = [tokenizer.apply_chat_template(row, tokenize=True, return_dict=False) for row in conversations(rows)]
    prompt = tokenizer.apply_chat_template(
        conversations(1)[0][:-1], tokenize=True, return_dict=False, add_generation_prompt=True
    )
    with torch.no_grad():
        logits = torch.cat([model(input_ids=torch.tensor([row])).logits[0] for row in ids])
        output = model.generate(
            torch.tensor([prompt]), do_sample=False, max_new_tokens=32, eos_token_id=END, pad_token_id=END
        )
    answer = output[0, len(prompt) :]
    starts = [sum(map(len, ids[:i])) for i in range(len(ids))]
    learned = [start + i for start, row in zip(starts, ids, strict=True) for i in range(len(row) - 1)]
    tensors = {
        "input_ids": torch.tensor([*chain(*ids)], dtype=torch.int32),
        "row_lengths": torch.tensor([*map(len, ids)], dtype=torch.int32),
        "learned": torch.tensor(learned, dtype=torch.int32),
        "logits": logits,
        "prompt_ids": torch.tensor(prompt, dtype=torch.int32),
        "answer_ids": answer.to(torch.int32).contiguous(),
    }
    save_file(tensors, path, {"dtype": "float32", "stopped": "true" if int(answer[-1]) == END else "false"})
    return path


def measure_imatrix(folder: Path, path: Path, rows: int = 60) -> Path:
    """The imatrix of the demo's training rows."""
    import torch
    from transformers import AutoModelForCausalLM

    tokenizer = tokenizer_of(folder)
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    ids = [tokenizer.apply_chat_template(row, tokenize=True, return_dict=False) for row in conversations(rows, TRAIN)]
    write_imatrix(model, folder, ids, path)
    return path


def changed_folder(model: Path, folder: Path, change: Callable[[Path], None]) -> Path:
    """A copy of `model` (weights linked) after `change`."""
    folder.mkdir()
    for file in model.iterdir():
        if file.suffix == ".safetensors":
            (folder / file.name).symlink_to(file)
        else:
            shutil.copyfile(file, folder / file.name)
    change(folder)
    return folder


def edit_json(path: Path, **values: Any) -> None:
    path.write_text(json.dumps(json.loads(path.read_text()) | values))


def edit_number(source: Path, target: Path, name: str, value: int) -> Path:
    """A copy of a GGUF with one 32-bit number of its metadata replaced."""
    content = bytearray(source.read_bytes())
    at = content.index(struct.pack("<Q", len(name)) + name.encode()) + 8 + len(name) + 4
    content[at : at + 4] = struct.pack("<I", value)
    target.write_bytes(content)
    return target


def edit_text(source: Path, target: Path, old: str, new: str) -> Path:
    """A copy of a GGUF with one text replaced by another of the same length."""
    assert len(old.encode()) == len(new.encode())
    content = source.read_bytes()
    assert content.count(old.encode()) == 1
    target.write_bytes(content.replace(old.encode(), new.encode()))
    return target


def write_stock(model: str, folder: str, *file_types: str) -> None:
    """What llama.cpp's own converter makes of `model`, a file named after each of its types."""
    import gguf
    import torch
    from conversion import ModelBase, ModelType, get_model_architecture, get_model_class

    with torch.inference_mode():
        settings = ModelBase.load_hparams(Path(model), False)
        kind = get_model_class(get_model_architecture(settings, ModelType.TEXT))
        for file_type in file_types:
            kind(Path(model), gguf.LlamaFileType[file_type], Path(folder) / file_type, model_name="tuned").write()
