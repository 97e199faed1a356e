"""How well a GGUF keeps what the 16-bit model knows: perplexity, divergence, a greedy answer, from stored logits."""

from __future__ import annotations

import math
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from job.gguf.native import CHUNK_TOKENS, LlamaContext, Model
from job.gguf.readings import Reading, log_sums

SLACK_TOKENS = 16
LIKELIEST = 5  # tokens at the place where the 16-bit model ends its answer


@dataclass(frozen=True)
class Reference:
    """What a model says: rows of tokens with its logits, and its greedy answer to one prompt."""

    rows: list[list[int]]
    learned: frozenset[int]  # numbers, over the tokens of all rows, of those before a learned token
    prompt: list[int]
    answer: list[int]  # the end token included, if it came to one
    stopped: bool
    logits: Any  # (all tokens of the rows, vocabulary), float32; read in slices

    @property
    def vocabulary(self) -> int:
        return int(self.logits.get_shape()[1])

    @property
    def answer_limit(self) -> int:
        """Tokens within which an answer has to end: quantised, it may take a little longer. Few where none is due."""
        return 2 * len(self.answer) + SLACK_TOKENS if self.stopped else min(len(self.answer), SLACK_TOKENS)

    @property
    def context_tokens(self) -> int:
        return max(*map(len, self.rows), len(self.prompt) + self.answer_limit)


def read_reference(path: Path) -> Reference:
    """The file that `job.export.reference_logits` writes; its logits stay on disk."""
    from safetensors import safe_open

    file: Any = safe_open(path, framework="pt")
    ids: list[int] = file.get_tensor("input_ids").tolist()
    rows, start = [], 0
    for length in file.get_tensor("row_lengths").tolist():
        rows.append(ids[start : start + length])
        start += length
    learned = frozenset(file.get_tensor("learned").tolist())
    prompt, answer = file.get_tensor("prompt_ids").tolist(), file.get_tensor("answer_ids").tolist()
    return Reference(rows, learned, prompt, answer, file.metadata()["stopped"] == "true", file.get_slice("logits"))


@dataclass(frozen=True)
class ModelStep:
    """What became of the trained model on the learned tokens: `loss` and `kl` (of the trained model from this one) in
    nats a token, the share of places with the `same_top_token`. These two are None of the trained model itself.
    """

    loss: float
    kl: float | None = None
    same_top_token: float | None = None


@dataclass(frozen=True)
class Quality:
    perplexity: float
    reference_perplexity: float
    kl: float  # mean over tokens of KL(16-bit model || this one), nats
    same_top_token: float  # share of tokens
    tokens_per_second: float
    stopped: bool
    answer_tokens: int
    same_answer_tokens: int  # from the start, before the answers part
    step: ModelStep
    answers: list[list[int]]  # to `questions`, without their ends
    sums: list[list[float]]  # of `readings`

    @property
    def perplexity_rise(self) -> float:
        """Relative: 0.1 is 10 % more than the 16-bit model's."""
        return self.perplexity / self.reference_perplexity - 1


@dataclass(frozen=True)
class AskedIds:
    """Prompts in token ids, each answered with at most so many tokens; one of 0 is left out. And what is read."""

    questions: list[list[int]]
    max_new_tokens: list[int]
    readings: list[Reading] = field(default_factory=list)

    @property
    def context_tokens(self) -> int:
        answered = zip(self.questions, self.max_new_tokens, strict=True)
        lengths = [len(ids) + most for ids, most in answered] + [len(reading.ids) for reading in self.readings]
        return max(lengths, default=0)


@dataclass(frozen=True)
class Against:
    """What a GGUF is tested against: files of `job.export.reference_logits`, of the 16-bit model, which the limits
    (`max_kl` and `max_perplexity_rise`) are about, and of the model as it was `trained`.
    """

    reference: Path
    trained: Path
    asked: AskedIds
    limits: dict[str, float]
    threads: int


