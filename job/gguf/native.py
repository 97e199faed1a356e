"""llama.cpp as this job needs it, over its C interface: open a file, its vocabulary, and logits of given tokens."""

from __future__ import annotations

import ctypes
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from itertools import takewhile
from pathlib import Path
from typing import TYPE_CHECKING, Any

from job.errors import GateError

if TYPE_CHECKING:
    import numpy as np

WARNING, ERROR, CONTINUED = 3, 4, 5  # ggml_log_level
CHUNK_TOKENS = 128  # decoded at once: logits of 128 x 128,000 tokens are 62 MiB, and there are some ten copies


class NativeLog:
    """What llama.cpp prints, as (level, text), oldest first."""

    def __init__(self) -> None:
        self.entries: list[tuple[int, str]] = []

    def add(self, level: int, text: bytes, _: object) -> None:
        words = text.decode("utf-8", "replace")
        if level == CONTINUED and self.entries:
            level, before = self.entries.pop()
            words = before + words
        self.entries.append((level, words))

    def text(self) -> str:
        return "".join(words for _, words in self.entries)

    def complaint(self) -> str:
        """Its errors in one line; its last warnings if it names no error."""
        for least in (ERROR, WARNING):
            lines = [line.strip() for level, words in self.entries if level == least for line in words.splitlines()]
            if said := [line for line in lines if line.strip("=- ")]:
                return "; ".join(said[-5:])
        return "llama.cpp says nothing"


@contextmanager
def native_log() -> Iterator[NativeLog]:
    """Collects the native log instead of printing it."""
    from llama_cpp import llama_cpp as native

    log = NativeLog()
    callback = native.llama_log_callback(log.add)
    native.llama_log_set(callback, ctypes.c_void_p(0))
    try:
        yield log
    finally:
        native.llama_log_set(_silence(), ctypes.c_void_p(0))


@cache  # native code may call it at any later time
def _silence() -> Any:
    from llama_cpp import llama_cpp as native

    return native.llama_log_callback(lambda *_: None)


