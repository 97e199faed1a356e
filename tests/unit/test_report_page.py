"""report.html: what it says, that nothing in it is taken for markup, that it can be read by everybody."""

from __future__ import annotations

import base64
import hashlib
import re
from html.parser import HTMLParser
from importlib import resources
from pathlib import Path
from typing import Any

import pytest

from job.evaluation.metrics import METRICS
from job.report.gates import FAILED, GATES, PASSED, Gate, gates_of
from job.report.page.charts import MOST_POINTS, Series, columns, lines
from job.report.page.markup import tag, text
from job.report.page.measures import curve_title
from job.report.page.run import run_page, write_page
from job.report.verdict import verdict
from tests.browser import DESK, PHONE, browser, found
from tests.reports import BASE, TUNED, files, shown, spoiled, statistics

LONGEST = 2_000_000
PAPER = 703  # pixels of A4 within the page's margins
HOSTILE = (
    "</script><script>document.title='taken'</script>",
    '"><img src=x onerror="document.title=\'taken\'">',
    "'><svg onload=document.title='taken'>",
    "<!-- <style>*{display:none}</style> ]]> --!>",
    "\u202egnp.exe \u2066 \x00\x07 \ud800",
    "&lt;b&gt; &#60;i&#62; &amp;amp;",
    "</textarea></title></style><base href=//elsewhere>",
)
ATTACK = "".join(HOSTILE)


