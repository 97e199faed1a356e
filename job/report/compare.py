"""Several runs beside each other: what differs in their specs, what came of it, what it took; which is best."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from job.errors import GateError, SpecError
from job.evaluation.metrics import METRICS, metric_of
from job.evaluation.metrics.task import NAME as TASK
from job.ledger.evidence import STATS, json_object, require_result
from job.ledger.manifest import MANIFEST, SPEC
from job.plan.cards import CARDS
from job.report.figures import TUNED
from job.report.kept import LOSSES, Curves, Json, curves, number, read_lines
from job.spec.wording import pointer_of
from job.store import Store, open_store

ANY = ""  # the key of a price that holds for every device
NOT_COMPARED = ("output", "$schema", "name")  # where it goes, and what it is called
FORM: Mapping[str, Any] = {  # of the members that are compared
    **dict.fromkeys(("run_id", "name", "status"), str),
    **dict.fromkeys(("device", "data", "training", "evaluation", "delivered"), dict),
    "phases": list,
    "wall_seconds": (int, float),
}
READ_BY = (("model", "source"), ("model", "max_seq_length"), ("data", "chat_template"), ("data", "train_on"))
INNER: Mapping[tuple[str, str], type] = {  # of what is in them, where it is there
    ("device", "name"): str,
    ("data", "held_out"): dict,
    ("evaluation", "base"): dict,
    ("evaluation", TUNED): dict,
    ("delivered", "artefacts"): dict,
}


@dataclass(frozen=True)
class ComparedRun:
    """One run. `label`: its name, or more of its address where others have that; `spec` is empty where it has none."""

    label: str
    output: str
    spec: Json
    stats: Json
    losses: Sequence[Json]
    published: bool
    price_per_hour: float | None

    @property
    def seconds(self) -> float:
        return float(self.stats["wall_seconds"])

    @property
    def cost(self) -> float | None:
        return None if self.price_per_hour is None else self.seconds / 3600 * self.price_per_hour

    @property
    def figures(self) -> dict[str, float]:
        """What was measured of the tuned model."""
        known = {name: number(value) for name, value in _member(self.stats["evaluation"], TUNED).items()}
        return {name: value for name, value in known.items() if value is not None}

    @property
    def status(self) -> str:
        if self.stats["status"] == "failed":
            return "failed"
        return "published" if self.published else "not published"

    @property
    def peak_gpu_bytes(self) -> int:
        return max((int(phase.get("peak_gpu_reserved_bytes", 0)) for phase in self.stats["phases"]), default=0)

    @property
    def peak_host_bytes(self) -> int:
        return max((int(phase.get("peak_rss_bytes", 0)) for phase in self.stats["phases"]), default=0)

    def curves(self) -> Curves:
        """Of its training."""
        return curves(self.stats, self.losses)


@dataclass(frozen=True)
class RunComparison:
    """Runs, the best of them by `by` at first; those without that figure come last. `notes`: what makes figures less
    comparable than they look.
    """

    runs: Sequence[ComparedRun]
    by: str | None
    differences: Sequence[tuple[str, Sequence[Any]]]  # pointer, and the value of each run: ABSENT where it has none
    notes: Sequence[str]

    @property
    def best(self) -> ComparedRun | None:
        return self.runs[0] if self.by and self.runs and self.by in self.runs[0].figures else None

    @property
    def metrics(self) -> list[str]:
        """Every figure that any of them has, `by` at first."""
        names = dict.fromkeys(name for run in self.runs for name in run.figures)
        return sorted(names, key=lambda name: name != self.by)


class Absent:
    """The value of a key that a spec does not have."""

    def __repr__(self) -> str:
        return "nothing"


ABSENT = Absent()


def compare(outputs: Sequence[str], by: str | None, prices: Mapping[str, float]) -> RunComparison:
    """Reads the runs. Raises `InputError` where there is none, `GateError` for statistics of another form, `SpecError`
    for a metric that none of them has.
    """
    addresses = [output.rstrip("/") or output for output in outputs]
    if twice := next((address for at, address in enumerate(addresses) if address in addresses[:at]), None):
        raise SpecError("the same output is named twice", where="OUTPUT", found=twice)
    runs = _labelled([_read(address, prices) for address in addresses])
    chosen = _metric(runs, by)
    ordered = sorted(runs, key=lambda run: _rank(run, chosen))
    return RunComparison(ordered, chosen, list(differences([run.spec for run in ordered])), list(_notes(ordered)))


def _read(output: str, prices: Mapping[str, float]) -> ComparedRun:
    store = open_store(output)
    require_result(store, STATS)
    keys = {item.key for item in store.list()}
    stats = _statistics(store)
    spec = json_object(store.read(SPEC)) if SPEC in keys else {}
    losses = read_lines(store.read(LOSSES)) if LOSSES in keys else []
    own = {} if prices else stats.get("cost") or {}  # by the price of its spec
    price = prices.get(_card(str(stats["device"].get("name", ""))), prices.get(ANY, own.get("price_per_hour")))
    return ComparedRun(stats["name"], output, spec, stats, losses, MANIFEST in keys, price)


def _statistics(store: Store) -> Json:
    """Raises `GateError` where they have not what a comparison needs: another version may have written them."""
    stats = json_object(store.read(STATS))
    wrong = [name for name, kind in FORM.items() if not isinstance(stats.get(name), kind)]
    if not wrong:
        inner = {f"{name}.{of}": (stats[name].get(of), kind) for (name, of), kind in INNER.items()}
        wrong = [name for name, (value, kind) in inner.items() if value is not None and not isinstance(value, kind)]
    if stats.get("version") != 1:
        wrong.insert(0, "version")
    elif not wrong and number(stats["wall_seconds"]) is None:
        wrong = ["wall_seconds"]
    elif not wrong and not all(isinstance(phase, dict) and _is_phase(phase) for phase in stats["phases"]):
        wrong = ["phases"]
    if wrong:
        raise GateError(
            "these are statistics of another form",
            where=f"{store.uri}/{STATS}",
            found=f"{', '.join(wrong)} of another form",
            expected="the statistics of a run, version 1",
            hint="Compare it with the version that wrote it, or leave it out",
        )
    return stats


def _is_phase(phase: Json) -> bool:
    sizes = ("wall_seconds", "peak_gpu_reserved_bytes", "peak_rss_bytes")
    return isinstance(phase.get("name"), str) and all(number(phase.get(name)) is not None for name in sizes)


def _card(device: str) -> str:
    """The GPU of `--price` that a device is, by the words of its name; the device where it is none of them."""
    words = device.replace("-", " ").split()

    def says(part: str) -> bool:
        return any(word == part or (part.isdigit() and word.startswith(part)) for word in words)

    return max((key for key, card in CARDS.items() if all(map(says, card.name.split()))), key=len, default=device)


def _labelled(runs: Sequence[ComparedRun]) -> list[ComparedRun]:
    """With labels that are all different: names, else the ends of the addresses, else the addresses."""
    choices = (
        [run.label for run in runs],
        [run.output.rsplit("/", 1)[-1] for run in runs],
        [run.output for run in runs],
    )
    labels = next(labels for labels in choices if len(set(labels)) == len(labels))
    return [replace(run, label=label) for run, label in zip(runs, labels, strict=True)]


def _metric(runs: Sequence[ComparedRun], by: str | None) -> str | None:
    """What they are ordered by: what is asked for, else the first metric that one of them has."""
    tasks = sorted({name for run in runs for name in run.figures if TASK.fullmatch(name)})
    known = [name for name in (*METRICS, *tasks) if any(name in run.figures for run in runs)]
    if by is None:
        return known[0] if known else None
    if by not in known:
        expected = ", ".join(known) or "a metric of these runs: they have none"
        raise SpecError("no run has this metric", where="--by", found=by, expected=expected)
    return by


def _rank(run: ComparedRun, by: str | None) -> float:
    if by is None:
        return 0.0
    value = run.figures.get(by)
    if value is None:
        return math.inf
    return value if metric_of(by).lower_is_better else -value


def differences(specs: Sequence[Json]) -> Iterator[tuple[str, list[Any]]]:
    """Each key that is not the same in all of them. Those that have no spec are left out of the comparison."""
    flat = [dict(_leaves((), {k: v for k, v in spec.items() if k not in NOT_COMPARED})) for spec in specs]
    for pointer in dict.fromkeys(pointer for leaves in flat for pointer in leaves):
        values = [leaves.get(pointer, ABSENT) for leaves in flat]
        known = [value for value, leaves in zip(values, flat, strict=True) if leaves]
        if any(type(value) is not type(known[0]) or value != known[0] for value in known[1:]):
            yield pointer, values


def _leaves(at: tuple[str | int, ...], value: Any) -> Iterator[tuple[str, Any]]:
    if isinstance(value, dict) and value:
        for key, inner in value.items():
            yield from _leaves((*at, key), inner)
    elif isinstance(value, list) and any(isinstance(inner, dict | list) for inner in value):
        for index, inner in enumerate(value):
            yield from _leaves((*at, index), inner)
    elif at:
        yield pointer_of(at), value


def _notes(runs: Sequence[ComparedRun]) -> Iterator[str]:
    for run in runs:
        if run.stats["status"] == "failed":
            said = (run.stats.get("failure") or {}).get("message", "unknown")
            yield f"{run.label} has failed: {said}"
        elif not run.published:
            yield f"{run.label} has no manifest: it was not published"
        if not run.spec:
            yield f"{run.label} has stored no spec: what differs is not known of it"
    made = {run.stats["run_id"]: run.label for run in runs}
    for run in runs:
        if (of := str(_member(run.stats["evaluation"], "before").get("run_id"))) in made:
            yield f"{run.label} went on from the adapter of {made[of]}: what it has gained is since that"
    for kind, words in (("held_out", "held-out rows"), ("general", "general rows")):
        yield from _other_rows([run for run in runs if run.figures and _member(run.stats["data"], kind)], kind, words)
    yield from _others(runs)
    if len({run.stats["device"].get("name") for run in runs}) > 1:
        yield "they ran on other devices: times are of those"


def _other_rows(runs: Sequence[ComparedRun], kind: str, words: str) -> Iterator[str]:
    """Rows of a kind are recognised by how many they are and, where the same model reads them in the same way, how many
    tokens they have.
    """
    known = set[tuple[str, ...]]()
    for run in runs:
        by, split = [_member(run.spec, at).get(key) for at, key in READ_BY], run.stats["data"][kind]
        counts = [split.get("tokens"), split.get("trained_tokens")]
        known.add(tuple(map(json.dumps, (by, split.get("rows"), counts))))
    readers, rows, tokens = ({each[at] for each in known} for at in range(3))
    if len(rows) > 1 or len(known) > len(readers):
        yield f"their {words} are not the same: figures of other rows say little beside each other"
    elif len(tokens) > 1:
        yield f"their {words} have other tokens, by model, template or length: losses a token say little of them"


def _member(document: Json, name: str) -> Json:
    found = document.get(name)
    return found if isinstance(found, dict) else {}


def _objects(found: Any) -> list[Json]:
    return [each for each in found if isinstance(each, dict)] if isinstance(found, list) else []


def _others(runs: Sequence[ComparedRun]) -> Iterator[str]:
    """How judges and benchmarks are recognised where they are not the same."""
    about: dict[str, list[Any]] = {}
    for run in runs:
        judge, benchmarks = (_member(run.stats["evaluation"], name) for name in ("judge", "benchmarks"))
        if judge:
            about.setdefault("judges", []).append([judge.get("model"), judge.get("answered_by")])
        for task in _objects(benchmarks.get("tasks")):
            figures = [task.get(name) for name in ("documents", "few_shot", "versions")]
            rows = [source.get("sha256") for source in _objects(task.get("data"))]
            about.setdefault(f"documents or examples of {task.get('name')}", []).append([figures, rows])
    for what, known in about.items():
        if any(one != known[0] for one in known[1:]):
            yield f"their {what} are not the same: figures of others say little beside each other"


def require_several(outputs: Sequence[str]) -> None:
    """Raises `SpecError` for fewer than two."""
    if len(outputs) < 2:
        said = "there is nothing to compare it with"
        raise SpecError(said, where="OUTPUT", found="one output", expected="two or more")
