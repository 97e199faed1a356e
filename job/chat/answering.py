"""A model that answers: merged weights, the adapter on its base, the base alone, or a GGUF."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from job.chat.published import ADAPTER, MERGED, Published
from job.data.chat import describe
from job.data.pool import Pool
from job.data.tokenizer import load_tokenizer, write_tokenizer
from job.data.worker import wire
from job.data.worker.messages import Message
from job.errors import InputError
from job.evaluation.generate import answer_ids, spoken
from job.ledger.manifest import File
from job.source import check_config, fetch_model_config, fetch_model_weights, go_offline

BASE_HINT = "Put the model back there, name its place with --base-from, or ask what needs no base: merged weights or a GGUF (export.merged, export.gguf)"  # noqa: E501
LEAST_ROOM_TOKENS = 4096  # for a conversation, where the model has them; training sequences may be short
Answer = Callable[[list[int]], list[int]]  # of a prompt, both in token ids


@dataclass(frozen=True)
class ChatOptions:
    """What of a run is asked: a GGUF's type ("" the first, None no GGUF), or the `base`. `base_from`: where that is
    now. `max_new_tokens`: of an answer, None for as many as the run's own answers had.
    """

    gguf: str | None = None
    base: bool = False
    base_from: str | None = None
    max_new_tokens: int | None = None


@dataclass(frozen=True)
class Speaker:
    """An opened model with its tokenizer and template. `what` it is, for people; `room_tokens`: prompt and answer."""

    what: str
    answer: Answer
    tokenizer: Any
    pool: Pool
    job: wire.Job
    room_tokens: int
    max_new_tokens: int

    def reply(self, messages: list[Message]) -> tuple[str, int]:
        """The answer to a conversation, and how many of its oldest messages did not fit any more.

        Raises `InputError` where the template has no form for it, or the last message alone has no room.
        """
        for dropped in range(0, len(messages), 2):
            ids = self._ids(messages[dropped:])
            if len(ids) + self.max_new_tokens <= self.room_tokens:
                return spoken(self.tokenizer, [self.answer(ids)])[0], dropped
        found = f"{len(ids)} tokens, and {self.max_new_tokens} for the answer"
        raise InputError("this is too long for the model", found=found, expected=f"at most {self.room_tokens}")

    def _ids(self, messages: list[Message]) -> list[int]:
        if not self.job.chat_template:
            ids: list[int] = self.pool.ask(
                wire.Request("prompts", self.job, prompts=(messages[-1]["content"],))
            ).questions[0][1]
            return ids
        asked = wire.Request("renderings", self.job, conversations=([messages, None, True],))
        (text,) = self.pool.ask(asked).renderings
        if text is None:
            raise InputError("the chat template has no form for this conversation")
        return list(self.tokenizer(text, add_special_tokens=False).input_ids)


@contextmanager
def opened(published: Published, asked: ChatOptions, scratch: Path) -> Iterator[Speaker]:
    """The model that is asked, ready to answer; what has to come from elsewhere goes to `scratch`.

    Raises `InputError` for what was not made, or a base that is gone, before anything large is fetched or imported.
    """
    spec, most = published.spec, asked.max_new_tokens or published.spec.evaluation.max_new_tokens
    parts = published.gguf(asked.gguf) if asked.gguf is not None else []
    kept = MERGED if spec.lora is None or (published.files(MERGED) and not asked.base) else ADAPTER
    needs_base = asked.base or (kept == ADAPTER and not parts)
    base = _base(published, asked.base_from, scratch) if needs_base else None
    go_offline()
    weights = not parts and not asked.base
    files = [file for file in published.files(kept) if weights or not file.key.endswith(".safetensors")]
    folder = published.fetch(files, scratch) / kept
    tokenizer = load_tokenizer(folder)
    job = describe(tokenizer, str(tokenizer.chat_template) if published.is_chat else "", spec.model.max_seq_length)
    room = max(spec.model.max_seq_length, LEAST_ROOM_TOKENS) + most
    model = _gguf(published, parts, scratch, room, most) if parts else _whole(published, asked, folder, base, most)
    with Pool(write_tokenizer(tokenizer, scratch / "tokenizer.json"), 1) as pool, model as (what, answer, longest):
        yield Speaker(what, answer, tokenizer, pool, job, min(room, longest or room), most)


@contextmanager
def _whole(
    published: Published, asked: ChatOptions, folder: Path, base: Path | None, most: int
) -> Iterator[tuple[str, Answer, int]]:
    """Merged weights, adapter on `base`, or `base` alone, by transformers and PEFT."""
    from job.export.logits import comparison_dtype, open_model
    from job.export.reload import open_trained
    from job.host.device import choose_device

    device, precision = choose_device(), published.spec.model.precision
    if base is None:
        what, model = f"the merged weights on {device}", open_model(folder, comparison_dtype(folder, device), device)
    elif asked.base:
        what, model = f"the base, untuned, on {device}", open_trained(base, None, precision, device)
    else:
        what, model = f"the adapter on its base, on {device}", open_trained(base, folder, precision, device)
    stops = published.stop_token_ids

    def answer(ids: list[int]) -> list[int]:
        said = answer_ids(model, [ids], stops[0] if stops else 0, stops, most)[0]  # nothing is padded
        return said[:-1] if said and said[-1] in stops else said

    yield what, answer, getattr(model.config.get_text_config(), "max_position_embeddings", None) or 0


def _base(published: Published, elsewhere: str | None, scratch: Path) -> Path:
    """The folder of the base that was trained on, fetched at its commit. Raises `InputError` where it is gone."""
    source, revision = published.base_source, published.manifest.base["revision"]
    pinned = {"/model/source": revision} if revision and not elsewhere else {}
    try:
        found = fetch_model_config(elsewhere or source, scratch, revisions=pinned)
        check_config(found.path, found.pointer)
        return fetch_model_weights(found).path
    except InputError as error:
        faults = (replace(fault, hint=fault.hint or BASE_HINT) for fault in error.faults)
        raise InputError(*faults) from error


@contextmanager
def _gguf(
    published: Published, files: list[File], scratch: Path, room: int, most: int
) -> Iterator[tuple[str, Answer, int]]:
    """By llama.cpp, as its test runs it."""
    from job.gguf import native, quality
    from job.host.cgroup import native_threads

    key = files[0].key
    with native.opened(published.fetch(files, scratch) / key, key) as model:
        longest = min(room, model.trained_tokens or room)
        with model.context(longest, native_threads(), key=key) as context:

            def answer(ids: list[int]) -> list[int]:
                said = quality.answer(context, model, ids, most)
                return said[:-1] if said and model.ends(said[-1]) else said

            yield f"{key} by llama.cpp", answer, longest
