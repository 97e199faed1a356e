"""report.html: one run, to look at."""

from __future__ import annotations

from pathlib import Path

from job.report.gates import all_gates, gates_of
from job.report.kept import Kept, write_whole
from job.report.page.answers import answers
from job.report.page.cost import duration, stages
from job.report.page.made import environment, exports, provenance, training
from job.report.page.markup import Html, joined, tag
from job.report.page.measures import figures_table, gates_table, headline, training_curves
from job.report.page.rows import rows, samples
from job.report.page.shell import Section, page
from job.report.verdict import BAD, EVEN, GOOD, verdict

LABELS = {GOOD: "Better", EVEN: "No clear answer", BAD: "Not better"}
PAGE = "report.html"
ASKED = "The same questions to the base and to the tuned model, the likeliest token each time."
MARKED = joined("What is ", tag("mark", "marked"), " is learned, the rest is only read.")


def write_page(kept: Kept, folder: Path) -> Path:
    """`report.html`."""
    return write_whole(folder / PAGE, run_page(kept))


def run_page(kept: Kept) -> str:
    """The page of a run that has ended, or has failed: sections of which nothing is known are left out."""
    gates = all_gates(kept.spec, kept.stats, kept.exports)
    took = f"The run took {duration(kept.stats['wall_seconds'])} up to this page."
    sections = [
        Section("figures", "Figures", figures_table(kept)),
        Section("gates", "Gates", gates_table(gates), "What had to hold before anything was published."),
        Section("answers", "Answers", answers(kept), ASKED),
        Section("curves", "Training", _training(kept), _trained(kept)),
        Section("exports", "Exports", exports(kept, gates)),
        Section("cost", "Time and memory", stages(kept), took),
        Section("rows", "Rows", rows(kept)),
        Section("samples", "Rows as the model reads them", samples(kept), MARKED),
        Section("environment", "Environment", environment(kept)),
        Section("provenance", "Provenance", provenance(kept)),
    ]  # fmt: skip
    written = f"Report of run {kept.spec.run_id}, written by it with"
    return page(f"{kept.spec.name} – tunejob", _header(kept), sections, written)


def _header(kept: Kept) -> Html:
    kind, sentence = verdict(kept.stats, gates_of(kept.spec, kept.stats))
    label = "Failed" if kept.stats.get("failure") else LABELS[kind]
    return joined(
        tag("p", f"Fine-tuning report · run {kept.spec.run_id}", class_="kicker"),
        tag("h1", kept.spec.name),
        tag("p", *_question(kept), class_="question"),
        tag("div", tag("p", label, class_="label"), tag("p", sentence), class_=f"verdict {kind}"),
        headline(kept),
    )


def _question(kept: Kept) -> list[object]:
    """What was asked of the run."""
    train, held_out = kept.stats["data"].get("train"), kept.stats["data"].get("held_out")
    count = f"{train['rows']:,} rows of " if train else ""
    sources: list[object] = []
    for source in kept.spec.data.train:
        sources += [", " if sources else "", tag("b", source.source)]
    measured = f"{held_out['rows']:,} rows that it has not seen" if held_out else "rows"
    end = f", answer {measured} better than before?"
    what: list[object] = [] if kept.spec.model.combine else [f" on {count}", *sources]
    return ["Does ", tag("b", kept.base), f", {_method(kept)}", *what, end]


def _method(kept: Kept) -> str:
    spec = kept.spec
    if spec.lora is None:
        return "every weight trained"
    if spec.model.combine:
        count = len(spec.model.adapters or ())
        return f"with {count} adapters combined by {spec.model.combine.method}"
    method = "DoRA" if spec.lora.dora else "LoRA"
    return f"tuned by {method} of rank {spec.lora.r} on {spec.model.precision.replace('bit', '-bit')} weights"


def _training(kept: Kept) -> Html:
    drawn = training_curves(kept)
    return joined(drawn, training(kept)) if drawn else Html()


def _trained(kept: Kept) -> str:
    known = kept.stats["training"]
    if not known:
        return ""
    stopped = ", stopped early" if known["stopped_early"] else ""
    return (
        f"{known['steps']:,} steps{stopped}, {known['tokens']:,} tokens in {duration(known['wall_seconds'])}, "
        f"{known['tokens_per_second']:,.0f} tokens a second, {known['trainable_parameters']:,} weights trained."
    )