def measure(
    model: Model, reference: Reference, trained: Reference, asked: AskedIds, threads: int, lora: Path | None, key: str
) -> Quality:
    """Evaluates all rows and the answers; memory holds the logits of 128 tokens at a time.

    `trained` has the same rows as `reference`, with what the model said as it was trained.
    """
    with model.context(max(reference.context_tokens, asked.context_tokens), threads, lora, key) as context:
        started = time.monotonic()
        sums, step = _Sums(), _Sums()
        for first, following, logits in _chunks(context, reference):
            sums.add(following, logits, reference.logits[first : first + len(logits)])
            learned = [i for i in range(len(following)) if first + i in trained.learned]
            if learned:
                wanted = trained.logits[first : first + len(logits)][learned]
                step.add([following[i] for i in learned], logits[learned], wanted)
        seconds = time.monotonic() - started
        said = answer(context, model, reference.prompt, reference.answer_limit)
        stopped = model.ends(said[-1]) or ends_alike(context, model, reference)
        pairs = zip(asked.questions, asked.max_new_tokens, strict=True)
        answers = [answer(context, model, question, most) if most else [] for question, most in pairs]
        read = log_sums(context, asked.readings)
    same = next(
        (i for i, (a, b) in enumerate(zip(said, reference.answer, strict=False)) if a != b),
        min(len(said), len(reference.answer)),
    )
    return Quality(
        perplexity=sums.perplexity(sums.loss), reference_perplexity=sums.perplexity(sums.reference_loss),
        kl=sums.kl / sums.tokens, same_top_token=sums.same / sums.tokens, tokens_per_second=sums.tokens / seconds,
        stopped=stopped, answer_tokens=len(said), same_answer_tokens=same,
        step=ModelStep(step.loss / step.predicted, step.kl / step.tokens, step.same / step.tokens),
        answers=[ids[:-1] if ids and model.ends(ids[-1]) else ids for ids in answers],
        sums=read,
    )  # fmt: skip


def _chunks(context: LlamaContext, reference: Reference) -> Iterator[tuple[int, list[int], Any]]:
    """Per chunk of a row: the number of its first token over all rows, the tokens that come next, and logits."""
    import torch

    offset = 0
    for row in reference.rows:
        context.forget()
        for start in range(0, len(row), CHUNK_TOKENS):
            logits = torch.from_numpy(context.evaluate(row[start : start + CHUNK_TOKENS], start))
            yield offset + start, row[start + 1 : start + 1 + len(logits)], logits
        offset += len(row)


class _Sums:
    """Running totals over tokens."""

    def __init__(self) -> None:
        self.loss = self.reference_loss = self.kl = 0.0
        self.same = self.tokens = self.predicted = 0

    def add(self, following: list[int], logits: Any, expected: Any) -> None:
        import torch

        found, wanted = logits.log_softmax(-1), expected.float().log_softmax(-1)
        self.kl += float((wanted.exp() * (wanted - found)).sum(dtype=torch.float64))
        self.same += int((found.argmax(-1) == wanted.argmax(-1)).sum())
        self.tokens += len(logits)
        index = torch.tensor(following).unsqueeze(-1)
        if following:
            self.loss -= float(found[: len(following)].gather(1, index).sum(dtype=torch.float64))
            self.reference_loss -= float(wanted[: len(following)].gather(1, index).sum(dtype=torch.float64))
            self.predicted += len(following)

    def perplexity(self, loss: float) -> float:
        return math.exp(min(loss / max(self.predicted, 1), 700.0))


def answer(context: LlamaContext, model: Model, prompt: list[int], limit: int) -> list[int]:
    """The greedy continuation of the prompt, up to an end token or the limit."""
    said: list[int] = []
    while len(said) < limit and not (said and model.ends(said[-1])):
        said.append(int(context.after([*prompt, *said]).argmax()))
    return said


def ends_alike(context: LlamaContext, model: Model, reference: Reference) -> bool:
    """Whether an end is among the likeliest tokens where the 16-bit model ended, given that one's answer: of its own
    accord it may have taken another turn long before, and then has no reason to end there.
    """
    if not reference.stopped:
        return False
    logits = context.after([*reference.prompt, *reference.answer[:-1]])
    return any(model.ends(int(token)) for token in logits.argsort()[-LIKELIEST:])
