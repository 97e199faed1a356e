"""Text of unknown origin in Markdown: shown as it is, and nothing but shown."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence

NOTHING = "–"
LONGEST = 200
BACKTICKS = re.compile("`+")


def code(text: object) -> str:
    """One line of inline code, shortened; a dash for nothing."""
    line = " ".join(str(text).split())
    line = _printable(line[:LONGEST] + "…" if len(line) > LONGEST else line)
    if not line:
        return NOTHING
    ticks = _fence(line, 1)
    pad = " " if line.startswith("`") or line.endswith("`") else ""
    return f"{ticks}{pad}{line}{pad}{ticks}"


def block(text: str, language: str = "") -> list[str]:
    """Lines of a fenced block that holds `text`, whatever fences that has itself."""
    lines = [_printable(line) for line in text.splitlines()]
    fence = _fence(text, 3)
    return [f"{fence}{language}", *lines, fence, ""]


def table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> list[str]:
    """Lines of a table; none without rows. A bar in a cell becomes a broken bar: no escape is safe everywhere."""
    cells = [" | ".join(cell.replace("|", "¦") for cell in row) for row in rows]
    return [f"| {' | '.join(head)} |", f"|{'---|' * len(head)}", *(f"| {row} |" for row in cells), ""] if cells else []


def figure(value: object, digits: int = 4) -> str:
    """A number to so many digits, anything else that is not text as it is written."""
    if value is None:
        return NOTHING
    return f"{value:.{digits}g}" if isinstance(value, float) else str(value)


def money(amount: float | None) -> str:
    """Of no currency, to the hundredth, or to two digits where that is more."""
    return NOTHING if amount is None else f"{amount:.2f}" if amount >= 1 else f"{amount:.2g}"


def sentence(words: str) -> str:
    """`words`, which begin as within a sentence, as one of their own."""
    return f"{words[:1].upper()}{words[1:]}."


def _printable(text: str) -> str:
    return "".join(character if character.isprintable() or character == "\t" else "�" for character in text)


def _fence(text: str, shortest: int) -> str:
    return "`" * max(shortest, 1 + max((len(run) for run in BACKTICKS.findall(text)), default=0))
