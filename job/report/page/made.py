"""What was made of the training, and where it comes from: exports, environment, provenance."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

from job.report.figures import loss_of_perplexity
from job.report.gates import EXPORTS, Gate
from job.report.kept import Kept, number
from job.report.markdown import NOTHING, figure
from job.report.page.charts import bar
from job.report.page.cost import gigabytes
from job.report.page.markup import Html, cut, joined, table, tag
from job.report.page.measures import head, result
from job.report.page.shell import facts

SPEC_CHARACTERS = 60_000
TEST_FIGURES = {
    "kl": "KL, nats a token",
    "same_top_token": "Same first choice, % of tokens",
    "tokens_per_second": "Speed here, tokens a second",
}
NOTE = (
    "The test is on every token of the compared rows, learned or not: merged weights must say what adapter and base "
    "say, all else what the merged weights say. How good each is at the learned tokens is under Figures."
)
Json = Mapping[str, Any]


def exports(kept: Kept, gates: Sequence[Gate]) -> Html:
    """Size and test of every export, and what was refused."""
    made: Sequence[Json] = kept.exports.get("artefacts", [])
    tests = [gate for gate in gates if gate.suite == EXPORTS]
    if not tests:
        return Html()
    largest = max((fact["bytes"] for fact in made), default=1) or 1
    names = [name for name in TEST_FIGURES if any(name in fact["figures"] for fact in made)]
    facts_of = {fact["name"]: fact for fact in made}
    rows: list[list[object]] = []
    for gate in tests:
        fact = facts_of.get(gate.about, {"bytes": 0, "figures": {}})
        figures = fact["figures"]
        size = gigabytes(fact["bytes"]) if fact["bytes"] else NOTHING
        shown = [figure(loss_of_perplexity(figures.get("perplexity"))), *(_shown(n, figures.get(n)) for n in names)]
        rows.append([gate.about, bar(fact["bytes"] / largest, 1), size, *shown, gate.asked, result(gate)])
    titles = ["Loss, nats a token", *(TEST_FIGURES[name] for name in names)]
    heads = ["Export", "Of the largest", "Size", *map(head, titles), "Limits", "Test"]
    refused = [gate for gate in tests if gate.said and gate.about not in facts_of]
    said = [tag("p", f"{gate.about}: {gate.said}", class_="note") for gate in refused]
    whole = table(heads, rows, "Exports", words=(1, len(heads) - 2, len(heads) - 1))
    return joined(whole, *said, tag("p", NOTE, class_="note"))


def _shown(name: str, value: Any) -> str:
    known = number(value)
    return NOTHING if known is None else f"{100 * known:.2f}" if name == "same_top_token" else figure(known, 3)


def environment(kept: Kept) -> Html:
    """The machine, what was used where the spec leaves it open, and versions."""
    device, effective = kept.stats["device"], kept.stats["effective"]
    if not device:
        return Html()
    memory = f", {gigabytes(device['total_memory_bytes'])}, capability {device['capability']}"
    gpu = memory if device["kind"] == "cuda" else ""
    host = f"{device.get('cpu_cores', NOTHING)} cores, {gigabytes(device.get('host_memory_bytes', 0))}"
    rows = [
        ("Trained on", f"{device['name']}{gpu}"),
        ("Host", f"{device.get('cpu_name', '')} ({device.get('cpu_instructions', '')}), {host}"),
        *((str(key).replace("_", " ").capitalize(), _plain(value)) for key, value in effective.items()),
    ]
    versions = [(name, version) for name, version in kept.stats["packages"].items()]
    return joined(facts(rows), tag("details", tag("summary", "Versions of packages"), facts(versions)))


def _plain(value: Any) -> str:
    return "yes" if value is True else "no" if value is False else str(value)


def training(kept: Kept) -> Html:
    """Everything that the statistics say of the training."""
    known = {key: value for key, value in kept.stats["training"].items() if value not in (None, {}, [])}
    rows = [(key.replace("_", " ").capitalize(), _figure(value)) for key, value in known.items()]
    return tag("details", tag("summary", "Every figure of the training"), facts(rows)) if rows else Html()


def _figure(value: Any) -> str:
    if isinstance(value, float):
        return figure(value, 6)
    return f"{value:,}" if type(value) is int else _plain(value)


def provenance(kept: Kept) -> Html:
    """What this was made of, by hashes and commits, and the whole spec."""
    base = kept.provenance.get("base") or {}
    revision = base.get("revision") or "not a commit of the Hub"
    rows: list[tuple[str, object]] = [
        ("Run", tag("code", kept.spec.run_id)),
        ("Base", tag("code", kept.base)),
        ("Its source", joined(tag("code", kept.spec.model.source), f", {revision}" if base else "")),
        *(_source(number, source) for number, source in enumerate(kept.provenance.get("data") or [], 1)),
        ("Chat template", tag("code", f"sha256 {kept.provenance['chat_template_sha256']}")
         if kept.provenance.get("chat_template_sha256") else ""),
    ]  # fmt: skip
    document = json.dumps(kept.spec.resolved, indent=2, ensure_ascii=False)
    whole = tag(
        "details", tag("summary", "The spec, every default filled in"), tag("pre", cut(document, SPEC_CHARACTERS))
    )
    return joined(facts(rows), whole)


def _source(number: int, source: Json) -> tuple[str, object]:
    revision = f", {source['revision']}" if source.get("revision") else ""
    digest = tag("code", f"sha256 {source.get('sha256')}")
    said = joined(tag("code", source.get("source")), f", split {source.get('split')}{revision}, ", digest)
    return f"Rows {number}", said