class Elements(HTMLParser):
    """Every element with its attributes, and the texts between them."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.found: list[tuple[str, dict[str, str | None]]] = []
        self.texts: list[str] = []
        self.feed(page)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.found.append((tag, dict(attrs)))

    def handle_data(self, data: str) -> None:
        self.texts.append(data)

    def all(self, name: str) -> list[dict[str, str | None]]:
        return [attributes for tag, attributes in self.found if tag == name]

    @property
    def said(self) -> str:
        return re.sub(r"\s+", " ", "".join(self.texts))


def test_it_says_what_came_of_the_run() -> None:
    said = Elements(run_page(shown())).said
    verdict = "The tuned model is better than its base in all 3 measures, and all 6 gates held: held-out loss 3.5 → 0.5"
    assert verdict in said
    assert "Does org/name, tuned by LoRA of rank 16 on 4-bit weights on 100 rows of rows.jsonl" in said
    assert "3.5 → 0.5better by 3" in said
    assert "exact match at least 0.50.75holds" in said
    assert "gguf-q8_0: it is not within its limits, found kl 0.7" in said
    assert "0.50 GB0.51 GB+2.0 %" in said, "planned against taken"
    assert "Scratch disk, at most4.00 GB3.00 GB-25 %" in said
    assert "Time of train40.0 s50.0 s+25 %" in said
    assert "Cost: 0.06, 0.03 hours at 2.5 an hour" in said
    assert "no held-out sequence is trained on" in said
    assert "sha256 " + "1" * 64 in said
    assert "20 steps, 4,000 tokens in 48.0 s" in said


def test_what_is_learned_of_a_row_is_marked() -> None:
    assert "<mark>It is on.</mark>" in run_page(shown())


def test_questions_are_shown_without_the_text_of_the_template() -> None:
    page = run_page(shown())
    assert '<p class="asked" dir="auto">Turn on the lamp.</p>' in page
    assert '<p class="asked" dir="auto">Question 7</p>' in page
    assert "&lt;u&gt;" not in page.replace("&lt;u&gt;Turn", "")
    alone = run_page(shown(spec={"/evaluation/prompts": []}))
    assert "&lt;u&gt;Question 7&lt;/u&gt;" in alone, "where no prompt tells what the template writes"


def test_answers_are_judged_as_the_figure_is() -> None:
    states = [
        attributes["data-state"] for attributes in Elements(run_page(shown())).all("li") if "data-state" in attributes
    ]
    assert (states.count("gained"), states.count("wrong"), states.count("open")) == (30, 10, 1)
    assert run_page(shown()).count("(nothing: this prompt has no reference)") == 1


@pytest.mark.parametrize(
    ("base", "tuned", "kind", "words"),
    [
        (BASE, TUNED, "good", "better than its base in all 3 measures"),
        (TUNED, BASE, "bad", "worse than its base in all 3 measures"),
        (TUNED, TUNED, "even", "In all 3 measures, no difference between the tuned model and its base is shown."),
        (
            BASE,
            TUNED | {"exact_match": -1.0},
            "even",
            "better than its base in 2 of 3 measures, and worse in exact match 0 → -1",
        ),
        (BASE | {"other": 1.0}, TUNED | {"other": 2.0}, "good", "all 3 measures"),
        ({}, {"exact_match": 0.5}, "even", "no figure says whether it is better"),
        ({"exact_match": 0.5}, {"exact_match": 0.75}, "good", "better than its base in the one measure"),
    ],
    ids=["better", "worse", "equal", "mixed", "a figure of unknown direction", "nothing to compare", "one"],
)
def test_the_verdict(base: dict[str, float], tuned: dict[str, float], kind: str, words: str) -> None:
    stats = statistics(evaluation={"base": base, "trained": tuned})
    found_kind, sentence = verdict(stats, [])
    assert (found_kind, words in sentence) == (kind, True), sentence


def test_a_difference_that_may_be_chance_is_none() -> None:
    """Bounds of the difference, where a run has them, decide: here those of exact match have 0 between them."""
    bounded = {
        "held_out_loss": {
            "rows": 8,
            "of": 8,
            "difference": -3.0,
            "interval": [-3.5, -2.5],
            "base": [3.0, 4.0],
            "trained": [0.4, 0.6],
        },
        "exact_match": {"rows": 8, "of": 8, "difference": 0.75, "interval": [-0.1, 0.9]},
    }
    stats = statistics() | {"evaluation": {"base": BASE, "trained": TUNED, "differences": bounded}}
    assert "better than its base in 2 of 3 measures: held-out loss" in verdict(stats, [])[1]
    said = Elements(run_page(shown(stats))).said
    assert "3.5 → 0.5better by 3 (2.5 to 3.5)" in said
    assert "0 → 0.75no difference shown (-0.1 to 0.9)" in said
    assert "3.5 3 to 40.5 0.4 to 0.6-3 -3.5 to -2.58" in said


def test_losses_of_other_methods_have_charts_of_their_own() -> None:
    """What a method lowers is shown beside its training loss; the loss of tokens is another figure."""
    measured = [{"step": 5, "held_out_preference_loss": 0.6}, {"step": 5, "loss": 0.69, "reward_margin": 0.1}]
    page = run_page(shown(given={"report/losses.jsonl": measured}))
    charts = [str(a["aria-label"]) for a in Elements(page).all("svg") if a.get("role") == "img"]
    assert charts[0] == "Loss: training: 0.69 at first, 0.69 at last; held-out: 0.6 at first, 0.6 at last"
    assert charts[1:3] == [
        "Reward margin: reward_margin: 0.1 at first, 0.1 at last",
        "Held-out loss: held_out_loss: 3.5 at first, 0.5 at last",
    ]


@pytest.mark.parametrize(
    ("name", "title"),
    [
        ("reward", ("Reward", "mean of a step")),
        ("reward_contains", ("Reward: contains", "")),
        ("reward_margin", ("Reward margin", "")),
        ("kl", ("KL from the reference", "nats")),
        ("held_out_loss", ("Held-out loss", "nats a token")),
        ("something_else", ("Something else", "")),
    ],
)
def test_curves_have_titles_that_people_read(name: str, title: tuple[str, str]) -> None:
    assert curve_title(name) == title


def test_of_many_figures_those_of_gates_and_the_worse_ones_have_boxes() -> None:
    names = [f"task{n}:acc" for n in range(12)]
    base, tuned = dict.fromkeys(names, 0.5), dict.fromkeys(names, 0.6) | {"task11:acc": 0.4}
    stats = statistics(evaluation={"base": BASE | base, "trained": TUNED | tuned})
    found = Elements(run_page(shown(stats)))
    boxed = re.findall(r"(task\d+): acc, 0 to 10", found.said.partition("more figures")[0])
    assert boxed == ["task0", "task1", "task2", "task3", "task11"], (
        "and three of held-out rows, two of which have gates"
    )
    assert "7 more figures of both models below" in found.said
    assert "more figures" not in Elements(run_page(shown())).said


def test_the_verdict_counts_the_gates_that_hold() -> None:
    gates = [Gate(GATES, "merged", "exact match at least 0.5", result, "0.1") for result in (PASSED, FAILED)]
    assert "and 1 of 2 gates held" in verdict(statistics(), gates)[1]
    assert "and both gates held" in verdict(statistics(), [gates[0]] * 2)[1]


def test_a_failure_is_the_verdict() -> None:
    failure = {
        "class": "GateError",
        "exit_code": 14,
        "stage": "evaluate",
        "message": "trained does not pass",
        "run_id": "",
        "faults": 1,
    }
    stats = statistics(failure=failure, status="failed")
    assert verdict(stats, gates_of(shown().spec, stats)) == (
        "bad",
        "The run failed at the stage evaluate with exit code 14: trained does not pass.",
    )
    early = statistics(
        failure=failure, status="failed", phases=[], training={}, evaluation={}, delivered={}, effective={}
    )
    page = run_page(
        shown(
            early, {"report/answers.json": None, "report/losses.jsonl": [], "report/exports.json": None}, provenance={}
        )
    )
    assert "Failed" in Elements(page).said


# ---------------------------------------------------------------------------------------------- attacks


def attacked() -> str:
    stats = statistics() | {
        "evaluation": {name: figures | {ATTACK: 1.0} for name, figures in (("base", BASE), ("trained", TUNED))}
    }
    words = ("held_out_words", "notes", "name", "what", "cpu_name", "message")
    stats = spoiled_members(stats, words) | {"packages": {ATTACK: ATTACK}, "effective": {ATTACK: ATTACK}}
    stats["data"]["notes"] = [ATTACK]
    given = {key: spoiled(value, lambda text: ATTACK) for key, value in files().items()}
    given["report/losses.jsonl"] = [{"step": n, "loss": 1.0, ATTACK: float(n)} for n in range(3)]
    given["report/exports.json"]["artefacts"][0] |= {"limits": {ATTACK: 1.0}, "figures": {"kl": 0.1}}
    source = {"source": "/" + HOSTILE[0] + HOSTILE[1] + HOSTILE[3], "format": "messages"}
    spec = {"/evaluation/prompts": [ATTACK.replace("\ud800", "")], "/data/train/0": source, "/evaluation/gates": []}
    provenance = {
        "base": {"public_id": ATTACK, "revision": ATTACK},
        "data": [{"source": ATTACK, "split": ATTACK, "sha256": ATTACK}],
    }
    return run_page(shown(stats, given, spec, provenance))


def spoiled_members(value: Any, names: tuple[str, ...]) -> Any:
    if isinstance(value, dict):
        return {
            key: ATTACK if key in names and isinstance(inner, str) else spoiled_members(inner, names)
            for key, inner in value.items()
        }
    return [spoiled_members(inner, names) for inner in value] if isinstance(value, list) else value


def test_nothing_of_a_text_is_markup() -> None:
    """The elements are those of the same page with harmless texts, their attributes too."""
    page = attacked()
    elements = Elements(page)
    assert {name for name, _ in elements.found} <= {name for name, _ in Elements(run_page(shown())).found}
    assert (page.count("<script"), page.count("<style"), len(elements.all("base")), len(elements.all("img"))) == (
        1,
        1,
        0,
        0,
    )
    names = {name for _, attributes in elements.found for name in attributes}
    assert not {name for name in names if name.startswith("on")}
    assert "style" not in names
    assert all(
        str(attributes["href"]).startswith(("#", "data:,")) for _, attributes in elements.found if "href" in attributes
    )
    assert page.count("taken") > 20, "they are all shown, as text"


def test_what_turns_text_around_or_cannot_be_written_is_shown_as_an_escape() -> None:
    page = attacked()
    assert not re.search("[\u202a-\u202e\u2066-\u2069\x00\x07]", page)
    assert r"\u202egnp.exe" in page
    page.encode("utf-8")
    assert text("\ufffe") == "\ufffd"


def test_the_policy_lets_nothing_but_its_own_style_and_script(tmp_path: Path) -> None:
    page = run_page(shown())
    (policy,) = re.findall(r'Content-Security-Policy" content="([^"]*)"', page)
    assert policy.startswith("default-src &#x27;none&#x27;;")
    assert "unsafe" not in policy
    for name in ("style", "script"):
        (content,) = re.findall(f"<{name}>(.*?)</{name}>", page, re.DOTALL)
        assert base64.b64encode(hashlib.sha256(content.encode()).digest()).decode() in policy
    assert not re.findall(r"(?:https?:)?//[a-z]", page.replace("hf://org", "")), "it names no address"


def test_it_stays_small_and_says_what_it_leaves_out() -> None:
    huge = [{"prompt": "p" * 10**5, "reference": None, "base": "&" * 10**5, "trained": "t"}] * 2000
    losses = [{"step": n, "loss": 1 / n, **{f"figure {m}": 1.0 * n for m in range(5)}} for n in range(1, 20_000)]
    sample = {"tokens": 10**6, "learned": 1, "runs": [[False, "<" * 10**6], [True, "x"]]}
    page = run_page(
        shown(given={"report/answers.json": huge, "report/losses.jsonl": losses, "report/samples.json": [sample] * 9})
    )
    assert len(page.encode()) < LONGEST
    kept = page.count('class="answer"')
    assert f"{2000 - kept:,} more are in report/answers.json" in page
    assert "(98,000 more characters)" in page
    assert f"{MOST_POINTS} of 19,999 points are drawn." in page
    assert "the whole of it is in report/samples.json" in page


def test_elements_keep_zero_and_leave_out_what_is_absent() -> None:
    assert (
        tag("p", "<b>", x=0, class_="a&b", hidden=False, title=None, open=True)
        == '<p x="0" class="a&amp;b" open>&lt;b&gt;</p>'
    )


LARGE = (0.0, 5e-324, 1e-300, 1e-29, 1e-12, 1.0, 1e15, 1e29)


@pytest.mark.parametrize("first", [*LARGE, -1.0, -1e29])
@pytest.mark.parametrize("last", [*LARGE, -1e-300])
def test_whatever_a_training_has_logged_is_drawn(first: float, last: float) -> None:
    for steps in ((1, 2), (0, 0), (-5, 10**18)):
        assert "<circle" in lines("Loss", "", [Series("x", list(zip(steps, (first, last), strict=True)), 1)])


def test_what_is_too_large_for_a_chart_is_said() -> None:
    chart = lines("Loss", "", [Series("x", [(1, 3.0), (2, 1e308), (3, -1e308), (4, 2.0)], 1)])
    assert "2 beyond 1e+30 are left out." in chart
    assert 'aria-label="Loss: x: 3 at first, 2 at last"' in chart
    assert lines("Loss", "", [Series("x", [(1, 1e308)], 1)]) == ""


def test_a_curve_has_its_figures_in_words() -> None:
    chart = lines("Loss", "nats a token", [Series("training", [(1, 4.0), (2, 0.04)], 1), Series("none", [], 2)])
    assert 'aria-label="Loss: training: 4 at first, 0.04 at last"' in chart
    assert "logarithmic" in chart
    assert "<title>step 2: training 0.04</title>" in chart
    assert lines("Loss", "", [Series("none", [], 1)]) == ""
    flat = lines("Rate", "", [Series("rate", [(1, 0.0), (2, 0.0)], 1)])
    assert "nan" not in flat
    beside = re.findall(r">([-.0-9]+)</text>", lines("Margin", "", [Series("margin", [(0, -1.9), (20_000, 2)], 1)]))
    assert beside == ["-2", "-1", "0", "1", "2", "0"], "and steps as 5,000"


def test_a_column_has_its_count_over_it_and_under_the_pointer() -> None:
    chart = columns("Lengths", "tokens", [("<=64", 1234), ("<=128", 3)])
    assert re.findall(r'class="value">([^<]+)<', chart) == ["1,234", "3"]
    assert "<title>&lt;=64: 1,234</title>" in chart


# ---------------------------------------------------------------------------------------------- for everybody


def colours(style: str) -> list[dict[str, str]]:
    """The variables of each theme: light, dark, print."""
    return [
        dict(re.findall(r"--([a-z0-9-]+): (#[0-9a-f]+)", block))
        for block in re.findall(r":root \{(.*?)\}", style, re.DOTALL)
    ]


def contrast(first: str, second: str) -> float:
    """As WCAG 2 defines it."""

    def luminance(colour: str) -> float:
        digits = colour.lstrip("#")
        digits = digits if len(digits) == 6 else "".join(2 * digit for digit in digits)
        linear = [
            c / 12.92 if c <= 0.03928 else ((c + 0.055) / 1.055) ** 2.4
            for c in (int(digits[i : i + 2], 16) / 255 for i in (0, 2, 4))
        ]
        return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]

    light, dark = sorted((luminance(first), luminance(second)), reverse=True)
    return (light + 0.05) / (dark + 0.05)


@pytest.mark.parametrize("theme", [0, 1, 2], ids=["light", "dark", "print"])
def test_texts_stand_out(theme: int) -> None:
    known = colours((resources.files("job.report.page") / "style.css").read_text("utf-8"))[theme]
    pairs = [(ink, ground) for ink in ("ink", "soft") for ground in ("page", "card", "field")]
    pairs += [("good", "good-back"), ("bad", "bad-back"), ("even", "even-back"), ("good", "card"), ("bad", "card"),
              ("mark-ink", "mark"), ("link", "page")]  # fmt: skip
    assert {
        pair: round(contrast(known[pair[0]], known[pair[1]]), 1)
        for pair in pairs
        if contrast(known[pair[0]], known[pair[1]]) < 4.5
    } == {}
    assert [name for name in known if re.fullmatch(r"c\d", name) and contrast(known[name], known["card"]) < 3] == []


def test_tables_charts_and_fields_have_names() -> None:
    elements = Elements(run_page(shown()))
    assert elements.all("html") == [{"lang": "en"}]
    assert all(attributes.get("scope") in ("col", "row") for attributes in elements.all("th"))
    assert len(elements.all("table")) == len(
        [a for a in elements.all("div") if a.get("role") == "region" and a["aria-label"]]
    )
    drawn = [a for a in elements.all("svg") if a.get("role") == "img"]
    assert drawn
    assert all(attributes["aria-label"] for attributes in drawn)
    assert all(a.get("role") == "img" or a.get("aria-hidden") == "true" for a in elements.all("svg"))
    assert all(attributes.get("aria-label") for name in ("input", "select") for attributes in elements.all(name))
    headings = [name for name, _ in elements.found if name in ("h1", "h2", "h3")]
    assert headings[0] == "h1"
    assert headings.count("h1") == 1
    anchors = {str(a["href"])[1:] for a in elements.all("a")}
    assert anchors == {a["id"] for a in elements.all("section")}
    identifiers = [a["id"] for _, a in elements.found if "id" in a]
    assert len(identifiers) == len(set(identifiers))


def many_figures() -> str:
    """A page with as many figures as a run can have without benchmarks, and three of these."""
    measured = dict.fromkeys(METRICS, 0.123456) | {f"task{number}:acc": 0.5 for number in range(3)}
    stats = statistics(evaluation={"base": measured, "trained": measured})
    exported = {"kl": 0.0001234, "same_top_token": 0.999}
    artefacts = {"base": measured, "trained": measured, "merged": measured | exported}
    return run_page(shown(stats | {"delivered": stats["delivered"] | {"artefacts": artefacts}}))


def test_tables_that_paper_is_too_narrow_for_are_smaller_there() -> None:
    wide = [frame["aria-label"] for frame in Elements(many_figures()).all("div") if frame.get("class") == "scroll wide"]
    assert wide == ["Figures of base, tuned model and everything that is delivered"]
    assert not [frame for frame in Elements(run_page(shown())).all("div") if frame.get("class") == "scroll wide"]


@pytest.mark.skipif(not found(), reason="no Chromium (make page-tools)")
def test_every_table_fits_on_paper(tmp_path: Path) -> None:
    (path := tmp_path / "many.html").write_text(many_figures(), "utf-8")
    with browser() as chromium:
        tab = chromium.page()
        tab.look(path, PAPER)
        tab.ask("Emulation.setEmulatedMedia", media="print")
        frames = (
            "[...document.querySelectorAll('.scroll')].map(f => [f.clientWidth, f.querySelector('table').offsetWidth])"
        )
        sizes = tab.say(frames)
        assert len(sizes) > 3
        assert [size for size in sizes if size[1] > size[0]] == []


@pytest.mark.skipif(not found(), reason="no Chromium (make page-tools)")
def test_a_browser_shows_it_at_every_width_and_finds_nothing_wrong(tmp_path: Path) -> None:
    """Light and dark, a desk and a phone, harmless and hostile: no complaint, no request, none scrolls aside."""
    page = write_page(shown(), tmp_path)
    hostile = tmp_path / "hostile.html"
    hostile.write_text(attacked(), "utf-8")
    with browser() as chromium:
        tab = chromium.page()
        for path, dark, width in (
            (page, False, DESK),
            (page, True, PHONE),
            (hostile, False, PHONE),
            (hostile, True, DESK),
        ):
            tab.look(path, width, dark)
            assert tab.complaints == []
            assert tab.say("[document.documentElement.scrollWidth, innerWidth]") == [width, width]
            assert "taken" not in tab.say("document.title").replace(ATTACK, "")
            grounds = {False: "rgb(244, 245, 247)", True: "rgb(14, 17, 22)"}
            assert tab.say("getComputedStyle(document.body).backgroundColor") == grounds[dark]
        assert {address for address in tab.requests if not address.startswith("data:")} == {
            page.as_uri(),
            hostile.as_uri(),
        }
        tab.look(page)
        seen = "[...document.querySelectorAll('.answer')].filter(a => a.offsetParent).length"
        assert tab.say(seen) == 10
        typed = "{const i = document.querySelector('input'); i.value = '%s'; i.dispatchEvent(new Event('input')); %s}"
        assert tab.say(typed % ("question 1", seen)) == 11, "1 and 10 to 19"
        assert tab.say("document.querySelector('output').textContent") == "11 of 41"
        assert tab.say(typed % ("nothing at all", seen)) == 0
        chosen = (
            "{const s = document.querySelector('select'); s.value = 'wrong'; s.dispatchEvent(new Event('change')); %s}"
        )
        assert tab.say(typed % ("", chosen % seen)) == 10
        assert tab.say(chosen.replace("wrong", "") % seen) == 10
        assert tab.say("document.querySelector('button').click()") is None
        assert tab.say(seen) == 41
        tab.printed(tmp_path / "page.pdf")
        assert (tmp_path / "page.pdf").read_bytes().startswith(b"%PDF")
