"""The part of an answer that counts, found by a pattern of the spec."""

from __future__ import annotations

import re
import warnings

from job.evaluation.metrics.record import Counts, Metric, Options, yes


def regex(answer: str, reference: str, options: Options) -> Counts | None:
    """Whether the pattern's first group is the same at its first place in answer and reference, white space at the
    ends aside; None where the reference has no such place.
    """
    wanted, found = (_first_group(options.regex or "", text) for text in (reference, answer))
    return None if wanted is None else yes(found == wanted)


def _first_group(pattern: str, text: str) -> str | None:
    place = re.search(pattern, text)
    found = place.group(1) if place else None
    return None if found is None else found.strip()


def pattern_fault(pattern: str) -> str:
    """Why it is not a regular expression, "" if it is one."""
    try:
        with warnings.catch_warnings(action="ignore"):  # about what a later Python may read otherwise
            re.compile(pattern)
    except (re.error, OverflowError, RecursionError) as error:
        return f"not a regular expression of Python: {error}"
    return ""


def wrong(pattern: str) -> str:
    if fault := pattern_fault(pattern):
        return fault
    return "" if re.compile(pattern).groups else "it has no group: put what is compared in ( )"


REGEX = Metric(
    "regex", "Regex match, 0 to 1", "share of answers in which the first group of `regex` is that of the reference",
    lower_is_better=False, lowest=0.0, highest=1.0, unfit="have no place that the pattern finds",
    of_answer=regex, option="regex", needs_option=True, wrong=wrong,
)  # fmt: skip
