"""The page around the sections: one file that loads nothing, in which nothing but its own style and script counts."""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from importlib import resources

from job import __version__
from job.report.page.markup import Html, joined, tag, text


@dataclass(frozen=True)
class Section:
    """`anchor`: its id. `lead`: a sentence or two on what it shows. Left out where there is no `body`."""

    anchor: str
    title: str
    body: Html
    lead: object = ""


def page(title: str, header: Html, sections: Sequence[Section], written: str) -> str:
    """The whole document. `written`: what it is, for its foot."""
    shown = [section for section in sections if section.body]
    links = [tag("li", tag("a", section.title, href=f"#{section.anchor}")) for section in shown]
    nav = tag("nav", tag("ul", *links), aria_label="Sections")
    body = [
        tag("header", header, nav),
        tag("main", *map(_section, shown)),
        tag("footer", tag("p", f"{written} tunejob {__version__}. The file loads nothing from anywhere.")),
    ]
    head = joined(
        tag("meta", charset="utf-8"),
        tag("meta", http_equiv="Content-Security-Policy", content=_policy()),
        tag("meta", name="viewport", content="width=device-width, initial-scale=1"),
        tag("meta", name="color-scheme", content="light dark"),
        tag("meta", name="referrer", content="no-referrer"),
        tag("link", rel="icon", href="data:,"),
        tag("title", title),
        tag("style", _own("style.css")),
    )
    whole = tag("html", tag("head", head), tag("body", *body, tag("script", _own("page.js"))), lang="en")
    return f"<!doctype html>\n{whole}\n"


def _section(section: Section) -> Html:
    heading = f"{section.anchor}-title"
    lead = tag("p", section.lead, class_="lead") if section.lead else ""
    title = tag("h2", section.title, id=heading)
    return tag("section", title, lead, section.body, id=section.anchor, aria_labelledby=heading)


@cache
def _own(name: str) -> Html:
    """A file of this package: it may not hold what would end its element."""
    return Html("\n" + (resources.files(__package__) / name).read_text("utf-8"))


def _policy() -> str:
    """Nothing is loaded or sent, no style and no script but those of this package."""
    style, script = (
        "'sha256-" + base64.b64encode(hashlib.sha256(_own(name).encode()).digest()).decode() + "'"
        for name in ("style.css", "page.js")
    )
    own = f"style-src {style}; script-src {script}; img-src data:"
    return f"default-src 'none'; {own}; base-uri 'none'; form-action 'none'"


def facts(rows: Sequence[tuple[str, object]]) -> Html:
    """Names and values, those left out that are empty."""
    known = [(name, value) for name, value in rows if value not in ("", None)]
    return (
        tag("dl", *(joined(tag("dt", name), tag("dd", value)) for name, value in known), class_="facts")
        if known
        else Html()
    )


def tiles(items: Sequence[tuple[str, object, object]]) -> Html:
    """Figures in boxes: name, figure, and a line below it."""
    boxes = [
        tag(
            "li",
            tag("span", name, class_="name"),
            tag("span", figure, class_="figures"),
            tag("span", below, class_="change") if below else "",
            class_="tile",
        )
        for name, figure, below in items
    ]
    return tag("ul", *boxes, class_="tiles") if boxes else Html()


def badge(words: str, kind: str) -> Html:
    return tag("span", words, class_=f"badge {kind}")


def bullets(notes: Sequence[object]) -> Html:
    return tag("ul", *(tag("li", text(note)) for note in notes), class_="notes") if notes else Html()
