"""The model's tokenizer and what the workers need to know of it."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

from job.data.worker.json_text import strings
from job.errors import InputError, JobError
from job.source.model_files import read_object
from job.source.place import pointed

POINTER = "/model/source"
TOKEN_FILES = ("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "added_tokens.json")
MAX_FILE_BYTES = 256 << 20  # the largest public ones have 35 MB; reading one takes ten times its size
MAX_TOKEN_BYTES = 4 << 20  # of all added tokens; each byte of them takes more than a hundred
# Special tokens that fill rows, and those that mean nothing yet; not those that fill pictures or sound.
PADDING = (
    re.compile(r"^(?!.*(?:image|vision|video|audio|fim))(?:.*[^a-z])?pad", re.IGNORECASE),
    re.compile("reserved|unused", re.IGNORECASE),
)


def load_tokenizer(model_dir: Path) -> Any:
    """The fast tokenizer of a model folder. Raises `InputError` if there is none; runs no code of the model's."""
    from transformers import AutoTokenizer, PreTrainedTokenizerFast

    require_small_tokens(model_dir)
    try:
        tokenizer = AutoTokenizer.from_pretrained(model_dir, local_files_only=True, trust_remote_code=False)
        tokenizer("a")
    except BaseException as error:  # of a damaged file the part in Rust raises Exception itself, or panics
        is_panic = type(error).__name__ == "PanicException"
        if isinstance(error, JobError | MemoryError) or not (is_panic or isinstance(error, Exception)):
            raise
        raise InputError(
            "the model has no usable tokenizer",
            where=POINTER,
            found=f"{type(error).__name__}: {str(error).strip()}".splitlines()[0],
        ) from None
    if not isinstance(tokenizer, PreTrainedTokenizerFast):
        raise InputError(
            "the model has no fast tokenizer",
            where=POINTER,
            found=type(tokenizer).__name__,
            expected="one with a tokenizer.json",
        )
    return tokenizer


def require_small_tokens(model_dir: Path) -> None:
    """Raises `InputError` for a tokenizer that would take more memory than a job can spare for it."""
    for path in (model_dir / name for name in TOKEN_FILES if (model_dir / name).is_file()):
        file_bytes = path.stat().st_size
        _require_small(f"{path.name} is too large", file_bytes, MAX_FILE_BYTES)
        if file_bytes > MAX_TOKEN_BYTES:
            token_bytes = sum(len(text.encode("utf-8", "replace")) for text in strings(_added_tokens(path)))
            _require_small(f"{path.name}: the added tokens are too long", token_bytes, MAX_TOKEN_BYTES)


def _require_small(message: str, found: int, most: int) -> None:
    if found > most:
        raise InputError(message, where=POINTER, found=f"{found} bytes", expected=f"at most {most} bytes")


def _added_tokens(path: Path) -> Any:
    """What holds the texts of added tokens; nothing in a damaged file, of which its own reader will say more."""
    text = path.read_text("utf-8", "replace")
    try:
        if path.name == "tokenizer.json":  # not the whole, whose vocabulary is large
            found = re.search(r'"added_tokens"\s*:\s*(?=\[)', text)
            return json.JSONDecoder().raw_decode(text, found.end())[0] if found else []
        value = json.loads(text)
    except (ValueError, RecursionError):
        return []
    if path.name == "added_tokens.json":
        return list(value)
    return [item for key, item in value.items() if key != "chat_template"] if isinstance(value, dict) else value


def set_pad_token(tokenizer: Any, model_dir: Path, notes: list[str]) -> None:
    """Gives a tokenizer without a `pad_token`, as Llama's and Mistral's are, one of the tokens it has.

    Nothing is learned of padding, whatever token it is: its labels are masked and nobody attends to it. Yet who trains
    the published model elsewhere may mask that token everywhere. So a token that fills rows by its name is taken
    first, then a reserved one, the unknown one, and the end token last; each must have a row in the embedding.
    """
    if tokenizer.pad_token_id is not None:
        return
    rows = embedding_rows(model_dir)
    special = [str(token) for _, token in sorted(tokenizer.added_tokens_decoder.items()) if token.special]
    named = [token for form in PADDING for token in special if form.search(token)]
    for token in (*named, tokenizer.unk_token, tokenizer.eos_token, tokenizer.convert_ids_to_tokens(0)):
        if token is not None and (rows is None or tokenizer.convert_tokens_to_ids(token) < rows):
            tokenizer.pad_token = token
            notes.append(f"pad_token is {token}: the tokenizer has none of its own; nothing is learned of padding")
            return


def embedding_rows(model_dir: Path) -> int | None:
    """How many tokens have a row in the embedding, as the model's config says; None where it does not."""
    with pointed(POINTER):
        config = read_object(model_dir / "config.json")
    sections = (config, config.get("text_config"))
    sizes = [section.get("vocab_size") for section in sections if isinstance(section, dict)]
    return next((size for size in sizes if isinstance(size, int)), None)


def write_tokenizer(tokenizer: Any, path: Path) -> Path:
    """The tokenizer's Rust part, added tokens included, for the workers."""
    path.write_text(tokenizer.backend_tokenizer.to_str(), "utf-8")
    return path


def prefix_ids(tokenizer: Any) -> list[int]:
    """Ids that the tokenizer itself puts before raw text: BOS, where the model uses one, and no others."""
    opening: list[int] = []
    encoding = tokenizer.backend_tokenizer.encode("a", add_special_tokens=True)
    for token, special in zip(encoding.ids, encoding.special_tokens_mask, strict=True):
        if not special:
            break
        opening.append(token)
    return [token for token in opening if token != tokenizer.eos_token_id or token == tokenizer.bos_token_id]


def end_tokens(tokenizer: Any) -> list[str]:
    """Special tokens of the vocabulary: what may close a turn."""
    special = {str(token) for token in tokenizer.added_tokens_decoder.values() if token.special}
    return sorted(special | set(tokenizer.all_special_tokens))


def own_end_ids(tokenizer: Any, model_dir: Path) -> list[int]:
    """The end ids that the model came with: its tokenizer's and its generation config's. Raises `InputError` for what
    are not ids.
    """
    ids = [] if tokenizer.eos_token_id is None else [tokenizer.eos_token_id]
    path = model_dir / "generation_config.json"
    if path.is_file():
        with pointed(POINTER):
            configured = read_object(path).get("eos_token_id")
        ids += configured if isinstance(configured, list) else [] if configured is None else [configured]
        if not all(type(token) is int for token in ids):
            raise InputError(
                f"{path.name}: eos_token_id is not a token id",
                where=POINTER,
                found=ascii(configured),
                expected="an integer or several",
            )
    return list(dict.fromkeys(ids))
