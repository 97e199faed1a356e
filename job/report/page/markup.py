"""Text of unknown origin in HTML: shown as it is, and nothing but shown. Whatever is not `Html` is escaped."""

from __future__ import annotations

import html
import re
from collections.abc import Collection, Sequence

from job.host.streams import harmless

VOID = {"meta", "link", "input", "rect", "line", "circle", "path", "property"}  # without content, they end at once
WIDE = 9  # columns of a table that is as wide as a sheet of paper
NO_CHARACTERS = re.compile("[\ufffe\uffff]")  # which XML does not take, as little as controls
Attribute = str | float | bool | None


class Html(str):
    """Markup that goes into a page as it is: made by `tag`, `text` and `joined` alone."""

    __slots__ = ()


def text(value: object) -> Html:
    """`value` as text."""
    return value if isinstance(value, Html) else Html(html.escape(plain(value)))


def plain(value: object) -> str:
    """What XML can hold; characters that control, such as those that turn a line around, as JSON escapes them."""
    whole = str(value).encode("utf-8", "replace").decode()  # halves of a character, which JSON can hold
    return NO_CHARACTERS.sub("\ufffd", harmless(whole))


def joined(*parts: object) -> Html:
    return Html("".join(map(text, parts)))


def tag(name: str, /, *children: object, **attributes: Attribute) -> Html:
    """An element. `class_` is class, `aria_label` aria-label; an attribute that is None or False is left out."""
    there = {key: value for key, value in attributes.items() if value is not None and value is not False}
    written = "".join(_attribute(key, value) for key, value in there.items())
    if name in VOID and not children:
        return Html(f"<{name}{written}/>")
    return Html(f"<{name}{written}>{joined(*children)}</{name}>")


def _attribute(key: str, value: Attribute) -> str:
    name = key.rstrip("_").replace("_", "-")
    return f" {name}" if value is True else f' {name}="{text(value)}"'


def cut(value: str, characters: int) -> str:
    """The beginning of a text, which says how much of it is left out."""
    left = len(value) - characters
    return value if left <= 0 else f"{value[:characters]}… ({left:,} more characters)"


def table(heads: Sequence[object], rows: Sequence[Sequence[object]], label: str, words: Collection[int] = ()) -> Html:
    """A table in a frame of its own that scrolls, and is small on paper if it is wide. The first cell of a row is its
    heading, all others are numbers but those of the columns `words`.
    """
    kinds = [None if column == 0 else "words" if column in words else "number" for column in range(len(heads))]
    head = tag("tr", *(tag("th", cell, scope="col", class_=kind) for cell, kind in zip(heads, kinds, strict=True)))
    body = []
    for first, *others in rows:
        cells = (tag("td", cell, class_=kind) for cell, kind in zip(others, kinds[1:], strict=True))
        body.append(tag("tr", tag("th", first, scope="row"), *cells))
    whole = tag("table", tag("thead", head), tag("tbody", *body))
    frame = "scroll wide" if len(heads) > WIDE else "scroll"
    return tag("div", whole, class_=frame, role="region", aria_label=label, tabindex="0")
