"""What a model says of the compared rows, as a file that others are held against: its logits, and its answer to one
prompt.

Three such files come about: of the model as it was trained, of its adapter on the original base, and of the merged
weights. `job.gguf.quality` reads the same form.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from job.errors import GateError
from job.evaluation.generate import answer_ids
from job.evaluation.readings import log_sums
from job.export.logits import compare, continue_greedily, loss_at, vocabulary, write_logits
from job.gguf.quality import ModelStep
from job.gguf.readings import Reading
from job.host.memory import blocks_used_again
from job.training.precision import name_of
from job.weights.layout import Tensor, fill, lay_out, read_tensors, reserve


@dataclass(frozen=True)
class Measure:
    """What every model is measured on: the compared `rows` as token ids and which of their tokens are `learned`
    (`Compared.learned`), a `prompt`, and `questions`, which are padded with `pad` and answered with at most
    `max_new_tokens`; and `readings` besides.
    """

    rows: list[list[int]]
    learned: list[int]
    prompt: list[int]
    questions: list[list[int]]
    pad: int
    stop_token_ids: list[int]
    max_new_tokens: int
    readings: list[Reading] = field(default_factory=list)


def write_reference(model: Any, measure: Measure, path: Path, answered: bool = True) -> tuple[Any, bool]:
    """Writes what others are compared with; returns the logits, fp32 (tokens, vocabulary), which stay in that file,
    and whether the answer to the prompt stopped.

    `answered`: whether anything is to answer as this model does; else its answer is left out, up to `max_new_tokens`
    forward passes.
    """
    import numpy

    rows, prompt, answer, stopped = measure.rows, measure.prompt, list[int](), False
    if answered:
        with blocks_used_again():
            answer, stopped = continue_greedily(model, prompt, measure.stop_token_ids, measure.max_new_tokens)
    lists = {"input_ids": [token for row in rows for token in row], "row_lengths": [len(row) for row in rows],
             "learned": measure.learned, "prompt_ids": prompt, "answer_ids": answer}  # fmt: skip
    shape = (len(lists["input_ids"]), vocabulary(model))
    forms: list[tuple[str, str, tuple[int, ...], int]] = [("logits", "F32", shape, 4 * shape[0] * shape[1])]
    forms += [(name, "I32", (len(values),), 4 * len(values)) for name, values in lists.items()]
    notes = {"stopped": "true" if stopped else "false", "dtype": name_of(model.dtype)}
    placed = {tensor.name: tensor for tensor in lay_out(path, forms, notes)}
    reserve(path, path.stat().st_size)
    for name, values in lists.items():
        fill(placed[name], [numpy.array(values, numpy.int32)])
    logits = _mapped(placed["logits"], "r+")
    write_logits(model, rows, logits)
    logits.flush()
    return logits, stopped


def logits_in(path: Path) -> tuple[Any, str]:
    """The logits of such a file, on disk, and the number type that they were computed in."""
    tensors, notes = read_tensors(path)
    return _mapped(next(tensor for tensor in tensors if tensor.name == "logits"), "r"), notes["dtype"]


def _mapped(tensor: Tensor, mode: str) -> Any:
    import numpy

    return numpy.memmap(tensor.path, dtype=numpy.float32, mode=mode, offset=tensor.start, shape=tensor.shape)  # type: ignore[call-overload]


def measured(logits: Any, measure: Measure, trained: Any | None) -> ModelStep:
    """The loss on the learned tokens, and how far predictions of these lie from those of the `trained` model.

    Raises `GateError` if the loss is not a number.
    """
    loss = loss_at(logits, measure.rows, measure.learned)
    if not math.isfinite(loss):
        raise GateError("its loss on the compared rows is not a number", found=str(loss), expected="a finite value")
    if trained is None:
        return ModelStep(loss)
    found = compare(trained, logits, measure.learned)
    return ModelStep(loss, found.kl, found.same_top_token)


def answers(model: Any, measure: Measure) -> list[list[int]]:
    """Greedy answers to the questions, as token ids."""
    asked, stops, limit = measure.questions, measure.stop_token_ids, measure.max_new_tokens
    with blocks_used_again():
        return answer_ids(model, asked, measure.pad, stops, limit) if asked else []


def read(model: Any, measure: Measure) -> list[list[float]]:
    """Log-probabilities of what is to be read, a text at a time: memory holds what a compared row needs."""
    return log_sums(model, measure.readings, 1, measure.pad, kept=True)
