"""How much of its words an answer has in common with its reference: single ones, pairs, the longest sequence.

Not by rouge-score: it drops all letters but those of English, comes with nltk, and its figures for English are these.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable

from job.evaluation.metrics.record import Counts, Metric, Options

WORD = re.compile(r"[^\W_]+")


def in_common(size: int) -> Callable[[str, str, Options], Counts | None]:
    """The F-measure of what is in common of all runs of so many words; None for a reference without words."""

    def measure(answer: str, reference: str, _: Options) -> Counts | None:
        found, wanted = words(answer), words(reference)
        runs = [Counter(zip(*(side[begin:] for begin in range(size)), strict=False)) for side in (found, wanted)]
        both = (runs[0] & runs[1]).total()
        return (2 * both / (runs[0].total() + runs[1].total()) if both else 0.0, 1.0) if wanted else None

    return measure


def rouge_l(answer: str, reference: str, _: Options) -> Counts | None:
    """The F-measure of the longest common sequence of words; None for a reference without words."""
    found, wanted = words(answer), words(reference)
    return (2 * common(found, wanted) / (len(found) + len(wanted)), 1.0) if wanted else None


def words(text: str) -> list[str]:
    return WORD.findall(text.lower())


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


def rouge(name: str, title: str, of: str, of_answer: Callable[[str, str, Options], Counts | None]) -> Metric:
    about = (
        f"mean F-measure of {of} in common, in lower case and without stemming, as rouge-score has it for English; "
        "words of other scripts are words, too"
    )
    return Metric(
        name, f"{title}, 0 to 1", about, lower_is_better=False, lowest=0.0, highest=1.0, unfit="have no words",
        of_answer=of_answer,
    )  # fmt: skip


ROUGE_1 = rouge("rouge_1", "ROUGE-1", "the words", in_common(1))
ROUGE_2 = rouge("rouge_2", "ROUGE-2", "the pairs of neighbouring words", in_common(2))
ROUGE_L = rouge("rouge_l", "ROUGE-L", "the longest sequence of words", rouge_l)