class Model:
    """An open GGUF: its vocabulary, and logits by `evaluate`."""

    def __init__(self, handle: Any) -> None:
        from llama_cpp import llama_cpp as native

        self._handle = handle
        self._vocabulary: Any = native.llama_model_get_vocab(handle)
        self.trained_tokens = int(native.llama_model_n_ctx_train(handle))  # of its longest sequence; 0: it does not say
        self.tokens = int(native.llama_vocab_n_tokens(self._vocabulary))
        self.adds_bos = bool(native.llama_vocab_get_add_bos(self._vocabulary))
        self.bos = int(native.llama_vocab_bos(self._vocabulary))
        template = native.llama_model_chat_template(handle, None)
        self.chat_template = None if template is None else template.decode("utf-8", "replace")

    def ends(self, token: int) -> bool:
        """Whether llama.cpp stops at this token."""
        from llama_cpp import llama_cpp as native

        return bool(native.llama_vocab_is_eog(self._vocabulary, token))

    def tokenise(self, text: str) -> list[int]:
        """Ids of `text`, special tokens recognised, none added."""
        from llama_cpp import llama_cpp as native

        raw = text.encode()
        room = len(raw) + 8
        ids = (ctypes.c_int32 * room)()
        count = native.llama_tokenize(self._vocabulary, raw, len(raw), ids, room, False, True)
        return list(ids[: max(count, 0)])

    def detokenise(self, ids: list[int]) -> str:
        """The text of `ids`, special tokens shown."""
        from llama_cpp import llama_cpp as native

        given = (ctypes.c_int32 * len(ids))(*ids)
        room = 32 * len(ids) + 64
        while True:
            text = ctypes.create_string_buffer(room)
            count = native.llama_detokenize(self._vocabulary, given, len(ids), text, room, False, True)
            if count >= 0:
                return text.raw[:count].decode("utf-8", "replace")
            room = -count

    @contextmanager
    def context(self, tokens: int, threads: int, lora: Path | None = None, key: str = "") -> Iterator[LlamaContext]:
        """Room for sequences of up to `tokens`, with the adapter `lora` applied. Raises `GateError` if that fails."""
        from llama_cpp import llama_cpp as native

        settings = native.llama_context_default_params()
        settings.n_ctx = -(-tokens // 256) * 256
        settings.n_batch = settings.n_ubatch = CHUNK_TOKENS
        settings.n_threads = settings.n_threads_batch = threads
        with native_log() as log:
            handle = native.llama_init_from_model(self._handle, settings)
            if not handle:
                raise GateError("llama.cpp cannot run this model", where=key, found=log.complaint())
            try:
                if lora is not None:
                    self._apply(handle, lora, key, log)
                yield LlamaContext(handle, self.tokens)
            finally:
                native.llama_free(handle)

    def _apply(self, context: Any, lora: Path, key: str, log: NativeLog) -> None:
        from llama_cpp import llama_cpp as native

        adapter = native.llama_adapter_lora_init(self._handle, str(lora).encode())  # the model frees it
        if not adapter:
            raise GateError("llama.cpp cannot load this adapter", where=key, found=log.complaint())
        adapters = (native.llama_adapter_lora_p_ctypes * 1)(adapter)
        if native.llama_set_adapters_lora(context, adapters, 1, (ctypes.c_float * 1)(1.0)):
            raise GateError("llama.cpp cannot apply this adapter", where=key, found=log.complaint())


class LlamaContext:
    """One sequence at a time; what was evaluated stays in the key-value cache until `forget`."""

    def __init__(self, handle: Any, tokens: int) -> None:
        self._handle = handle
        self._width = tokens
        self._held: list[int] = []

    def forget(self) -> None:
        from llama_cpp import llama_cpp as native

        native.llama_memory_clear(native.llama_get_memory(self._handle), True)
        self._held = []

    def after(self, ids: list[int]) -> np.ndarray[Any, Any]:
        """Logits (vocabulary), float32, after the last of one token or more. What they begin with as the sequence
        before them is not evaluated again: questions have a system prompt in common, and each token of an answer all
        before it.
        """
        from llama_cpp import llama_cpp as native

        alike = (mine == held for mine, held in zip(ids[:-1], self._held, strict=False))
        shared = sum(takewhile(bool, alike))
        if shared < len(self._held):
            memory = native.llama_get_memory(self._handle)
            if not (shared and native.llama_memory_seq_rm(memory, 0, shared, -1)):  # recurrent ones keep all or nothing
                self.forget()
                shared = 0
        for begin in range(shared, len(ids), CHUNK_TOKENS):
            logits = self.evaluate(ids[begin : begin + CHUNK_TOKENS], begin, each=False)
        return logits.reshape(-1)

    def evaluate(self, ids: list[int], position: int, each: bool = True) -> np.ndarray[Any, Any]:
        """Logits (T, vocabulary), float32, after each of T <= 128 tokens that follow `position` earlier ones; or (1,
        vocabulary), after the last.
        """
        import numpy
        from llama_cpp import llama_cpp as native

        batch = native.llama_batch_init(len(ids), 0, 1)
        try:
            batch.n_tokens = len(ids)
            for i, token in enumerate(ids):
                batch.token[i], batch.pos[i], batch.logits[i] = token, position + i, each or i == len(ids) - 1
                batch.n_seq_id[i], batch.seq_id[i][0] = 1, 0
            code = native.llama_decode(self._handle, batch)
        finally:
            native.llama_batch_free(batch)
        if code:
            raise GateError("llama.cpp cannot evaluate this model", found=f"llama_decode returns {code}")
        self._held[position:] = ids
        logits = native.llama_get_logits(self._handle)
        return numpy.ctypeslib.as_array(logits, shape=(len(ids) if each else 1, self._width)).copy()


def require_loadable(outline: Path, key: str) -> None:
    """Has llama.cpp read everything of the file but its weights, and lay out a computation; no memory is taken for it.

    Raises `GateError` if it refuses metadata, names or shapes.
    """
    from llama_cpp import llama_cpp as native

    settings = native.llama_model_default_params()
    settings.no_alloc = True
    settings.load_mode = native.LLAMA_LOAD_MODE_NONE  # what is mapped would be read ahead
    with native_log() as log:
        handle = native.llama_model_load_from_file(str(outline).encode(), settings)
    if not handle:
        raise _unopened(key, log)
    try:
        with Model(handle).context(CHUNK_TOKENS, 1, key=key):
            pass
    finally:
        native.llama_model_free(handle)


@contextmanager
def opened(path: Path, key: str, vocabulary_only: bool = False) -> Iterator[Model]:
    """The file (or the first of several) in llama.cpp, every block validated. Raises `GateError` if it refuses."""
    from llama_cpp import llama_cpp as native

    settings = native.llama_model_default_params()
    settings.check_tensors = True
    settings.vocab_only = vocabulary_only
    with native_log() as log:
        handle = native.llama_model_load_from_file(str(path).encode(), settings)
    if not handle:
        raise _unopened(key, log)
    try:
        yield Model(handle)
    finally:
        native.llama_model_free(handle)


def _unopened(key: str, log: NativeLog) -> GateError:
    return GateError("llama.cpp cannot open this file", where=key, found=log.complaint(), expected="a model it loads")
