"""What a run of a spec will be like, before any GPU second is paid for: rows, steps, memory, time, money, advice."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from job.errors import CapacityError, InputError
from job.host.log import Log
from job.plan.advice import Advice, Facts, advise
from job.plan.cards import CARDS, GB
from job.plan.duration import JUDGE_REQUEST_SECONDS, epoch_seconds
from job.plan.fetching import BYTES_A_SECOND, Fetching, fetching
from job.plan.machine import needs_by_stage
from job.plan.model_size import ModelSize, size_of_base
from job.plan.schedule import Schedule
from job.plan.steps import Step
from job.preview.benchmarks import see_tasks
from job.preview.evaluated import Evaluated, evaluated
from job.preview.light import without_torch
from job.preview.reckoning import ANY, OnCard, Scheduler, on_card, scheduler
from job.preview.rows import Rows, see_rows
from job.preview.seen import look_to_validate
from job.source import FetchedModel, fetch_bases, fetch_beside, fetch_data
from job.source.glimpse import owns_template
from job.source.model_config import check_values
from job.spec import JobSpec
from job.training.methods import METHODS

VERSION = 1
UNSAID = ("lengths", "times", "questions", "readings")  # of the rows
OF_COMMAND, OF_SPEC = "--price", "the spec's resources.price_per_hour"


@dataclass(frozen=True)
class Plan:
    """`cheapest`: the card on which the whole run costs least, where prices differ by card. `priced`: whose prices
    these are, None for none.
    """

    spec: JobSpec
    size: ModelSize
    rows: Rows
    schedule: Schedule
    cards: list[OnCard]
    needs: list[Step]
    fetched: Fetching
    priced: str | None
    cheapest: OnCard | None
    advice: list[Advice]
    remarks: list[str]
    evaluated: Evaluated

    @property
    def shown(self) -> OnCard | None:
        """The card whose times are given by stage: the cheapest, else the smallest that is large enough."""
        return self.cheapest or next((on for on in self.cards if on.stages), None)

    def failure(self) -> CapacityError | None:
        """What a run would end with on every card."""
        if self.shown:
            return None
        needed = min(on.needed.expected for on in self.cards)
        return CapacityError(
            "this fits on no single GPU that is known here",
            where="/model/source",
            found=f"about {needed / GB:.0f} GB with one row at a time",
            expected=f"at most {max(card.gb for card in CARDS.values())} GB",
            hint="Choose 4bit, a smaller max_seq_length or model, or leave gradient_checkpointing to auto",
        )

    def document(self) -> dict[str, Any]:
        """As `schemas/plan.schema.json` has it."""
        rows = {key: value for key, value in asdict(self.rows).items() if key not in UNSAID}
        return {
            "version": VERSION,
            "name": self.spec.name,
            "run_id": self.spec.run_id,
            "model": {"source": self.spec.model.source, "parameters": self.size.parameters, "origin": self.size.origin},
            "rows": {key: _rounded(value) for key, value in rows.items()},
            "training": {
                "steps": self.schedule.steps,
                "steps_per_epoch": self.schedule.steps_an_epoch,
                "epochs": _rounded(self.schedule.epochs),
                "rows_per_step": self.spec.training.batch_size * self.spec.training.gradient_accumulation_steps,
                "sequences": self.schedule.sequences,
                "tokens_per_step": _rounded(self.schedule.tokens_a_step),
                "padding": _rounded(self.schedule.padding),
            },
            "gpus": [_card_document(on) for on in self.cards],
            "priced": self.priced,
            "needs": [asdict(step) for step in self.needs],
            "fetched": {
                "bytes": self.fetched.bytes,
                "assumed_bytes_per_second": BYTES_A_SECOND,
                "stages": [{"stage": stage, "bytes": count} for stage, count in self.fetched.stages.items()],
            },
            "cheapest": self.cheapest.key if self.cheapest else None,
            "advice": [asdict(advice) for advice in self.advice],
            "remarks": self.remarks,
            "evaluation": asdict(self.evaluated) | {"assumed_judge_request_seconds": JUDGE_REQUEST_SECONDS},
        }


def _card_document(on: OnCard) -> dict[str, Any]:
    return {
        "gpu": on.key,
        "name": on.card.name,
        "memory_bytes": on.card.bytes,
        "fits": on.fits,
        "micro_batch_rows": on.rows,
        "kept_layers": on.kept_layers,
        "needed_bytes": asdict(on.needed),
        "times": "measured" if on.card.measured else "estimated, not measured",
        "step_seconds": _rounded(on.step_seconds),
        "stages": [{"stage": stage.name, "seconds": _rounded(stage.seconds)} for stage in on.stages],
        "seconds": _rounded(on.seconds),
        "price_per_hour": on.price_per_hour,
        "cost": _rounded(on.cost),
    }


def _rounded(value: Any) -> Any:
    return round(value, 4) if isinstance(value, float) else value


@dataclass(frozen=True)
class PlanOptions:
    """What the command was given. `folder`: where the spec is. `prices` an hour by card, or by `ANY`. `alone`: in a
    process that does nothing else.
    """

    folder: Path
    sample: int | None
    prices: Mapping[str, float]
    advice: bool
    alone: bool


def make_plan(spec: JobSpec, asked: PlanOptions, workdir: Path, log: Log) -> Plan:
    """Looks, fetches rows and config into `workdir`, tokenises, reckons. Raises as a run would before its weights."""
    seen = look_to_validate(spec, asked.folder)
    if failure := seen.failure():
        raise failure
    try:
        train, held_out = fetch_data(spec.data, workdir)  # datasets takes a torch that is hidden for one that is there
        with without_torch(asked.alone):
            base, merge_base = fetch_bases(spec, workdir, check_values)
        beside = fetch_beside(spec, workdir)
        tasks = see_tasks(spec, base.path, workdir)  # a name that is none is told before rows are read
        with log.bar("data") as bar:
            rows = see_rows(spec, train, held_out, base.path, workdir, bar.update_total, asked.sample, beside)
    except ModuleNotFoundError as error:
        hint = "Install locks/plan.txt, which has all that a plan needs, without torch"
        raise InputError("a package that reads rows is not installed", found=f"no {error.name}", hint=hint) from error
    size = size_of_base(spec, base)
    scheduled = scheduler(spec, rows.lengths, rows.times)
    prices, priced = prices_of(spec, asked.prices)
    documents = sum(work.fetched_bytes or 0 for work in tasks.work)
    fetched = fetching(spec, [*train, *(held_out or []), *beside.sources], base, merge_base, documents)
    asked_of_models = evaluated(spec.evaluation, rows.questions, rows.readings, tasks.work)
    cards = [on_card(spec, size, scheduled, rows.whole_seconds, key, prices, asked_of_models, fetched) for key in CARDS]
    costs = [on for on in cards if on.cost is not None]
    return Plan(
        spec=spec,
        size=size,
        rows=rows,
        schedule=scheduled(spec.training.batch_size, spec.data.packing),
        cards=cards,
        needs=needs_by_stage(spec, size),
        fetched=fetched,
        priced=priced,
        cheapest=min(costs, key=lambda on: on.cost or 0.0, default=None) if ANY not in prices else None,
        advice=advise(spec, facts(spec, size, rows, scheduled, base)) if asked.advice else [],
        remarks=[*(text for _, text in [*seen.remarks, *seen.notes]), *tasks.remarks],
        evaluated=asked_of_models,
    )


def prices_of(spec: JobSpec, asked: Mapping[str, float]) -> tuple[Mapping[str, float], str | None]:
    """Prices an hour by card, and whose they are: the command's go before the spec's."""
    own = spec.resources.price_per_hour
    if asked:
        return asked, f"{OF_COMMAND}, not the {own:g} of {OF_SPEC}" if own is not None else OF_COMMAND
    return ({}, None) if own is None else ({ANY: own}, OF_SPEC)


def facts(spec: JobSpec, size: ModelSize, rows: Rows, scheduled: Scheduler, base: FetchedModel) -> Facts:
    """What the advice asks for."""
    planned, time = scheduled(spec.training.batch_size, spec.data.packing), None
    if METHODS[spec.training.method].joins(spec) and not spec.data.packing:
        card = next(card for card in CARDS.values() if card.measured)
        packed = scheduled(spec.training.batch_size, True)
        kept = 0 if spec.training.gradient_checkpointing else size.layers
        time = epoch_seconds(spec, size, packed, card, kept) / epoch_seconds(spec, size, planned, card, kept)
    return Facts(
        rows=rows.rows.expected,
        epochs=planned.epochs,
        steps=planned.steps,
        longest_tokens=rows.longest_tokens,
        truncated_rows=rows.truncated_rows.expected,
        packing_time=time,
        formats=tuple(source.format for source in spec.data.train),
        chats=owns_template(base.path),
        quantised=base.quantised,
        parameters=size.parameters,
    )
