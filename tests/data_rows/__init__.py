"""Small data sets for tests, and the way from a few rows to a prepared data set."""

from __future__ import annotations

import atexit
import gzip
import json
import tempfile
from collections.abc import Iterable, Sequence
from functools import cache
from pathlib import Path
from typing import Any

from job.data.build import Prepared, build_dataset
from job.source import FetchedSource
from job.spec import JobSpec, parse_spec
from tests.tiny import tiny_dir

SHARED = Path(__file__).parents[3] / "shared" / "data"
Row = dict[str, Any]


def turns(*contents: str) -> list[Row]:
    """A conversation of user and assistant in turn."""
    return [{"role": ("user", "assistant")[i % 2], "content": text} for i, text in enumerate(contents)]


def write_rows(path: Path, rows: Iterable[Row]) -> Path:
    """Rows as JSON Lines, gzipped if the name says so."""
    raw = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows).encode()
    path.write_bytes(gzip.compress(raw) if path.suffix == ".gz" else raw)
    return path


@cache
def byte_tokenizer_dir() -> Path:
    """A tokenizer of bytes and two ChatML markers, for tests where it does not matter: it loads in no time."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    markers = ["<|im_start|>", "<|im_end|>"]
    rust = Tokenizer(models.BPE({token: i for i, token in enumerate(markers + alphabet)}, []))
    rust.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    rust.decoder = decoders.ByteLevel()
    rust.add_special_tokens(markers)
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=rust, eos_token="<|im_end|>", pad_token="<|im_end|>")
    tokenizer.chat_template = (
        "{% for m in messages %}{{ '<|im_start|>' + m.role + '\\n' + m.content + '<|im_end|>\\n' }}{% endfor %}"
        "{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"
    )
    folder = tempfile.TemporaryDirectory(prefix="byte-tokenizer-")
    atexit.register(folder.cleanup)
    tokenizer.save_pretrained(folder.name)
    sizes = {"model_type": "llama", "vocab_size": len(markers + alphabet)}
    (Path(folder.name) / "config.json").write_text(json.dumps(sizes), "utf-8")
    return Path(folder.name)


def sized_model(folder: Path, weights: int, config: dict[str, Any]) -> None:
    """The byte tokenizer, the config and the file size of a model of so many 16-bit weights: a hole in a file."""
    for path in byte_tokenizer_dir().iterdir():
        (folder / path.name).write_bytes(path.read_bytes())
    hole(folder / "model.safetensors", weights)
    known = json.loads((folder / "config.json").read_text("utf-8"))
    (folder / "config.json").write_text(json.dumps(known | config), "utf-8")


def hole(path: Path, weights: int) -> None:
    """A safetensors file of so many 16-bit weights that takes no room on the disk."""
    header = json.dumps({"x.weight": {"dtype": "BF16", "shape": [weights], "data_offsets": [0, 2 * weights]}}).encode()
    with path.open("wb") as file:
        file.write(len(header).to_bytes(8, "little") + header)
        file.truncate(8 + len(header) + 2 * weights)


def job_spec(
    sources: Sequence[Row],
    held_out: Row | str | None = None,
    length: int = 512,
    prompts: Sequence[str] = (),
    exact: int = 0,
    evaluation: Row | None = None,
    method: str = "sft",
    **data: Any,
) -> JobSpec:
    document = {
        "version": 1,
        "name": "rows",
        "model": {"source": "/models/base", "max_seq_length": length},
        "data": {"train": list(sources), "shuffle": False, "held_out": held_out or False, **data},
        "training": {"method": method},
        "evaluation": {"prompts": list(prompts), "exact_match_rows": exact, **(evaluation or {})},
        "output": {"uri": "/output"},
    }
    return parse_spec(json.dumps(document).encode())


def fetched(spec: JobSpec, files: Sequence[Path]) -> list[FetchedSource]:
    """One file for each training source, as fetch would have left it."""
    return [
        FetchedSource(source, f"/data/train/{i}", (path,), None, "0" * 64)
        for i, (source, path) in enumerate(zip(spec.data.train, files, strict=True))
    ]


def prepare(
    folder: Path,
    rows: Path | Iterable[Row],
    kind: str,
    model: Path | None = None,
    source: Row | None = None,
    **spec: Any,
) -> Prepared:
    """One source's rows, prepared. `source`: further keys of its spec; `spec`: as for `job_spec`."""
    path = rows if isinstance(rows, Path) else write_rows(folder / "rows.jsonl", rows)
    job = job_spec([{"source": str(path), "format": kind, **(source or {})}], **spec)
    return build_dataset(job, fetched(job, [path]), None, model or tiny_dir(), folder, lambda done, total: None)
