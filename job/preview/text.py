"""A plan for people: as text, and as Markdown for a pull request."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from job.evaluation.judge import AT_ONCE
from job.evaluation.task_work import TaskWork
from job.plan.cards import GB
from job.plan.duration import JUDGE_REQUEST_SECONDS
from job.plan.fetching import BYTES_A_SECOND
from job.plan.gpu_memory import least_words, vllm_share
from job.preview.evaluated import Evaluated
from job.preview.plan import Plan
from job.preview.reckoning import OnCard
from job.preview.rows import Estimate, Rows
from job.report import markdown
from job.report.samples import marked_words
from job.training.methods import METHODS

WORDS = {"yes": "yes", "tight": "tight", "smaller": "smaller batches", "no": "no", "no fp8": "no FP8"}
EXPLAINED = {
    "tight": "tight: it does with the rows that there are, and would not if each had max_seq_length",
    "smaller": "smaller batches: smaller forward passes than micro_batch; a run finds those that fit by itself",
    "no fp8": "no FP8: this card does not have what training.compute asks for",
}
BAR = 30  # characters
# The stage of a run in which a step of its exports is taken; the others are those of "compare".
STAGE_OF = {
    "train": "train",
    "reload": "evaluate",
    "merge": "merge",
    "convert": "gguf",
    "quantise": "gguf",
    "adapter": "gguf",
}


@dataclass(frozen=True)
class PlanPart:
    """Lines, then a table (a head and rows of as many cells), then texts that are shown as they are."""

    title: str
    lines: Sequence[str] = ()
    table: Sequence[Sequence[str]] = ()
    texts: Sequence[str] = ()


def as_text(plan: Plan) -> str:
    """For a terminal."""
    return "\n\n".join("\n".join(_text(section)) for section in sections(plan)) + "\n"


def as_markdown(plan: Plan) -> str:
    """For a pull request."""
    return "\n".join(line for section in sections(plan) for line in _markdown(section)).rstrip() + "\n"


def _text(section: PlanPart) -> Iterator[str]:
    yield section.title
    yield from (f"  {line}" for line in section.lines)
    widths = [max(map(len, column)) for column in zip(*section.table, strict=True)]
    for row in section.table:
        yield "  " + "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip()
    for text in section.texts:
        yield from ("", *(f"  {line}".rstrip() for line in text.rstrip().split("\n")))


def _markdown(section: PlanPart) -> Iterator[str]:
    yield from (f"### {section.title}", "")
    yield from (f"- {markdown.code(line) if '`' in line else line}" for line in section.lines)
    yield from [""] if section.lines else []
    if section.table:
        yield from markdown.table(section.table[0], section.table[1:])
    for text in section.texts:
        yield from markdown.block(text, "text")


def sections(plan: Plan) -> Iterator[PlanPart]:
    """What there is to say, in the order in which it is asked."""
    yield PlanPart(f"Plan of {plan.spec.name}, run {plan.spec.run_id}", list(_head(plan)))
    learns = METHODS[plan.spec.training.method].learns_answers
    yield PlanPart("Rows", list(_rows(plan.rows, learns)), _lengths(plan.rows))
    yield PlanPart("GPUs", list(_about_cards(plan)), list(_cards(plan.cards, plan.size.layers)))
    yield PlanPart("Time, disk and memory by stage", list(_about_stages(plan)), list(_stages(plan)))
    if plan.advice:
        lines = [f"{advice.where}: {advice.text}; {advice.reason}" for advice in plan.advice]
        yield PlanPart("Advice (--no-advice leaves it out)", lines)
    yield PlanPart("The first rows as the model will read them", [marked_words(learns)], texts=plan.rows.samples)


def _head(plan: Plan) -> Iterator[str]:
    spec, schedule = plan.spec, plan.schedule
    kind = "every weight" if spec.model.precision == "full" else f"{spec.model.precision} with an adapter"
    yield f"model: {spec.model.source}, {plan.size.origin}; {kind}, {spec.model.backend}"
    rows = spec.training.batch_size * spec.training.gradient_accumulation_steps
    packed = "packed sequences" if schedule.packed else "rows"
    yield (
        f"steps: {schedule.steps:,} of {rows} {packed} and about {schedule.tokens_a_step:,.0f} tokens; "
        f"{schedule.epochs:.3g} times over the rows, which is {schedule.steps_an_epoch:,} steps each time"
    )
    if not schedule.packed and not schedule.joined and spec.training.batch_size > 1:
        yield f"padding: {schedule.padding:.0%} of what is computed"
    if spec.training.grpo:
        yield (
            f"answers: {schedule.steps * rows:,} are given in the training, of at most "
            f"{spec.training.grpo.max_new_tokens:,} tokens each; times and costs are of answers that long, not measured"
        )
    yield from (f"note: {remark}" for remark in plan.remarks)


def _rows(rows: Rows, learns: bool) -> Iterator[str]:
    counted = "are learned" if learns else "are of references, which are not learned"
    if rows.read_rows == rows.whole_rows:
        yield f"read: all {rows.whole_rows:,} rows of the training sources, in {rows.seconds:.1f} s"
    else:
        yield f"read: a sample of {rows.read_rows:,} of {rows.whole_rows:,} rows; bounds hold in 19 of 20 samples"
    yield f"trained on: {_count(rows.rows)} rows, {_count(rows.sequences)} sequences an epoch"
    if rows.replay_sequences is not None:
        yield f"of these general ones, mixed in by data.replay: {_count(rows.replay_sequences)} sequences"
    yield f"tokens an epoch: {_count(rows.tokens)}, of which {_count(rows.trained_tokens)} {counted}"
    yield f"longest: {rows.longest_tokens:,} tokens"
    yield f"cut to max_seq_length: {_count(rows.truncated_rows)}{_named(rows.truncated)}"
    yield f"dropped, as nothing in them is learned: {_count(rows.dropped_rows)}{_named(rows.dropped)}"
    yield f"copies of other training rows: {rows.duplicate_rows:,}"
    yield f"held out: {_count(rows.held_out_rows)} rows; {rows.held_out_words}"
    if rows.also_trained is not None:
        leak = ": what is measured on them is not new to the model" if rows.also_trained else ""
        yield f"held-out sequences that are trained on, too: {rows.also_trained:,}{leak}"
    yield from (f"note: {note}" for note in rows.notes)


def _named(places: Sequence[str]) -> str:
    return f" ({'; '.join(places)}{'; …' if len(places) > 1 else ''})" if places else ""


def _count(count: Estimate) -> str:
    if count.low == count.high:
        return f"{count.expected:,}"
    return f"about {count.expected:,} ({count.low:,} to {count.high:,})"


def _lengths(rows: Rows) -> list[list[str]]:
    most = max(rows.histogram.values())
    bars = [[name, f"{count:,}", "█" * max(1, round(BAR * count / most))] for name, count in rows.histogram.items()]
    return [["tokens", "sequences read", ""], *bars]


def _about_cards(plan: Plan) -> Iterator[str]:
    asked = plan.spec.resources
    if asked.gpus != 1 or asked.nodes > 1:
        many = f"{asked.gpus} of each" if asked.gpus != "all" else "one of each, as nobody knows how many all are"
        where = f" on each of {asked.nodes} machines" if asked.nodes > 1 else ""
        held = "its part of the weights" if asked.spreads else "the whole model"
        yield f"reckoned with {many}{where}; every one holds {held} and takes its share of a step's rows"
    on = plan.shown or plan.cards[-1]
    length = plan.spec.model.max_seq_length
    yield f"GPU memory, expected: {_gb(on.needed.expected)} on {on.card.name}, with these rows, as quickly as it lets"
    yield f"GPU memory, at most: {_gb(on.needed.at_most)} there, if every row had max_seq_length {length}"
    yield f"GPU memory, least: {_gb(on.needed.least)} on any card, {least_words(length)}; render asks for this"
    if share := vllm_share(plan.spec):
        yield f"{100 * share:.0f} % of each of these is vLLM's, which takes that share of a larger GPU as well"
    yield from (EXPLAINED[verdict] for verdict in EXPLAINED if any(on.fits == verdict for on in plan.cards))
    yield "times of the H200 by a model that was fitted to measured steps; the others estimated, not measured"
    yield "no time of a CPU: a step there takes many times as long, and the log of a run says how long is left"
    if plan.priced:
        whose = "" if asked.gpus == asked.nodes == 1 else ", which is taken for that of all GPUs together"
        yield f"costs by the price of an hour that you have named{whose}: {plan.priced}"
    if plan.cheapest:
        yield f"cheapest that fits: {plan.cheapest.card.name}, {markdown.money(plan.cheapest.cost)} for the whole run"


def recomputed(kept_layers: int, layers: int) -> str:
    """How many layers compute their activations twice."""
    return "none" if kept_layers == layers else f"{layers - kept_layers} of {layers}" if kept_layers else "all"


def _cards(cards: Sequence[OnCard], layers: int) -> Iterator[list[str]]:
    priced = any(on.price_per_hour is not None for on in cards)
    yield [
        "GPU",
        "memory",
        "fits",
        "rows at once",
        "recomputed",
        "expected",
        "s a step",
        "whole run",
        *(["cost"] if priced else []),
    ]
    for on in cards:
        step = "–" if on.step_seconds is None else f"{on.step_seconds:.3g}"
        whole = "–" if on.seconds is None else duration(on.seconds)
        how = [str(on.rows), recomputed(on.kept_layers, layers)]
        cells = [on.card.name, f"{on.card.gb} GB", WORDS[on.fits], *how, _gb(on.needed.expected), step, whole]
        yield [*cells, *([markdown.money(on.cost)] if priced else [])]


def _about_stages(plan: Plan) -> Iterator[str]:
    fetched = plan.fetched.bytes
    if plan.shown:
        unknown = any(work.asked is None for work in plan.evaluated.benchmarks)
        network = "://" in plan.spec.output.uri or plan.spec.output.hub
        others = [*(["what is stored over a network"] if network else []), *(["benchmarks"] if unknown else [])]
        yield f"times on {plan.shown.card.name}{'; not counted: ' * bool(others)}{' and '.join(others)}"
    if fetched:
        at = f"{duration(fetched / BYTES_A_SECOND)} at {BYTES_A_SECOND / 1e6:.0f} MB/s"
        yield f"fetched over a network: {_size(fetched)}, which takes {at}; that rate is assumed, not measured"
    else:
        yield "nothing is fetched over a network"
    yield from _about_evaluation(plan.evaluated)
    yield "memory is the host's, of the whole job; disk is scratch"


def _about_evaluation(asked: Evaluated) -> Iterator[str]:
    """What base and tuned model are asked, and who judges them."""
    if asked.answers:
        yield f"answers of base and tuned model: {asked.answers:,}, of at most {asked.answer_tokens:,} tokens each"
    if asked.judge_requests is not None:
        yield (
            f"judge: at most {asked.judge_requests:,} requests, and one to see that it answers; "
            f"at most {asked.judge_tokens:,} tokens; {AT_ONCE} at once, of {JUDGE_REQUEST_SECONDS:g} s each, which is "
            "assumed, not measured"
        )
    yield from map(_benchmark, asked.benchmarks)


def _benchmark(work: TaskWork) -> str:
    """What it asks of each model, and what its documents take to come here."""
    models = "base, tuned model and merged weights" if work.of_merged else "base and tuned model"
    head = f"benchmark {work.name}, {models} each: "
    if work.asked is None:
        most = "all its documents" if work.limit is None else f"at most {work.limit:,} documents of each task"
        return f"{head}{most}; how long that takes is not known without lm-eval (make benchmarks)"
    asked, counted = work.asked, [f"{work.asked.documents:,} documents"]
    if asked.readings:
        counted.append(f"{asked.readings:,} readings of {asked.read_tokens:,} tokens")
    if asked.answers:
        counted.append(f"{asked.answers:,} answers of at most {asked.new_tokens:,} tokens to {asked.prompt_tokens:,}")
    if work.fetched_bytes:
        counted.append(f"{_size(work.fetched_bytes)} to fetch")
    return head + ", ".join(counted)


def _stages(plan: Plan) -> Iterator[list[str]]:
    times = {stage.name: stage.seconds for stage in plan.shown.stages} if plan.shown else {}
    taken = [(STAGE_OF.get(step.name, "compare"), step) for step in plan.needs]
    fetched = plan.fetched.stages
    yield ["stage", "time", "disk", "memory", *(["fetched"] if fetched else [])]
    for name in dict.fromkeys([*times, *fetched, *(stage for stage, _ in taken)]):
        needs = [step for stage, step in taken if stage == name]
        time = duration(times[name]) if name in times else "–"
        disk = _gb(max(step.disk_bytes for step in needs)) if needs else "–"
        memory = _gb(max(step.ram_bytes for step in needs)) if needs else "–"
        size = _size(fetched[name]) if name in fetched else "–"
        yield [name, time, disk, memory, *([size] if fetched else [])]


def _gb(count: int) -> str:
    return f"{count / GB:.1f} GB"


def _size(count: int) -> str:
    return _gb(count) if count >= GB else f"{count / 1e6:.1f} MB" if count >= 1e5 else f"{count / 1e3:.1f} kB"


def duration(seconds: float) -> str:
    """In the two largest units."""
    if seconds < 100:
        return f"{seconds:.1f} s"
    minutes = round(seconds / 60)
    return f"{minutes} min" if minutes < 60 else f"{minutes // 60} h {minutes % 60:02} min"
