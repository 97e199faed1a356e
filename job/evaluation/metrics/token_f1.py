"""Words that answer and reference share, as SQuAD counts them."""

from __future__ import annotations

import re
import string
from collections import Counter

from job.evaluation.metrics.record import Counts, Metric, Options

ARTICLES = re.compile(r"\b(a|an|the)\b")
PUNCTUATION = str.maketrans("", "", string.punctuation)


def words(text: str) -> list[str]:
    """Lower case, without ASCII punctuation and English articles."""
    return ARTICLES.sub(" ", text.lower().translate(PUNCTUATION)).split()


def token_f1(answer: str, reference: str, _: Options) -> Counts:
    """The harmonic mean of the shares of the answer's and the reference's words that are in both; where one of them
    has no word, whether the other has none either.
    """
    found, wanted = words(answer), words(reference)
    shared = sum((Counter(found) & Counter(wanted)).values())
    return (2 * shared / (len(found) + len(wanted)) if found or wanted else 1.0), 1.0


TOKEN_F1 = Metric(
    "token_f1", "Token F1, 0 to 1",
    "mean F1 of the words that answer and reference share, as in SQuAD: without case, punctuation and English articles",
    lower_is_better=False, lowest=0.0, highest=1.0, of_answer=token_f1,
)  # fmt: skip
