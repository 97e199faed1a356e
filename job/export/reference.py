"""What a model says of the compared rows, as a file that others are held against: its logits, and its answer to one
prompt.

Three such files come about: of the model as it was trained, of its adapter on the original base, and of the merged
weights. `job.gguf.quality` reads the same form.
"""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

from job.errors import Fault, GateError
from job.evaluation.generate import answer_ids
from job.export.logits import compare, continue_greedily, loss_at, vocabulary, write_logits
from job.training.precision import name_of
from job.weights.layout import Tensor, fill, lay_out, read_tensors, reserve

Json = dict[str, Any]


def write_reference(model: Any, request: Json, path: Path) -> tuple[Any, Json]:
    """Writes what others are compared with; returns the logits, fp32 (tokens, vocabulary), which stay in that file,
    and of the answer `stopped` and `answer_tokens`.

    The request's keys: `rows` (token ids), `learned` (`Compared.learned`), `prompt`, `stop_token_ids`,
    `max_new_tokens`.
    """
    import numpy

    rows = request["rows"]
    answer, stopped = continue_greedily(model, request["prompt"], request["stop_token_ids"], request["max_new_tokens"])
    lists = {"input_ids": [token for row in rows for token in row], "row_lengths": [len(row) for row in rows],
             "learned": request["learned"], "prompt_ids": request["prompt"], "answer_ids": answer}  # fmt: skip
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
    return logits, {"stopped": stopped, "answer_tokens": len(answer)}


def logits_in(path: Path) -> tuple[Any, str]:
    """The logits of such a file, on disk, and the number type that they were computed in."""
    tensors, notes = read_tensors(path)
    return _mapped(next(tensor for tensor in tensors if tensor.name == "logits"), "r"), notes["dtype"]


def _mapped(tensor: Tensor, mode: str) -> Any:
    import numpy

    return numpy.memmap(tensor.path, dtype=numpy.float32, mode=mode, offset=tensor.start, shape=tensor.shape)  # type: ignore[call-overload]


def measured(logits: Any, request: Json, trained: Any | None) -> Json:
    """The loss on the learned tokens, and how far predictions of these lie from those of the `trained` model.

    Raises `GateError` if the loss is not a number.
    """
    loss = loss_at(logits, request["rows"], request["learned"])
    if not math.isfinite(loss):
        raise GateError(
            Fault("its loss on the compared rows is not a number", found=str(loss), expected="a finite value")
        )
    if trained is None:
        return {"loss": loss}
    step = compare(trained, logits, request["learned"])
    return {"loss": loss, "kl": step.kl, "same_top_token": step.same_top_token}


def answers(model: Any, request: Json) -> list[list[int]]:
    """Greedy answers to the request's `questions` (token ids), padded with `pad`."""
    stops, limit = request["stop_token_ids"], request["max_new_tokens"]
    return answer_ids(model, request["questions"], request["pad"], stops, limit) if request["questions"] else []
