"""A spec for rows that nobody has written one for, and why it is as it is."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from job.data.fit import USUAL_NAMES, best_fit
from job.data.worker.shape import Document
from job.errors import Fault, InputError, JobError
from job.host.temporary_folder import temporary_folder
from job.init.look import (
    LOOKED,
    POINTER,
    SHOWN_FAULTS,
    Looked,
    look,
    name_of,
    prompts_of,
    source_spec,
    unanswered,
    undecided,
)
from job.init.rendered import KnownModel, RenderedRows, estimated_tokens, known_model, render
from job.init.settings import (
    LENGTHS,
    answers_for,
    default_model,
    device_of,
    epochs_for,
    held_out_for,
    parsed,
    rate_for,
    settle,
    wanted_length,
)
from job.ledger.evidence import unclaimed
from job.spec import SourceSpec
from job.store import open_store
from job.store.base import local_path

Json = dict[str, Any]
# What the command calls the places of a spec that does not exist yet.
PLACES = {"": "FILE", "/source": "FILE", "/split": "--split", "/columns": "--columns"}
PLAIN = "sft"  # the method where a spec names none


@dataclass(frozen=True)
class InitOptions:
    """What the command was given; `columns`: those of the rows by what the format calls them."""

    rows: str
    split: str
    columns: Mapping[str, str]
    model: str | None
    gpu_gib: float | None
    name: str | None


@dataclass(frozen=True)
class Proposal:
    """A spec, why it says what it says (topic and words), and rows as the model will read them."""

    document: Json
    reasons: list[tuple[str, str]]
    samples: tuple[str, ...]


def propose(asked: InitOptions, alone: bool) -> Proposal:
    """Looks at the rows, at the model if it can be had, and at the machine; `alone`: in a process that does nothing
    else.

    Raises `InputError` for rows that cannot be read or that no format fits, `SpecError` for a name or an address that
    is none, `CapacityError` for a model that does not fit the GPU.
    """
    with temporary_folder("tunejob-init-") as scratch:
        looked = _looked(asked, scratch)
        device = device_of(asked.gpu_gib)
        model, why_model = (asked.model, "as --model says") if asked.model else default_model(device)
        document = draft(asked, looked, model)
        known, rendered, why_not = _as_the_model_reads(document, looked, scratch, alone)
    longest = rendered.longest_tokens if rendered else estimated_tokens(looked)
    reasons = [*_about_rows(looked), ("model", f"{model}: {why_model}")]
    if rendered and rendered.chat_template != "model":
        document["data"]["chat_template"] = rendered.chat_template
        reasons.append(("template", f"{rendered.chat_template}, as the model has none of its own"))
    length = wanted_length(longest, isinstance(looked.fit.example, Document), known.positions if known else None)
    document, why_fits = settle(document, device, length, known.parameters if known else None)
    if rate := rate_for(document, known.parameters if known else None):
        document["training"]["learning_rate"] = rate[0]
        reasons.append(("rate", rate[1]))
    answered, why_answered = answers_for(device, rendered.longest_learned if rendered else None)
    document["evaluation"]["max_new_tokens"] = answered
    parsed(document)  # what is written is valid
    has = "has" if rendered else "may have, by its bytes,"
    reasons += [
        ("device", device.words),
        ("memory", why_fits),
        ("length", f"{document['model']['max_seq_length']} tokens: the longest row that was looked at {has} {longest}"),
        ("epochs", f"{document['training']['epochs']} times over the rows: of few, as often as makes about 100 steps"),
        ("held out", held_out_for(looked.count, looked.whole)[1]),
        (
            "prompts",
            f"{len(document['evaluation']['prompts'])} from the rows: base and trained model answer them, too",
        ),
        ("answers", f"at most {answered} tokens, {why_answered}"),
        ("output", f"{document['output']['uri']}/, an adapter; paths are as seen from this folder"),
    ]
    return Proposal(document, [*reasons, *why_not], rendered.samples if rendered else ())


def _looked(asked: InitOptions, workdir: Path) -> Looked:
    try:
        return look(source_spec(asked.rows, asked.split), asked.columns, workdir)
    except JobError as error:  # there is no spec yet whose places these would be
        raise type(error)(*map(_as_the_command_says, error.faults)) from error
    except ModuleNotFoundError as error:
        hint = "locks/cpu.txt has it; the light install reads .csv, .tsv, .json, .jsonl and .txt of this machine and S3"
        raise InputError(
            "a package for these rows is not installed", where=asked.rows, found=f"no {error.name}", hint=hint
        ) from error


def _as_the_command_says(fault: Fault) -> Fault:
    known = {f"{POINTER}{place}": name for place, name in PLACES.items()}
    return replace(fault, where=known.get(fault.where, fault.where))


def draft(asked: InitOptions, looked: Looked, model: str) -> Json:
    """The spec, but for what the machine decides."""
    name = asked.name or f"{name_of(looked.source.spec.source)}-tuned"
    return {
        "version": 1,
        "name": name,
        "model": {"source": model},
        "data": {
            "train": [_train(looked.source.spec)],
            "held_out": held_out_for(looked.count, looked.whole)[0],
        },
        "training": ({} if looked.method == PLAIN else {"method": looked.method})
        | {"epochs": epochs_for(looked.count)},
        "evaluation": {"prompts": prompts_of(looked)},
        "output": {"uri": _free(name)},
    }


def _named(method: str) -> Json:
    return {} if method == PLAIN else {"method": method}


def _train(spec: SourceSpec) -> Json:
    optional = {
        "subset": spec.subset,
        "split": None if spec.split == "train" else spec.split,
        "columns": spec.columns or None,
    }
    return {"source": spec.source, "format": spec.format} | {k: v for k, v in optional.items() if v is not None}


def _free(name: str) -> str:
    """A folder that a run may claim: one output belongs to one run, and the report of a failure to none."""
    names = [name, *(f"{name}-{number}" for number in range(2, 100))]
    return next((free for free in names if _may_be_claimed(free)), name)


def _may_be_claimed(name: str) -> bool:
    if not local_path(name).exists():
        return True
    store = open_store(name)
    keys = [item.key for item in store.list()]
    return bool(keys) and not unclaimed(store, keys)


def _as_the_model_reads(
    document: Json, looked: Looked, workdir: Path, alone: bool
) -> tuple[KnownModel | None, RenderedRows | None, list[tuple[str, str]]]:
    """What is known of the model, the rendered rows, and why there are none. A model of this machine must be one."""
    source, known = document["model"]["source"], None
    try:
        known = known_model(source, workdir, alone)
        longest = {"model": document["model"] | {"max_seq_length": known.positions or LENGTHS[-1]}}
        return known, render(parsed(document | longest), looked, known.folder, workdir), []
    except ModuleNotFoundError as error:  # the light install
        return known, None, [("samples", f"not rendered: {error.name} is not installed here")]
    except JobError as error:
        if known is None and "://" not in source:
            raise
        elsewhere = "" if known else "; --model FOLDER takes a model of this machine"
        return known, None, [("samples", f"not rendered: {error.lines()[0]}{elsewhere}")]


def _about_rows(looked: Looked) -> list[tuple[str, str]]:
    fit, unread = looked.fit, looked.remarks
    files = "" if looked.whole else " in its first file"
    looked_at = f", of which {LOOKED} were looked at" if looked.count > LOOKED else ""
    named = "".join(f"; its {name} is the column {column}" for name, column in fit.columns.items())
    becomes = "conversations, through a chat template" if fit.is_chat else "raw text, without a chat template"
    if looked.source.files[0].name.lower().removesuffix(".gz").endswith(".txt"):
        becomes += "; each line of a .txt file is a row by itself"
    lines = [
        ("rows", f"{looked.count} in {looked.source.spec.source}{files}{looked_at}"),
        ("format", f"{fit.format}{named}: {becomes}"),
        ("method", f"{looked.method}: {_why(looked)}"),
        *(("rows", remark.removeprefix(f"{POINTER}: ")) for remark in unread),
    ]
    faults = looked.faults()
    if faults:
        lines.append(("rows", f"{len(faults)} cannot be used, and a run refuses them (exit 11):"))
        lines += [("", fault) for fault in faults[:SHOWN_FAULTS]]
    useless = {
        "have an empty answer": unanswered(looked),
        "have the same chosen and rejected answer": undecided(looked),
    }
    for what, places in useless.items():
        if places:
            shown = ", ".join(places[:SHOWN_FAULTS])
            lines.append(("rows", f"{len(places)} {what}, of which nothing is learned: {shown}; a run refuses many"))
    return lines


def _why(looked: Looked) -> str:
    """Why the rows are learned from by this method, and how they would be by the plain one."""
    if looked.fit.format == "kto":
        return (
            "each row says by its label whether its answer is good; of held-out rows preference_accuracy and "
            f"reward_margin are measured. Good rows without that column are learned by {PLAIN}"
        )
    if not looked.fit.compares:
        return ("the answers are learned" if looked.fit.is_chat else "the text is learned") + _unread_label(looked)
    plain = best_fit(looked.rows, {}, (PLAIN,))
    columns = ",".join(f"{name}={column}" for name, column in plain.columns.items()) if plain else ""
    alone = f". --columns {columns} learns the chosen answers alone, by {PLAIN}" if columns else ""
    return (
        "each row has a chosen and a rejected answer; of held-out pairs preference_accuracy and reward_margin are "
        f"measured{alone}"
    )


def _unread_label(looked: Looked) -> str:
    """Answers that somebody has called bad are learned as good ones: that is to be known."""
    read = looked.fit.columns.values()
    label = next((name for name in ("label", *USUAL_NAMES["label"]) if name in looked.rows[0] and name not in read), "")
    return f", whatever the column {label} says: kto reads true or false, 1 or 0, and rows of both" if label else ""
