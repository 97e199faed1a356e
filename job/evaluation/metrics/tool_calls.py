"""Tools that are called: the right ones, and with the right arguments."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

from job.evaluation.metrics.json_text import read, same
from job.evaluation.metrics.record import Counts, Metric, Options, yes

Call = tuple[str, Any]  # name and arguments
ARGUMENTS = ("arguments", "parameters")
DECODER = json.JSONDecoder()


def calls(text: str) -> list[Call]:
    """The calls in a text, in their order, whatever a chat template puts around them: JSON objects with a name and
    arguments, which templates of Qwen, Hermes, Llama and Mistral write; arguments may be JSON in a string.
    """
    found: list[Call] = []
    start = text.find("{")
    while start >= 0:
        try:
            value, start = DECODER.raw_decode(text, start)
        except (ValueError, RecursionError):
            start += 1
        else:
            found += _calls_in(value)
        start = text.find("{", start)
    return found


def _calls_in(value: Any) -> Iterator[Call]:
    if isinstance(value, list):
        for item in value:
            yield from _calls_in(item)
    if not isinstance(value, dict):
        return
    given = next((value[key] for key in ARGUMENTS if key in value), None)
    if isinstance(value.get("name"), str) and given is not None:
        yield value["name"], _parsed(given)
    else:
        for item in value.values():
            yield from _calls_in(item)


def _parsed(arguments: Any) -> Any:
    try:
        return read(arguments) if isinstance(arguments, str) else arguments
    except ValueError:
        return arguments


def tool_names(answer: str, reference: str, _: Options) -> Counts | None:
    """Whether the answer calls the tools that the reference calls, in that order; None where that calls none."""
    wanted = calls(reference)
    return yes([name for name, _ in calls(answer)] == [name for name, _ in wanted]) if wanted else None


def tool_calls(answer: str, reference: str, _: Options) -> Counts | None:
    """The same, and with the same arguments."""
    wanted = calls(reference)
    return yes(same([*map(list, calls(answer))], [*map(list, wanted)])) if wanted else None


TOOL_NAMES = Metric(
    "tool_names", "Tool names, 0 to 1", "share of answers that call the tools that the reference calls, in its order",
    lower_is_better=False, lowest=0.0, highest=1.0, unfit="call no tool", of_answer=tool_names,
)  # fmt: skip
TOOL_CALLS = Metric(
    "tool_calls", "Tool calls, 0 to 1", "share of answers that call them with the same arguments as well",
    lower_is_better=False, lowest=0.0, highest=1.0, unfit="call no tool", of_answer=tool_calls,
)  # fmt: skip
