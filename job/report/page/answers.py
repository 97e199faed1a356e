"""What base and tuned model answered, side by side, with a search."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from job.report.kept import ANSWERS, Kept, is_expected, question, surroundings
from job.report.page.markup import Html, cut, joined, tag
from job.report.page.shell import badge
from job.spec.sections import prompt_texts

SHOWN_BYTES = 900_000  # of all answers together, as HTML
SHOWN_CHARACTERS = 2000  # of a text
FIND = "Find in questions and answers"
NOT_KNOWN = "(nothing: this prompt has no reference)"
FIRST = 10  # of them are seen before more are asked for
STATES = {  # of the base's answer and the tuned model's: right or not
    (False, True): ("gained", "now right, wrong before"),
    (True, False): ("lost", "now wrong, right before"),
    (True, True): ("right", "right before and now"),
    (False, False): ("wrong", "wrong before and now"),
}
Json = Mapping[str, Any]


def answers(kept: Kept) -> Html:
    """As many as the page has room for; it says how many are left out. Nothing without answers."""
    around = surroundings(kept.answers, prompt_texts(kept.spec.evaluation.prompts))
    shown, left = [], SHOWN_BYTES
    for row in kept.answers:
        item = _answer(row, around)
        left -= len(item.encode())
        if left < 0:
            break
        shown.append(item)
    if not shown:
        return Html()
    rest = len(kept.answers) - len(shown)
    note = f"{rest:,} more are in {ANSWERS}: this page has no room for them." if rest else ""
    return joined(
        tag(
            "div",
            _search(kept.answers),
            tag("ol", *shown, class_="answers"),
            tag("button", f"Show all {len(shown)}", type="button", hidden=True),
            data_answers=str(FIRST),
        ),
        tag("p", note, class_="note") if note else "",
    )


def _answer(row: Json, around: tuple[str, str]) -> Html:
    base, tuned, reference = (row.get(name) for name in ("base", "trained", "reference"))
    right = [is_expected(given, reference) for given in (base, tuned)]
    sides = [_side("base", "Base", base, right[0]), _side("tuned", "Tuned", tuned, right[1])]
    sides.append(_side("expected", "Expected", NOT_KNOWN if right[1] is None else reference, None))
    state = "open" if right[1] is None else STATES[bool(right[0]), right[1]][0]
    asked = tag("p", cut(question(row, around), SHOWN_CHARACTERS), class_="asked", dir="auto")
    return tag("li", asked, tag("dl", *sides, class_="sides"), class_="answer", data_state=state)


def _side(kind: str, title: str, said: object, right: bool | None) -> Html:
    mark = "" if right is None else badge("right", "good") if right else badge("not equal", "even")
    words = cut(str(said), SHOWN_CHARACTERS) if said else "(nothing)"
    return tag("div", tag("dt", tag("span", title), mark), tag("dd", words, class_="said", dir="auto"),
               class_=f"side {kind}")  # fmt: skip


def _search(rows: Sequence[Json]) -> Html:
    known = any(isinstance(row.get("reference"), str) for row in rows)
    kinds = [("", "all answers"), *STATES.values()]
    options = [tag("option", words, value=key) for key, words in kinds]
    field = tag("input", type="search", placeholder=FIND, aria_label=FIND)
    choice = tag("select", *options, aria_label="Which answers are shown") if known else ""
    return tag("div", field, choice, tag("output", aria_live="polite", class_="soft"), class_="find", hidden=True)
