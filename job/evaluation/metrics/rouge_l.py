"""The longest sequence of words that answer and reference have in common."""

from __future__ import annotations

import re

from job.evaluation.metrics.record import Counts, Metric, Options

WORD = re.compile(r"[^\W_]+")


def rouge_l(answer: str, reference: str, _: Options) -> Counts | None:
    """The F-measure of its shares of both, in lower-case words; None for a reference without words."""
    found, wanted = WORD.findall(answer.lower()), WORD.findall(reference.lower())
    return (2 * common(found, wanted) / (len(found) + len(wanted)), 1.0) if wanted else None


def common(first: list[str], second: list[str]) -> int:
    """The length of the longest common subsequence, a bit for each word of `first`: a zero for each that is in it."""
    places: dict[str, int] = {}
    for index, word in enumerate(first):
        places[word] = places.get(word, 0) | 1 << index
    whole = left = (1 << len(first)) - 1
    for word in second:
        met = left & places.get(word, 0)
        left = ((left + met) | (left - met)) & whole
    return len(first) - left.bit_count()


ROUGE_L = Metric(
    "rouge_l", "ROUGE-L, 0 to 1",
    "mean F-measure of the longest common sequence of words, in lower case and without stemming, as rouge-score has it "
    "for English; words of other scripts are words, too",
    lower_is_better=False, lowest=0.0, highest=1.0, unfit="have no words", of_answer=rouge_l,
)  # fmt: skip
