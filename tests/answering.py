"""In a process that gives large blocks back, as the job's children do: pages that answering fetches from the kernel."""

from __future__ import annotations

import ctypes
import json
import resource
from collections.abc import Callable
from typing import Any

import torch

from job.evaluation.generate import answer_ids
from job.export.logits import open_model
from job.export.reference_logits import Measure, answers
from tests.tiny import narrow_dir

M_MMAP_THRESHOLD = -3
QUESTIONS = [[1, 4093, 198, 504]] * 16  # whose logits are 3 MiB at each token
MEASURE = Measure([], [], [1], QUESTIONS, pad=2, stop_token_ids=[], max_new_tokens=8)


def fetched(work: Callable[[], Any]) -> int:
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    work()
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before


def main() -> None:
    model = open_model(narrow_dir(), torch.float32, "cpu")
    ctypes.CDLL(None).mallopt(M_MMAP_THRESHOLD, 1 << 20)
    answers(model, MEASURE)  # what is fetched once
    plain = fetched(lambda: answer_ids(model, QUESTIONS, 2, [], 8))
    print(json.dumps({"plain": plain, "measured": fetched(lambda: answers(model, MEASURE))}))
